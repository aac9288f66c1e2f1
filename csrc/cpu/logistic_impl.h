// The logistic loss: binary cross entropy of a logit x and a label t, as in binary_cross_entropy_with_logits.
//
//   f(x; t) = (1 - t) * x - min(x, 0) + log1p(exp(-|x|)),   f'(x; t) = sigmoid(x) - t
//
// Included by kernels_impl.h. In float32, exp and log1p are branch-free polynomials, evaluated in plain loops over
// blocks of elements. The compiler vectorises these loops for every instruction set, and all instruction sets give
// bitwise equal results. In float64 the functions of the C library are called.
#pragma once

#include <math.h>

#include <cstdint>

#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

constexpr int kLogisticBlock = 256;  // elements: 1 KiB of float32, which stays in the L1 cache
constexpr int kLogisticSums = 16;    // independent sums, so that the compiler can vectorise; added in a fixed order
static_assert(kLogisticBlock % kLogisticSums == 0 && kLogisticBlock % 32 == 0, "a block consists of whole vectors");

// exp(-a) for a >= 0, computed as exp(r) * 2^n with |r| <= ln(2) / 2. The error is below 1 ulp, also for subnormal
// results. NaN gives NaN.
inline float exp_of_negative(float a) {
  constexpr float kRound = 0x1.8p23f;       // x + kRound - kRound rounds x to an integer, the low bits of x + kRound
  constexpr float kLn2High = 0x1.62e4p-1f;  // 14 bits, so that n * kLn2High is exact
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  const float x = a > 104.0f ? -104.0f : -a;  // exp(-104) rounds to 0
  const float shifted = x * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 0x1.6a23f0p-10f;
  p = p * r + 0x1.123a0ap-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = (p * (r * r) + r) + 1.0f;
  // 2^n as two factors, because it is subnormal for n < -126.
  const int32_t exponent = static_cast<int32_t>(FloatBits{.f = shifted}.u - 0x4b400000u);
  const int32_t half = exponent >> 1;
  const FloatBits first{static_cast<uint32_t>(half + 127) << 23};
  const FloatBits second{static_cast<uint32_t>(exponent - half + 127) << 23};
  return p * first.f * second.f;
}
inline double exp_of_negative(double a) { return ::exp(-a); }

// log(1 + e) for 0 <= e <= 1, computed as r - r^2 / 2 + r^3 * p(r) with r in [-1/4, 1/2]; for e > 1/2 as
// log(2) + log(1 + (e - 1) / 2). The error is below 1 ulp. NaN gives NaN.
inline float log1p_of_fraction(float e) {
  const bool upper = e > 0.5f;
  const float reduced = 0.5f * e - 0.5f;  // exact for e > 1/2
  const float r = upper ? reduced : e;
  float p = 0x1.349dd2p-5f;
  p = p * r - 0x1.75662ep-4f;
  p = p * r + 0x1.df4254p-4f;
  p = p * r - 0x1.04aa38p-3f;
  p = p * r + 0x1.24609cp-3f;
  p = p * r - 0x1.5519b8p-3f;
  p = p * r + 0x1.999788p-3f;
  p = p * r - 0x1.00006ep-2f;
  p = p * r + 0x1.55555ap-2f;
  const float square = r * r;
  const float tail = square * (r * p - 0.5f);
  return (upper ? 0x1.62e430p-1f : 0.0f) + (r + (upper ? tail - 0x1.05c610p-29f : tail));
}
inline double log1p_of_fraction(double e) { return ::log1p(e); }

// Convert a block to and from the type of the arithmetic. Only the last block of a chunk is shorter than
// kLogisticBlock.
template <typename C, typename T>
inline void widen_block(C* out, const T* in, int count) {
  int i = 0;
  for (; i + Vec<C>::kLanes <= count; i += Vec<C>::kLanes) Vec<C>::store(out + i, Vec<C>::load(in + i));
  for (; i < count; ++i) out[i] = widen(in[i]);
}
template <typename C, typename T>
inline void narrow_block(T* out, const C* in, int count) {
  int i = 0;
  for (; i + Vec<C>::kLanes <= count; i += Vec<C>::kLanes) Vec<C>::store(out + i, Vec<C>::load(in + i));
  for (; i < count; ++i) out[i] = narrow<T>(in[i]);
}

template <typename T>
double logistic_forward_typed(const T* input, int64_t n, double constant) {
  using C = typename Wider<T, T>::type;
  const double rest = 1.0 - double(widen(narrow<T>(constant)));  // label rounded to the tensor's dtype
  double sums[kLogisticSums] = {};
  C x[kLogisticBlock];
  C logarithm[kLogisticBlock];
  for (int64_t begin = 0; begin < n; begin += kLogisticBlock) {
    const int count = n - begin < kLogisticBlock ? static_cast<int>(n - begin) : kLogisticBlock;
    widen_block(x, input + begin, count);
    for (int i = 0; i < count; ++i) logarithm[i] = log1p_of_fraction(exp_of_negative(x[i] < 0 ? -x[i] : x[i]));
    // In double, where the difference of the first two terms is accurate.
    auto value = [&](int i) { return (rest * double(x[i]) - double(x[i] < 0 ? x[i] : C(0))) + double(logarithm[i]); };
    int i = 0;
    for (; i + kLogisticSums <= count; i += kLogisticSums) {
      for (int lane = 0; lane < kLogisticSums; ++lane) sums[lane] += value(i + lane);
    }
    for (int lane = 0; i + lane < count; ++lane) sums[lane] += value(i + lane);
  }
  for (int width = kLogisticSums / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

template <typename T>
void logistic_backward_typed(T* grad, const T* input, int64_t n, double constant, double coefficient) {
  using C = typename Wider<T, T>::type;
  const C label = widen(narrow<T>(constant));
  const C rest = static_cast<C>(1.0 - double(label));
  const Coefficient<C> two_factors(coefficient);
  const C factor = two_factors.factor;
  const C scale = two_factors.scale;
  C block[kLogisticBlock];
  for (int64_t begin = 0; begin < n; begin += kLogisticBlock) {
    const int count = n - begin < kLogisticBlock ? static_cast<int>(n - begin) : kLogisticBlock;
    widen_block(block, input + begin, count);
    for (int i = 0; i < count; ++i) {
      const C x = block[i];
      const C e = exp_of_negative(x < 0 ? -x : x);
      const C tail = e / (C(1) + e);  // sigmoid(-|x|)
      // For x >= 0, sigmoid(x) - 1 is computed as -sigmoid(-x), which avoids cancellation at the labels 0 and 1.
      block[i] = (x < 0 ? tail - label : rest - tail) * factor * scale;
    }
    narrow_block(grad + begin, block, count);
  }
}

}  // namespace
}  // namespace pix2pixhd::cpu
