// Scalar conversions of the four element types: widening is exact, narrowing rounds to nearest, ties to even.
#pragma once

#include <cstdint>

#include "../types.h"

namespace pix2pixhd::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

union FloatBits {
  uint32_t u;
  float f;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return FloatBits{static_cast<uint32_t>(x.bits) << 16}.f; }
inline float widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatBits{sign | 0x7f800000u | (magnitude & 0x3ffu) << 13}.f;  // Inf, NaN
  // Scaling by 2^112 changes the exponent bias from 15 to 127 and normalises subnormal numbers.
  FloatBits value{magnitude << 13};
  value.f *= 0x1p112f;
  value.u |= sign;
  return value.f;
}

template <typename T>
T narrow(double x);
template <>
inline float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
inline double narrow<double>(double x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(double x) {
  const FloatBits value{.f = static_cast<float>(x)};
  if (value.f != value.f) return {0x7fc0};
  return {static_cast<uint16_t>((value.u + 0x7fffu + ((value.u >> 16) & 1u)) >> 16)};  // nearest, ties to even
}
template <>
inline Half narrow<Half>(double x) {
  const FloatBits value{.f = static_cast<float>(x)};
  const uint16_t sign = static_cast<uint16_t>((value.u >> 16) & 0x8000u);
  const uint32_t magnitude = value.u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or more: Inf
  if (magnitude < 0x38800000u) {  // subnormal in half: adding 0.5 rounds to a multiple of 2^-24
    const FloatBits rounded{.f = FloatBits{magnitude}.f + 0.5f};
    return {static_cast<uint16_t>(sign | (rounded.u - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

// A coefficient as two factors, see kSmallestCoefficient.
template <typename C>
struct Coefficient {
  C factor;
  C scale = C(1);

  explicit Coefficient(double value) : factor(static_cast<C>(value)) {
    if constexpr (sizeof(C) == sizeof(float)) {
      const double size = value < 0 ? -value : value;
      if (size < kSmallestCoefficient) scale = static_cast<C>(1.0 / kCoefficientScale);
      if (size > kLargestCoefficient) scale = static_cast<C>(kCoefficientScale);
      factor = static_cast<C>(value / double(scale));
    }
  }
};

}  // namespace
}  // namespace pix2pixhd::cpu
