// multi_l1 and multi_pointwise on one chunk.
#include <algorithm>
#include <cmath>

#include "cases.h"

namespace harness {
namespace {

std::string describe(const Run& run, const char* kernel, DType a, DType b, int64_t n) {
  return std::string(run.kernels.name) + " " + kernel + " " + name(a) + "/" + name(b) + " n=" + std::to_string(n);
}

void l1_forward(Run& run, DType a, DType b, int64_t n, Values values) {
  set_case(describe(run, "l1_forward", a, b, n));
  Buffer x = filled(a, n, run.random.below(5), values, run.random);
  Buffer y = filled(b, n, run.random.below(5), values, run.random);
  for (int64_t i = 0; i < n; i += 1 + run.random.below(9)) y.set(b, i, x.get(a, i));  // ties, where both can hold it
  Words signs((n + 31) / 32 * 2);
  const double sum = run.kernels.l1_forward(x.data(), a, y.data(), b, n, signs.data());
  const double unsigned_sum = run.kernels.l1_forward(x.data(), a, y.data(), b, n, nullptr);
  check(same(sum, unsigned_sum), "the sum without signs is %.17g, with signs %.17g", unsigned_sum, sum);
  const bool wide = a == DType::kFloat64 || b == DType::kFloat64;
  double wanted = 0.0;
  for (int64_t i = 0; i < (n + 31) / 32 * 32; ++i) {
    const double difference = i < n ? x.get(a, i) - y.get(b, i) : 0.0;
    wanted += std::fabs(rounded(wide ? DType::kFloat64 : DType::kFloat32, difference));
    signs.check_bit(i, 0, 2, difference > 0, "positive");
    signs.check_bit(i, 1, 2, difference < 0, "negative");
  }
  check(close(sum, wanted, 1e-12 * std::fabs(wanted)), "the sum is %.17g, not %.17g", sum, wanted);
  signs.check_guards("signs");
  run.add_to_digest(sum);
}

void l1_backward(Run& run, DType type, int64_t n, double coefficient, bool stream) {
  set_case(describe(run, "l1_backward", type, type, n));
  Words signs((n + 31) / 32 * 2);
  std::vector<double> wanted;
  for (int64_t i = 0; i < (n + 31) / 32 * 32; ++i) {
    const int64_t sign = run.random.below(3) - 1;
    signs.set(i, 0, 2, sign > 0);
    signs.set(i, 1, 2, sign < 0);
    wanted.push_back(narrowed(type, static_cast<double>(sign) * coefficient));
    if (sign == 0) wanted.back() = narrowed(type, 0.0 * coefficient);
  }
  Buffer grad(type, n, stream ? 0 : run.random.below(5));
  run.kernels.l1_backward(grad.data(), type, n, signs.data(), coefficient, stream);
  check_same(grad, type, wanted, "grad");
}

double value_of(Pointwise kind, double x, double c) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return (x - c) * (x - c);
    case Pointwise::kHinge:
      return relu_of(1.0 - c * x);
    case Pointwise::kLinear:
      return c * x;
    default:
      return (1.0 - c) * x - (x < 0 ? x : 0.0) + std::log1p(std::exp(-std::fabs(x)));
  }
}

double slope_of(Pointwise kind, double x, double c) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return 2.0 * (x - c);
    case Pointwise::kHinge:
      return 1.0 - c * x <= 0 ? 0.0 : -c;
    case Pointwise::kLinear:
      return c;
    default:
      return 1.0 / (1.0 + std::exp(-x)) - c;
  }
}

void pointwise(Run& run, Pointwise kind, DType type, int64_t n, double constant, Values values) {
  set_case(describe(run, "pointwise", type, type, n) + " kind " + std::to_string(static_cast<int>(kind)));
  const double c = narrowed(type, constant);
  Buffer x = filled(type, n, run.random.below(5), values, run.random);
  double wanted = 0.0;
  double magnitude = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = value_of(kind, x.get(type, i), c);
    wanted += value;
    magnitude += std::fabs(value);
  }
  const double sum = run.kernels.pointwise_forward(x.data(), type, n, kind, constant);
  const double allowed = tolerance(arithmetic(type), magnitude);
  check(close(sum, wanted, allowed), "the sum is %.17g, not %.17g", sum, wanted);
  if (type != DType::kFloat64) run.add_to_digest(sum);  // in float64 the C library computes the logarithm

  constexpr double kCoefficient = 0.375;
  Buffer grad(type, n, run.random.below(5));
  run.kernels.pointwise_backward(grad.data(), x.data(), type, n, kind, constant, kCoefficient);
  for (int64_t i = 0; i < n; ++i) {
    const double slope = kCoefficient * slope_of(kind, x.get(type, i), c);
    // A label between 0 and 1 can cancel; the labels 0 and 1 cannot.
    check_near(grad, type, i, slope, kind == Pointwise::kLogistic && c == 1.0 ? 0.0 : kCoefficient * c, "grad");
    if (type != DType::kFloat64) run.add_to_digest(grad.get(type, i));
  }
  grad.check_guards("grad");
}

}  // namespace

void test_l1(Run& run) {
  constexpr double kCoefficients[] = {0.37, -2.0, 3e-9, 0.0, NAN, HUGE_VAL};
  for (const DType a : kTypes) {
    for (const DType b : kTypes) {
      for (int64_t k = 0; k < run.shapes; ++k) {
        l1_forward(run, a, b, random_size(run.random), k % 4 == 3 ? Values::kSpecial : Values::kRandom);
      }
    }
    l1_forward(run, a, a, cpu::kChunk, Values::kRandom);
    for (const double coefficient : kCoefficients) {
      for (const bool stream : {false, true}) l1_backward(run, a, random_size(run.random), coefficient, stream);
    }
  }
}

void test_pointwise(Run& run) {
  for (const DType type : kTypes) {
    for (int64_t k = 0; k < run.shapes; ++k) {
      const int64_t n = random_size(run.random);
      const Values values = k % 4 == 3 ? Values::kSpecial : Values::kRandom;
      pointwise(run, Pointwise::kSquaredError, type, n, k % 2 == 0 ? 1.0 : 0.9, values);
      pointwise(run, Pointwise::kLogistic, type, n, k % 2 == 0 ? 1.0 : 0.1, values);
      // Multiples of 1/8: rounding must not decide on which side of the kink an element is.
      pointwise(run, Pointwise::kHinge, type, n, k % 2 == 0 ? 1.0 : -1.0, Values::kEighths);
      pointwise(run, Pointwise::kLinear, type, n, k % 2 == 0 ? 1.0 : -1.0, values);
    }
  }
}

}  // namespace harness
