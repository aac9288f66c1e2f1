// l1_forward and l1_backward against the formula, and the signs that the forward packs for the backward.
#include <algorithm>
#include <cmath>

#include "tensors.h"

namespace harness {
namespace {

using namespace pix2pixhd;

bool computes_in_double(const Shape& shape) {
  return shape.type[0] == DType::kFloat64 || shape.type[1] == DType::kFloat64;
}

// Filled buffers of a list of tensors, with one factor per tensor.
struct Lists {
  std::vector<Shape> shapes;
  std::vector<Buffer> input, target;
  std::vector<double> factor;
  std::vector<int64_t> sign_begin;
  int64_t sign_words = 0;

  Lists(const std::vector<Shape>& list, int64_t offset, Values values) : shapes(list) {
    Random random(list.size() + static_cast<size_t>(values));
    for (const Shape& shape : shapes) {
      input.emplace_back(shape.type[0], shape.numel, offset);
      target.emplace_back(shape.type[1], shape.numel, offset);
      for (int64_t i = 0; i < shape.numel; ++i) {
        const double x = draw(random, values);
        input.back().set(shape.type[0], i, x);
        target.back().set(shape.type[1], i, random.below(8) == 0 ? x : draw(random, values));
      }
      factor.push_back(static_cast<double>(1 + random.below(7)) / 4.0 * (random.below(2) == 0 ? 1.0 : -1.0));
      sign_begin.push_back(sign_words);
      sign_words += pix2pixhd::sign_words(shape.numel);
    }
  }

  // In PyTorch's arithmetic: float, unless a side is double.
  double difference(size_t k, int64_t i) const {
    const double x = input[k].get(shapes[k].type[0], i);
    const double y = target[k].get(shapes[k].type[1], i);
    return computes_in_double(shapes[k]) ? x - y : static_cast<double>(static_cast<float>(x) - static_cast<float>(y));
  }
};

void check_partial(const Lists& lists, const Buffer& partial, Values values) {
  int64_t block = 0;
  for (const size_t k : planned_order(lists.shapes)) {
    for (int64_t begin = 0; begin < lists.shapes[k].numel; begin += kBlockChunk, ++block) {
      double sum = 0.0;
      for (int64_t i = begin; i < std::min(begin + kBlockChunk, lists.shapes[k].numel); ++i) {
        sum += std::fabs(lists.difference(k, i));
      }
      const double wanted = sum * lists.factor[k];
      const double relative = computes_in_double(lists.shapes[k]) ? 1e-13 : 1e-6;
      const double tolerance = values == Values::kEighths ? 0.0 : relative * std::fabs(wanted);
      const double got = partial.get(DType::kFloat64, block);
      check(close(got, wanted, tolerance), "partial sum %ld of tensor %zu is %.17g, not %.17g",
            static_cast<long>(block), k, got, wanted);
    }
  }
  check(block == partial.numel(), "%ld partial sums instead of %ld", static_cast<long>(partial.numel()),
        static_cast<long>(block));
}

// The number of set bits equals the number of nonzero differences in every tensor, so the padding is zero.
void check_bits(const Lists& lists, const Buffer& signs) {
  const std::vector<unsigned char> bytes = signs.bytes();
  for (size_t k = 0; k < lists.shapes.size(); ++k) {
    int64_t wanted = 0;
    for (int64_t i = 0; i < lists.shapes[k].numel; ++i) {
      const double difference = lists.difference(k, i);
      wanted += difference < 0 || difference > 0 ? 1 : 0;
    }
    int64_t got = 0;
    for (int64_t w = 0; w < 4 * sign_words(lists.shapes[k].numel); ++w) {
      got += __builtin_popcount(bytes[static_cast<size_t>(4 * lists.sign_begin[k] + w)]);
    }
    check(got == wanted, "tensor %zu has %ld sign bits instead of %ld", k, static_cast<long>(got),
          static_cast<long>(wanted));
  }
}

struct Result {
  std::vector<unsigned char> partial, signs;
};

Result run_forward(Lists& lists, Buffer* signs, Values values) {
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < lists.shapes.size(); ++k) {
    void* x = lists.input[k].data();
    void* y = lists.target[k].data();
    uint32_t* words = signs != nullptr ? static_cast<uint32_t*>(signs->data()) + lists.sign_begin[k] : nullptr;
    entries.push_back({{{x, y}, words, lists.shapes[k].numel, lists.factor[k], 0.0, is_aligned(x) && is_aligned(y)},
                       {lists.shapes[k].type[0], lists.shapes[k].type[1]}});
  }
  const cuda::Plan plan = cuda::make_plan(entries);
  Buffer partial(DType::kFloat64, plan.partials);
  for (const cuda::Launch& launch : plan.launches) {
    const int error = cuda::l1_forward(launch, static_cast<double*>(partial.data()), nullptr);
    check(error == 0, "l1_forward returns %d", error);
  }
  check_partial(lists, partial, values);
  partial.check_guards("partial sums");
  if (signs != nullptr) {
    check_bits(lists, *signs);
    signs->check_guards("signs");
  }
  for (size_t k = 0; k < lists.shapes.size(); ++k) {
    lists.input[k].check_guards("input");
    lists.target[k].check_guards("target");
  }
  return {partial.bytes(), signs != nullptr ? signs->bytes() : std::vector<unsigned char>{}};
}

// side 0: gradients of the inputs; side 1: of the targets, in their dtypes and with negated factors.
void run_backward(const Lists& lists, Buffer& signs, int side, Scalar upstream, int64_t offset) {
  std::vector<Buffer> gradient;
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < lists.shapes.size(); ++k) {
    const DType type = lists.shapes[k].type[side];
    gradient.emplace_back(type, lists.shapes[k].numel, offset);
    uint32_t* words = static_cast<uint32_t*>(signs.data()) + lists.sign_begin[k];
    const double factor = side == 0 ? lists.factor[k] : -lists.factor[k];
    void* data = gradient.back().data();
    entries.push_back({{{data, nullptr}, words, lists.shapes[k].numel, factor, 0.0, is_aligned(data)}, {type, type}});
  }
  for (const cuda::Launch& launch : cuda::make_plan(entries).launches) {
    const int error = cuda::l1_backward(launch, upstream.device(), nullptr);
    check(error == 0, "l1_backward returns %d", error);
  }
  for (size_t k = 0; k < lists.shapes.size(); ++k) {
    const DType type = lists.shapes[k].type[side];
    const double coefficient = upstream.get() * (side == 0 ? lists.factor[k] : -lists.factor[k]);
    for (int64_t i = 0; i < lists.shapes[k].numel; ++i) {
      const double difference = lists.difference(k, i);
      const double sign = difference > 0 ? 1.0 : difference < 0 ? -1.0 : 0.0;
      const double wanted = rounded(type, sign * coefficient);
      const double got = gradient[k].get(type, i);
      check(same(got, wanted), "gradient of %s %zu [%ld of %ld] is %g, not %g", side == 0 ? "input" : "target", k,
            static_cast<long>(i), static_cast<long>(lists.shapes[k].numel), got, wanted);
    }
    gradient[k].check_guards("gradient");
  }
}

void run(const char* list, const std::vector<Shape>& shapes, int64_t offset, Values values) {
  set_case(describe("l1", list, shapes, offset, values));
  Lists lists(shapes, offset, values);
  Buffer signs(sizeof(uint32_t), lists.sign_words);
  const Result once = run_forward(lists, &signs, values);
  set_order(Order::kReversed);
  Buffer other_signs(sizeof(uint32_t), lists.sign_words);
  const Result again = run_forward(lists, &other_signs, values);
  set_order(Order::kForward);
  check(once.partial == again.partial, "partial sums depend on the order of threads and blocks");
  check(once.signs == again.signs, "signs depend on the order of threads and blocks");
  check(run_forward(lists, nullptr, values).partial == once.partial, "the loss depends on whether signs are packed");

  run_backward(lists, signs, 0, Scalar(0.7, false), offset);
  set_order(Order::kReversed);
  run_backward(lists, signs, 1, Scalar(-0.3, true), offset);
  set_order(Order::kForward);
  if (values == Values::kSpecial) {
    run_backward(lists, signs, 0, Scalar(NAN, false), offset);
    run_backward(lists, signs, 1, Scalar(HUGE_VAL, true), offset);
  }
}

}  // namespace

void test_l1() {
  for (const DType a : kTypes) {
    for (const DType b : kTypes) {
      run("awkward sizes", of_types(awkward_sizes(), a, b), 0, Values::kEighths);
      run("awkward sizes", of_types(some_awkward_sizes(), a, b), 1, Values::kEighths);
      run("awkward sizes", of_types({5, 129, 2049}, a, b), 0, Values::kRandom);
      run("awkward sizes", of_types({5, 129, 2049}, a, b), 3, Values::kSpecial);
      run("empty tensors", with_empty(a, b), 0, Values::kSpecial);
    }
    if (!uses_fewer_sizes() || a == kTypes[0]) {
      run("many tensors", more_than_one_launch(a, a), 0, Values::kEighths);
    }
  }
  run("mixed types", mixed_types(), 0, Values::kEighths);
  run("mixed types", mixed_types(), 1, Values::kRandom);
}

}  // namespace harness
