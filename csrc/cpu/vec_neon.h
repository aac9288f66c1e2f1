// 128-bit vectors: NEON, which every 64-bit Arm processor has. The sums have the order of vec_avx2.h, so both give the
// same bits.
#pragma once

#include <arm_neon.h>

#include "vec_one.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  struct Sum {
    float64x2_t part[8];
  };
  static Sum zero_sum() {
    Sum sum;
    for (int part = 0; part < 8; ++part) sum.part[part] = vdupq_n_f64(0.0);
    return sum;
  }
  static uint16x4_t load_bits(const void* x) { return vld1_u16(static_cast<const uint16_t*>(x)); }
  static float32x4_t load(const float* x) { return vld1q_f32(x); }
  static float32x4_t load(const Half* x) { return vcvt_f32_f16(vreinterpret_f16_u16(load_bits(x))); }
  static float32x4_t load(const BFloat16* x) { return vreinterpretq_f32_u32(vshll_n_u16(load_bits(x), 16)); }
  static float32x4_t subtract(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
  static void add_absolute(Sum& sum, float32x4_t x, int lane) {
    const float32x4_t absolute = vabsq_f32(x);
    const int part = (lane >> 1) & 6;
    sum.part[part] = vaddq_f64(sum.part[part], vcvt_f64_f32(vget_low_f32(absolute)));
    sum.part[part + 1] = vaddq_f64(sum.part[part + 1], vcvt_high_f64_f32(absolute));
  }
  static void add_square(Sum& sum, float32x4_t x, int lane) {
    const float64x2_t low = vcvt_f64_f32(vget_low_f32(x));
    const float64x2_t high = vcvt_high_f64_f32(x);
    const int part = (lane >> 1) & 6;
    sum.part[part] = vaddq_f64(sum.part[part], vmulq_f64(low, low));
    sum.part[part + 1] = vaddq_f64(sum.part[part + 1], vmulq_f64(high, high));
  }
  static float32x4_t multiply(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
  static float32x4_t broadcast(float x) { return vdupq_n_f32(x); }
  static float32x4_t add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
  static void store(float* out, float32x4_t x) { vst1q_f32(out, x); }
  static void store_bits(void* out, uint16x4_t bits) { vst1_u16(static_cast<uint16_t*>(out), bits); }
  static void store(Half* out, float32x4_t x) { store_bits(out, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void store(BFloat16* out, float32x4_t x) {
    const uint32x4_t u = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t value = vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7fc00000u));  // NaN differs from itself
    store_bits(out, vshrn_n_u32(value, 16));
  }
  using Mask = uint32x4_t;
  static uint32_t bits(Mask m) {
    constexpr uint32_t kBit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(kBit)));
  }
  static Mask passes_relu(float32x4_t x) { return vmvnq_u32(vclezq_f32(x)); }
  static Mask above_zero(float32x4_t x) { return vcgtzq_f32(x); }
  static Mask exceeds(float32x4_t x, float32x4_t best) {
    return vorrq_u32(vcgtq_f32(x, best), vmvnq_u32(vceqq_f32(x, x)));
  }
  static float32x4_t select(Mask m, float32x4_t x, float32x4_t otherwise) { return vbslq_f32(m, x, otherwise); }
  static uint32_t positive(float32x4_t x) { return bits(vcgtzq_f32(x)); }
  static uint32_t negative(float32x4_t x) { return bits(vcltzq_f32(x)); }
  static void accumulate(double* sums, float32x4_t x) {
    vst1q_f64(sums, vaddq_f64(vld1q_f64(sums), vcvt_f64_f32(vget_low_f32(x))));
    vst1q_f64(sums + 2, vaddq_f64(vld1q_f64(sums + 2), vcvt_high_f64_f32(x)));
  }
  static double total(const Sum& sum) {
    const float64x2_t* p = sum.part;
    const float64x2_t low = vaddq_f64(vaddq_f64(p[0], p[2]), vaddq_f64(p[4], p[6]));
    const float64x2_t high = vaddq_f64(vaddq_f64(p[1], p[3]), vaddq_f64(p[5], p[7]));
    return vaddvq_f64(vaddq_f64(low, high));
  }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  using Sum = Vec<float>::Sum;
  static Sum zero_sum() { return Vec<float>::zero_sum(); }
  static uint16x4_t load_bits(const void* x) {  // of two elements, twice
    uint32_t both;
    __builtin_memcpy(&both, x, sizeof(both));
    return vreinterpret_u16_u32(vdup_n_u32(both));
  }
  static float64x2_t load(const double* x) { return vld1q_f64(x); }
  static float64x2_t load(const float* x) { return vcvt_f64_f32(vld1_f32(x)); }
  static float64x2_t load(const Half* x) {
    return vcvt_f64_f32(vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u16(load_bits(x)))));
  }
  static float64x2_t load(const BFloat16* x) {
    return vcvt_f64_f32(vget_low_f32(vreinterpretq_f32_u32(vshll_n_u16(load_bits(x), 16))));
  }
  static float64x2_t subtract(float64x2_t a, float64x2_t b) { return vsubq_f64(a, b); }
  static void add_absolute(Sum& sum, float64x2_t x, int lane) {
    const int part = (lane >> 1) & 7;
    sum.part[part] = vaddq_f64(sum.part[part], vabsq_f64(x));
  }
  static void add_square(Sum& sum, float64x2_t x, int lane) {
    const int part = (lane >> 1) & 7;
    sum.part[part] = vaddq_f64(sum.part[part], vmulq_f64(x, x));
  }
  static float64x2_t multiply(float64x2_t a, float64x2_t b) { return vmulq_f64(a, b); }
  static float64x2_t broadcast(double x) { return vdupq_n_f64(x); }
  static float64x2_t add(float64x2_t a, float64x2_t b) { return vaddq_f64(a, b); }
  static void store(double* out, float64x2_t x) { vst1q_f64(out, x); }
  using Mask = uint64x2_t;
  static uint32_t bits(Mask m) {
    constexpr uint64_t kBit[2] = {1, 2};
    return static_cast<uint32_t>(vaddvq_u64(vandq_u64(m, vld1q_u64(kBit))));
  }
  static Mask complement(Mask m) { return vreinterpretq_u64_u32(vmvnq_u32(vreinterpretq_u32_u64(m))); }
  static Mask passes_relu(float64x2_t x) { return complement(vclezq_f64(x)); }
  static Mask above_zero(float64x2_t x) { return vcgtzq_f64(x); }
  static Mask exceeds(float64x2_t x, float64x2_t best) {
    return vorrq_u64(vcgtq_f64(x, best), complement(vceqq_f64(x, x)));
  }
  static float64x2_t select(Mask m, float64x2_t x, float64x2_t otherwise) { return vbslq_f64(m, x, otherwise); }
  static uint32_t positive(float64x2_t x) { return bits(vcgtzq_f64(x)); }
  static uint32_t negative(float64x2_t x) { return bits(vcltzq_f64(x)); }
  static void accumulate(double* sums, float64x2_t x) { vst1q_f64(sums, vaddq_f64(vld1q_f64(sums), x)); }
  static double total(const Sum& sum) { return Vec<float>::total(sum); }
};

// Expands bits to lanes: lane i is all ones if bit i is set, otherwise zero.
inline uint16x8_t lane_mask16(uint32_t bits) {
  constexpr uint16_t kBit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vtstq_u16(vdupq_n_u16(static_cast<uint16_t>(bits)), vld1q_u16(kBit));
}
inline uint32x4_t lane_mask32(uint32_t bits) {
  constexpr uint32_t kBit[4] = {1, 2, 4, 8};
  return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(kBit));
}
inline uint64x2_t lane_mask64(uint32_t bits) {
  constexpr uint64_t kBit[2] = {1, 2};
  return vtstq_u64(vdupq_n_u64(bits), vld1q_u64(kBit));
}

// out[i] = bit i ? in[i] : 0 for 32 elements; in-place operation is allowed.
template <typename T>
inline void keep(T* out, const T* in, uint32_t bits) {
  constexpr int kLanes = 16 / sizeof(T);
  for (int lane = 0; lane < 32; lane += kLanes) {
    uint8x16_t mask;
    if constexpr (sizeof(T) == 2) {
      mask = vreinterpretq_u8_u16(lane_mask16(bits >> lane));
    } else if constexpr (sizeof(T) == 4) {
      mask = vreinterpretq_u8_u32(lane_mask32(bits >> lane));
    } else {
      mask = vreinterpretq_u8_u64(lane_mask64(bits >> lane));
    }
    const uint8x16_t value = vld1q_u8(reinterpret_cast<const uint8_t*>(in + lane));
    vst1q_u8(reinterpret_cast<uint8_t*>(out + lane), vandq_u8(value, mask));
  }
}

inline void finish_stream() {}

// Writes 32 gradients from 32 signs. kStream has no effect: NEON has no intrinsic for non-temporal stores.
template <typename T, bool kStream>
struct SignExpander {
  static_assert(sizeof(T) == 2);
  uint16x8_t plus, minus, zero;
  SignExpander(T p, T m, T z) : plus(vdupq_n_u16(p.bits)), minus(vdupq_n_u16(m.bits)), zero(vdupq_n_u16(z.bits)) {}
  void operator()(T* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 8) {
      const uint16x8_t value = vbslq_u16(lane_mask16(positive >> lane), plus, zero);
      vst1q_u16(reinterpret_cast<uint16_t*>(out + lane), vbslq_u16(lane_mask16(negative >> lane), minus, value));
    }
  }
};

template <bool kStream>
struct SignExpander<float, kStream> {
  float32x4_t plus, minus, zero;
  SignExpander(float p, float m, float z) : plus(vdupq_n_f32(p)), minus(vdupq_n_f32(m)), zero(vdupq_n_f32(z)) {}
  void operator()(float* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 4) {
      const float32x4_t value = vbslq_f32(lane_mask32(positive >> lane), plus, zero);
      vst1q_f32(out + lane, vbslq_f32(lane_mask32(negative >> lane), minus, value));
    }
  }
};

template <bool kStream>
struct SignExpander<double, kStream> {
  float64x2_t plus, minus, zero;
  SignExpander(double p, double m, double z) : plus(vdupq_n_f64(p)), minus(vdupq_n_f64(m)), zero(vdupq_n_f64(z)) {}
  void operator()(double* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 2) {
      const float64x2_t value = vbslq_f64(lane_mask64(positive >> lane), plus, zero);
      vst1q_f64(out + lane, vbslq_f64(lane_mask64(negative >> lane), minus, value));
    }
  }
};

}  // namespace
}  // namespace pix2pixhd::cpu
