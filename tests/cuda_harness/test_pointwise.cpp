// pointwise_forward and pointwise_backward against the formulas, and finish_sum.
#include <algorithm>
#include <cmath>

#include "tensors.h"

namespace harness {
namespace {

using namespace pix2pixhd;

constexpr Pointwise kKinds[] = {Pointwise::kSquaredError, Pointwise::kHinge, Pointwise::kLinear, Pointwise::kLogistic};
constexpr const char* kKindNames[] = {"squared error", "hinge", "linear", "logistic"};

double value_of(Pointwise kind, double x, double c) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return (x - c) * (x - c);
    case Pointwise::kHinge:
      return 1.0 - c * x <= 0.0 ? 0.0 : 1.0 - c * x;
    case Pointwise::kLogistic:
      return (1.0 - c) * x - (x < 0.0 ? x : 0.0) + std::log1p(std::exp(-std::fabs(x)));
    default:
      return c * x;
  }
}

double slope_of(Pointwise kind, double x, double c) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return 2.0 * (x - c);
    case Pointwise::kHinge:
      return 1.0 - c * x <= 0.0 ? 0.0 : -c;
    case Pointwise::kLogistic:
      return x < 0.0 ? std::exp(x) / (1.0 + std::exp(x)) - c : (1.0 - c) - std::exp(-x) / (1.0 + std::exp(-x));
    default:
      return c;
  }
}

// Whether results on multiples of 1/8 are exact: exp and log1p are not.
bool is_exact(Pointwise kind, Values values) { return values == Values::kEighths && kind != Pointwise::kLogistic; }

// The relative error of a few operations and of rounding to the dtype.
double precision(DType type) {
  switch (type) {
    case DType::kFloat64:
      return 1e-15;
    case DType::kFloat16:
      return 0x1p-10;
    case DType::kBFloat16:
      return 0x1p-7;
    default:
      return 1e-6;
  }
}

struct List {
  std::vector<Shape> shapes;
  std::vector<Buffer> input;
  std::vector<double> factor, constant;

  List(const std::vector<Shape>& list, int64_t offset, Values values) : shapes(list) {
    Random random(list.size() + static_cast<size_t>(values));
    for (const Shape& shape : shapes) {
      constant.push_back(random.below(3) == 0 ? 0.5 : random.below(2) == 0 ? 1.0 : -1.0);
      factor.push_back(random.below(2) == 0 ? 0.25 : -2.0);
      input.emplace_back(shape.type[0], shape.numel, offset);
      for (int64_t i = 0; i < shape.numel; ++i) {
        const double on_the_edge = 1.0 / constant.back();
        input.back().set(shape.type[0], i, random.below(8) == 0 ? on_the_edge : draw(random, values));
      }
    }
  }
};

std::vector<unsigned char> run_forward(List& list, Pointwise kind, Values values) {
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < list.shapes.size(); ++k) {
    void* x = list.input[k].data();
    entries.push_back({{{x, nullptr}, nullptr, list.shapes[k].numel, list.factor[k], list.constant[k], is_aligned(x)},
                       {list.shapes[k].type[0], list.shapes[k].type[0]}});
  }
  const cuda::Plan plan = cuda::make_plan(entries);
  Buffer partial(DType::kFloat64, plan.partials);
  for (const cuda::Launch& launch : plan.launches) {
    const int error = cuda::pointwise_forward(launch, kind, static_cast<double*>(partial.data()), nullptr);
    check(error == 0, "pointwise_forward returns %d", error);
  }
  int64_t block = 0;
  for (const size_t k : planned_order(list.shapes)) {
    for (int64_t begin = 0; begin < list.shapes[k].numel; begin += kBlockChunk, ++block) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t i = begin; i < std::min(begin + kBlockChunk, list.shapes[k].numel); ++i) {
        const double term = value_of(kind, list.input[k].get(list.shapes[k].type[0], i), list.constant[k]);
        sum += term;
        magnitude += std::fabs(term);
      }
      const double wanted = sum * list.factor[k];
      const double relative = list.shapes[k].type[0] == DType::kFloat64 ? 1e-13 : 1e-6;
      const double tolerance = is_exact(kind, values) ? 0.0 : relative * std::fabs(magnitude * list.factor[k]);
      const double got = partial.get(DType::kFloat64, block);
      check(close(got, wanted, tolerance), "partial sum %ld of tensor %zu is %.17g, not %.17g",
            static_cast<long>(block), k, got, wanted);
    }
    list.input[k].check_guards("input");
  }
  check(block == partial.numel(), "%ld partial sums instead of %ld", static_cast<long>(partial.numel()),
        static_cast<long>(block));
  partial.check_guards("partial sums");
  return partial.bytes();
}

// output_offset: with another offset than the input's, the gradient is aligned differently.
void run_backward(List& list, Pointwise kind, Values values, Scalar upstream, int64_t output_offset) {
  std::vector<Buffer> gradient;
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < list.shapes.size(); ++k) {
    const DType type = list.shapes[k].type[0];
    gradient.emplace_back(type, list.shapes[k].numel, output_offset);
    void* x = list.input[k].data();
    void* g = gradient.back().data();
    entries.push_back(
        {{{x, g}, nullptr, list.shapes[k].numel, list.factor[k], list.constant[k], is_aligned(x) && is_aligned(g)},
         {type, type}});
  }
  for (const cuda::Launch& launch : cuda::make_plan(entries).launches) {
    const int error = cuda::pointwise_backward(launch, kind, upstream.device(), nullptr);
    check(error == 0, "pointwise_backward returns %d", error);
  }
  for (size_t k = 0; k < list.shapes.size(); ++k) {
    const DType type = list.shapes[k].type[0];
    const DType arithmetic = type == DType::kFloat64 ? type : DType::kFloat32;
    for (int64_t i = 0; i < list.shapes[k].numel; ++i) {
      const double slope = slope_of(kind, list.input[k].get(type, i), list.constant[k]);
      // Where the hinge's slope is 0, the gradient is 0 for every upstream gradient, as in PyTorch's relu.
      const bool cut = kind == Pointwise::kHinge && slope == 0.0;
      const double exact = cut ? 0.0 : rounded(arithmetic, upstream.get() * list.factor[k] * slope);
      const double wanted = rounded(type, exact);
      const double got = gradient[k].get(type, i);
      double tolerance = is_exact(kind, values) ? 0.0 : precision(type) * std::fabs(wanted);
      // sigmoid(x) - c cancels near its zero: the error is relative to the terms.
      if (kind == Pointwise::kLogistic) tolerance += precision(arithmetic) * std::fabs(upstream.get() * list.factor[k]);
      check(got == wanted || close(got, wanted, tolerance), "gradient of tensor %zu [%ld of %ld] is %g, not %g", k,
            static_cast<long>(i), static_cast<long>(list.shapes[k].numel), got, wanted);
    }
    gradient[k].check_guards("gradient");
    list.input[k].check_guards("input");
  }
}

void run(const char* name, const std::vector<Shape>& shapes, int64_t offset, Values values) {
  for (const Pointwise kind : kKinds) {
    set_case(describe(kKindNames[static_cast<int>(kind)], name, shapes, offset, values));
    List list(shapes, offset, values);
    const std::vector<unsigned char> once = run_forward(list, kind, values);
    set_order(Order::kReversed);
    check(run_forward(list, kind, values) == once, "partial sums depend on the order of threads and blocks");
    set_order(Order::kForward);
    run_backward(list, kind, values, Scalar(0.5, false), offset);
    set_order(Order::kReversed);
    run_backward(list, kind, values, Scalar(-4.0, true), 1);
    set_order(Order::kForward);
    if (values == Values::kSpecial) run_backward(list, kind, values, Scalar(NAN, true), offset);
  }
}

void run_finish_sum(int64_t count, double initial, Values values, bool is_float64) {
  set_case("finish_sum of " + std::to_string(count) + (is_float64 ? " to float64" : " to float32"));
  Random random(static_cast<uint64_t>(count));
  Buffer partial(DType::kFloat64, count);
  double wanted = initial;
  double magnitude = std::fabs(initial);
  for (int64_t i = 0; i < count; ++i) {
    partial.set(DType::kFloat64, i, draw(random, values));
    wanted += partial.get(DType::kFloat64, i);
    magnitude += std::fabs(partial.get(DType::kFloat64, i));
  }
  std::vector<unsigned char> results[2];
  for (const Order order : {Order::kForward, Order::kReversed}) {
    set_order(order);
    Scalar loss(12345.0, is_float64);
    const int error =
        cuda::finish_sum(static_cast<const double*>(partial.data()), count, initial, loss.device(), nullptr);
    check(error == 0, "finish_sum returns %d", error);
    double tolerance = values == Values::kEighths ? 0.0 : 1e-14 * magnitude;
    if (!is_float64) wanted = rounded(DType::kFloat32, wanted);
    if (!is_float64 && values == Values::kRandom) tolerance += 0x1p-23 * std::fabs(wanted);
    check(close(loss.get(), wanted, tolerance), "%.17g, not %.17g", loss.get(), wanted);
    loss.buffer().check_guards("loss");
    partial.check_guards("partial sums");
    results[static_cast<int>(order)] = loss.buffer().bytes();
  }
  set_order(Order::kForward);
  check(results[0] == results[1], "the sum depends on the order of threads");
}

}  // namespace

void test_pointwise() {
  for (const DType type : kTypes) {
    run("awkward sizes", of_types(awkward_sizes(), type, type), 0, Values::kEighths);
    run("awkward sizes", of_types(some_awkward_sizes(), type, type), 1, Values::kEighths);
    if (!uses_fewer_sizes()) {  // the same launches with other values
      run("awkward sizes", of_types({5, 129, 2049, kBlockChunk + 9}, type, type), 0, Values::kRandom);
      run("awkward sizes", of_types({5, 129, 2049}, type, type), 3, Values::kSpecial);
    }
    run("empty tensors", with_empty(type, type), 0, Values::kEighths);
    if (!uses_fewer_sizes() || type == kTypes[0]) {
      run("many tensors", more_than_one_launch(type, type), 0, Values::kEighths);
    }
  }
  std::vector<Shape> mixed;
  for (const Shape& shape : mixed_types()) mixed.push_back({shape.numel, {shape.type[0], shape.type[0]}});
  run("mixed types", mixed, 0, Values::kEighths);
}

void test_finish_sum() {
  for (const bool is_float64 : {false, true}) {
    for (const int64_t count : {0, 1, 31, 32, 33, 255, 256, 257, 511, 513, 1471, 4095, 4097, 8500}) {
      run_finish_sum(count, 0.0, Values::kEighths, is_float64);
      run_finish_sum(count, -1.5, Values::kRandom, is_float64);
      run_finish_sum(count, NAN, Values::kEighths, is_float64);
    }
    run_finish_sum(300, 0.0, Values::kSpecial, is_float64);
  }
}

}  // namespace harness
