// The kernels, written once for a vector type `Vec` and compiled once per instruction set. A translation unit includes
// the vector types of its instruction set (vec_*.h) first, then this file. Everything is in an unnamed namespace, and
// no inline function of the standard library is called: the linker keeps only one copy of a function that several
// translation units define, possibly one with instructions that an older processor does not support.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "logistic_impl.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

// Hardware prefetchers stop at the end of a 4 KiB page. The data is read once, so the prefetch is non-temporal.
template <typename T>
inline void prefetch(const T* x) {
  const char* ahead = reinterpret_cast<const char*>(x) + 4096;
  for (int64_t line = 0; line < static_cast<int64_t>(32 * sizeof(T)); line += 64)
    __builtin_prefetch(ahead + line, 0, 0);
}

template <typename A, typename B, bool kSigns>
double l1_forward_typed(const A* input, const B* target, int64_t n, uint32_t* signs) {
  using C = typename Wider<A, B>::type;
  using V = Vec<C>;
  typename V::Sum sum = V::zero_sum();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    uint32_t positive = 0;
    uint32_t negative = 0;
    prefetch(input + i);
    prefetch(target + i);
    for (int lane = 0; lane < 32; lane += V::kLanes) {
      const auto difference = V::subtract(V::load(input + i + lane), V::load(target + i + lane));
      V::add_absolute(sum, difference, lane);
      if constexpr (kSigns) {
        positive |= V::positive(difference) << lane;
        negative |= V::negative(difference) << lane;
      }
    }
    if constexpr (kSigns) {
      signs[i / 16] = positive;
      signs[i / 16 + 1] = negative;
    }
  }
  double total = V::total(sum);
  if (i < n) {
    uint32_t positive = 0;
    uint32_t negative = 0;
    for (int64_t lane = 0; i + lane < n; ++lane) {
      const C difference = C(widen(input[i + lane])) - C(widen(target[i + lane]));
      total += difference < 0 ? -double(difference) : double(difference);
      positive |= uint32_t(difference > 0) << lane;
      negative |= uint32_t(difference < 0) << lane;
    }
    if constexpr (kSigns) {
      signs[i / 16] = positive;
      signs[i / 16 + 1] = negative;
    }
  }
  return total;
}

template <typename T, bool kStream>
void l1_backward_typed(T* grad, int64_t n, const uint32_t* signs, double coefficient) {
  const T plus = narrow<T>(coefficient);
  const T minus = narrow<T>(-coefficient);
  const T zero = narrow<T>(0.0 * coefficient);
  const SignExpander<T, kStream> expand(plus, minus, zero);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) expand(grad + i, signs[i / 16], signs[i / 16 + 1]);
  for (int64_t lane = 0; i + lane < n; ++lane) {
    const bool positive = (signs[i / 16] >> lane) & 1u;
    const bool negative = (signs[i / 16 + 1] >> lane) & 1u;
    grad[i + lane] = positive ? plus : negative ? minus : zero;
  }
  if constexpr (kStream) finish_stream();
}

template <Pointwise kKind, typename T>
double pointwise_forward_typed(const T* input, int64_t n, double constant) {
  using C = typename Wider<T, T>::type;
  const C c = widen(narrow<T>(constant));  // the label rounded to the tensor's dtype, as torch.full_like does
  constexpr int kSums = 16;  // independent sums, so that the compiler can vectorise; added in a fixed order
  double sums[kSums] = {};
  auto value = [c](T x) -> double {
    if constexpr (kKind == Pointwise::kSquaredError) {
      const double difference = C(widen(x)) - c;
      return difference * difference;
    } else if constexpr (kKind == Pointwise::kHinge) {
      const C margin = C(1) - c * C(widen(x));
      return margin <= 0 ? 0.0 : double(margin);  // NaN propagates
    } else {
      return double(c) * double(widen(x));
    }
  };
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int lane = 0; lane < kSums; ++lane) sums[lane] += value(input[i + lane]);
  }
  for (int lane = 0; i + lane < n; ++lane) sums[lane] += value(input[i + lane]);
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

template <Pointwise kKind, typename T>
void pointwise_backward_typed(T* grad, const T* input, int64_t n, double constant, double coefficient) {
  using C = typename Wider<T, T>::type;
  const C c = widen(narrow<T>(constant));  // the label rounded to the tensor's dtype, as torch.full_like does
  const Coefficient<C> two_factors(kKind == Pointwise::kSquaredError ? 2.0 * coefficient : coefficient);
  const C factor = two_factors.factor;
  const C scale = two_factors.scale;
  for (int64_t i = 0; i < n; ++i) {
    const C x = widen(input[i]);
    if constexpr (kKind == Pointwise::kSquaredError) {
      grad[i] = narrow<T>(factor * (x - c) * scale);
    } else if constexpr (kKind == Pointwise::kHinge) {
      grad[i] = narrow<T>(C(1) - c * x <= 0 ? C(0) : -c * factor * scale);  // NaN passes the gradient, as F.relu does
    } else {
      static_assert(kKind == Pointwise::kLinear);
      grad[i] = narrow<T>(c * factor * scale);
    }
  }
}

// Dispatch from run-time dtypes to the templates above.

template <typename F>
auto with_type(DType type, F&& f) {
  switch (type) {
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

double l1_forward(const void* input, DType input_type, const void* target, DType target_type, int64_t n,
                  uint32_t* signs) {
  return with_type(input_type, [&](auto a) {
    return with_type(target_type, [&](auto b) {
      const auto* x = static_cast<const decltype(a)*>(input);
      const auto* y = static_cast<const decltype(b)*>(target);
      return signs != nullptr ? l1_forward_typed<decltype(a), decltype(b), true>(x, y, n, signs)
                              : l1_forward_typed<decltype(a), decltype(b), false>(x, y, n, signs);
    });
  });
}

void l1_backward(void* grad, DType type, int64_t n, const uint32_t* signs, double coefficient, bool stream) {
  stream = stream && reinterpret_cast<uintptr_t>(grad) % 64 == 0;
  with_type(type, [&](auto t) {
    auto* out = static_cast<decltype(t)*>(grad);
    return stream ? l1_backward_typed<decltype(t), true>(out, n, signs, coefficient)
                  : l1_backward_typed<decltype(t), false>(out, n, signs, coefficient);
  });
}

template <Pointwise kKind>
double pointwise_forward_kind(const void* input, DType type, int64_t n, double constant) {
  return with_type(type, [&](auto t) {
    const auto* x = static_cast<const decltype(t)*>(input);
    if constexpr (kKind == Pointwise::kLogistic) {
      return logistic_forward_typed(x, n, constant);
    } else {
      return pointwise_forward_typed<kKind>(x, n, constant);
    }
  });
}

template <Pointwise kKind>
void pointwise_backward_kind(void* grad, const void* input, DType type, int64_t n, double constant,
                             double coefficient) {
  with_type(type, [&](auto t) {
    auto* out = static_cast<decltype(t)*>(grad);
    const auto* x = static_cast<const decltype(t)*>(input);
    if constexpr (kKind == Pointwise::kLogistic) {
      logistic_backward_typed(out, x, n, constant, coefficient);
    } else {
      pointwise_backward_typed<kKind>(out, x, n, constant, coefficient);
    }
  });
}

double pointwise_forward(const void* input, DType type, int64_t n, Pointwise kind, double constant) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return pointwise_forward_kind<Pointwise::kSquaredError>(input, type, n, constant);
    case Pointwise::kHinge:
      return pointwise_forward_kind<Pointwise::kHinge>(input, type, n, constant);
    case Pointwise::kLogistic:
      return pointwise_forward_kind<Pointwise::kLogistic>(input, type, n, constant);
    case Pointwise::kLinear:
      break;
  }
  return pointwise_forward_kind<Pointwise::kLinear>(input, type, n, constant);
}

void pointwise_backward(void* grad, const void* input, DType type, int64_t n, Pointwise kind, double constant,
                        double coefficient) {
  switch (kind) {
    case Pointwise::kSquaredError:
      return pointwise_backward_kind<Pointwise::kSquaredError>(grad, input, type, n, constant, coefficient);
    case Pointwise::kHinge:
      return pointwise_backward_kind<Pointwise::kHinge>(grad, input, type, n, constant, coefficient);
    case Pointwise::kLogistic:
      return pointwise_backward_kind<Pointwise::kLogistic>(grad, input, type, n, constant, coefficient);
    case Pointwise::kLinear:
      break;
  }
  return pointwise_backward_kind<Pointwise::kLinear>(grad, input, type, n, constant, coefficient);
}

}  // namespace
}  // namespace pix2pixhd::cpu

// These use the definitions above.
#include "norm_act_backward_impl.h"
#include "norm_act_impl.h"
#include "perceptual_impl.h"
// This uses the definitions of perceptual_impl.h.
#include "lpips_impl.h"

namespace pix2pixhd::cpu {
namespace {

// All kernels of the file that includes this one, in the order of `Kernels`.
constexpr Kernels kernel_table(const char* instruction_set) {
  return {
      instruction_set,        l1_forward, l1_backward,   pointwise_forward,
      pointwise_backward,     relu,       relu_distance, relu_backward,
      relu_distance_backward, relu_lpips, relu_pool,     relu_pool_backward,
      norm_statistics,        norm_act,   norm_act_sums, norm_act_backward,
  };
}

}  // namespace
}  // namespace pix2pixhd::cpu
