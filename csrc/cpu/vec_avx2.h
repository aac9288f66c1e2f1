// 256-bit vectors: AVX2 with F16C.
#pragma once

#include <immintrin.h>

#include "vec_one.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  struct Sum {
    __m256d part[4];
  };
  static Sum zero_sum() {
    return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
  }
  static __m128i load_bits(const void* x) { return _mm_loadu_si128(static_cast<const __m128i*>(x)); }
  static __m256 load(const float* x) { return _mm256_loadu_ps(x); }
  static __m256 load(const Half* x) { return _mm256_cvtph_ps(load_bits(x)); }
  static __m256 load(const BFloat16* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(x)), 16));
  }
  static __m256 subtract(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
  static void add_absolute(Sum& sum, __m256 x, int lane) {
    const __m256 absolute = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const int part = (lane >> 2) & 2;
    sum.part[part] = _mm256_add_pd(sum.part[part], _mm256_cvtps_pd(_mm256_castps256_ps128(absolute)));
    sum.part[part + 1] = _mm256_add_pd(sum.part[part + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(absolute, 1)));
  }
  static void add_square(Sum& sum, __m256 x, int lane) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    const int part = (lane >> 2) & 2;
    sum.part[part] = _mm256_add_pd(sum.part[part], _mm256_mul_pd(low, low));
    sum.part[part + 1] = _mm256_add_pd(sum.part[part + 1], _mm256_mul_pd(high, high));
  }
  static __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 broadcast(float x) { return _mm256_set1_ps(x); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static void store(float* out, __m256 x) { _mm256_storeu_ps(out, x); }
  static void store(Half* out, __m256 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(BFloat16* out, __m256 x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256i value = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(nan));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(value, value), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
  }
  using Mask = __m256;
  static uint32_t bits(Mask m) { return _mm256_movemask_ps(m); }
  static Mask passes_relu(__m256 x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ); }
  static Mask above_zero(__m256 x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ); }
  static Mask exceeds(__m256 x, __m256 best) {
    return _mm256_or_ps(_mm256_cmp_ps(x, best, _CMP_GT_OQ), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  static __m256 select(Mask m, __m256 x, __m256 otherwise) { return _mm256_blendv_ps(otherwise, x, m); }
  static uint32_t positive(__m256 x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ)); }
  static uint32_t negative(__m256 x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ)); }
  static void accumulate(double* sums, __m256 x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
    _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
  }
  static double total(const Sum& sum) {
    const __m256d four =
        _mm256_add_pd(_mm256_add_pd(sum.part[0], sum.part[1]), _mm256_add_pd(sum.part[2], sum.part[3]));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  using Sum = Vec<float>::Sum;
  static Sum zero_sum() { return Vec<float>::zero_sum(); }
  static __m128i load_bits(const void* x) { return _mm_loadl_epi64(static_cast<const __m128i*>(x)); }
  static __m256d load(const double* x) { return _mm256_loadu_pd(x); }
  static __m256d load(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
  static __m256d load(const Half* x) { return _mm256_cvtps_pd(_mm_cvtph_ps(load_bits(x))); }
  static __m256d load(const BFloat16* x) {
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(load_bits(x)), 16)));
  }
  static __m256d subtract(__m256d a, __m256d b) { return _mm256_sub_pd(a, b); }
  static void add_absolute(Sum& sum, __m256d x, int lane) {
    const int part = (lane >> 2) & 3;
    sum.part[part] = _mm256_add_pd(sum.part[part], _mm256_andnot_pd(_mm256_set1_pd(-0.0), x));
  }
  static void add_square(Sum& sum, __m256d x, int lane) {
    const int part = (lane >> 2) & 3;
    sum.part[part] = _mm256_add_pd(sum.part[part], _mm256_mul_pd(x, x));
  }
  static __m256d multiply(__m256d a, __m256d b) { return _mm256_mul_pd(a, b); }
  static __m256d broadcast(double x) { return _mm256_set1_pd(x); }
  static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  static void store(double* out, __m256d x) { _mm256_storeu_pd(out, x); }
  using Mask = __m256d;
  static uint32_t bits(Mask m) { return _mm256_movemask_pd(m); }
  static Mask passes_relu(__m256d x) { return _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_NLE_UQ); }
  static Mask above_zero(__m256d x) { return _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ); }
  static Mask exceeds(__m256d x, __m256d best) {
    return _mm256_or_pd(_mm256_cmp_pd(x, best, _CMP_GT_OQ), _mm256_cmp_pd(x, x, _CMP_UNORD_Q));
  }
  static __m256d select(Mask m, __m256d x, __m256d otherwise) { return _mm256_blendv_pd(otherwise, x, m); }
  static uint32_t positive(__m256d x) { return _mm256_movemask_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ)); }
  static uint32_t negative(__m256d x) { return _mm256_movemask_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ)); }
  static void accumulate(double* sums, __m256d x) { _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), x)); }
  static double total(const Sum& sum) { return Vec<float>::total(sum); }
};

// Expands bits to lanes: lane i is all ones if bit i is set, otherwise zero.
inline __m256i lane_mask32(uint32_t bits) {
  const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), own), own);
}
inline __m256i lane_mask64(uint32_t bits) {
  const __m256i own = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(bits)), own), own);
}
inline __m256i lane_mask16(uint32_t bits) {
  const __m256i own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                                        static_cast<short>(0x8000));
  return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<short>(bits)), own), own);
}

// out[i] = bit i ? in[i] : 0 for 32 elements; in-place operation is allowed.
template <typename T>
inline void keep(T* out, const T* in, uint32_t bits) {
  constexpr int kLanes = 32 / sizeof(T);
  for (int lane = 0; lane < 32; lane += kLanes) {
    __m256i mask;
    if constexpr (sizeof(T) == 2) {
      mask = lane_mask16(bits >> lane);
    } else if constexpr (sizeof(T) == 4) {
      mask = lane_mask32(bits >> lane);
    } else {
      mask = lane_mask64(bits >> lane);
    }
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + lane));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + lane), _mm256_and_si256(value, mask));
  }
}

template <bool kStream>
inline void put(void* out, __m256i value) {
  if constexpr (kStream) {
    _mm256_stream_si256(static_cast<__m256i*>(out), value);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(out), value);
  }
}

inline void finish_stream() { _mm_sfence(); }

// Writes 32 gradients from 32 signs. kStream uses non-temporal stores, which do not first read the cache line that they
// overwrite; out must then be 32-byte aligned.
template <typename T, bool kStream>
struct SignExpander {
  static_assert(sizeof(T) == 2);
  __m256i plus, minus, zero;
  SignExpander(T p, T m, T z)
      : plus(_mm256_set1_epi16(static_cast<short>(p.bits))),
        minus(_mm256_set1_epi16(static_cast<short>(m.bits))),
        zero(_mm256_set1_epi16(static_cast<short>(z.bits))) {}
  void operator()(T* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 16) {
      const __m256i value = _mm256_blendv_epi8(_mm256_blendv_epi8(zero, plus, lane_mask16(positive >> lane)), minus,
                                               lane_mask16(negative >> lane));
      put<kStream>(out + lane, value);
    }
  }
};

template <bool kStream>
struct SignExpander<float, kStream> {
  __m256 plus, minus, zero;
  SignExpander(float p, float m, float z)
      : plus(_mm256_set1_ps(p)), minus(_mm256_set1_ps(m)), zero(_mm256_set1_ps(z)) {}
  void operator()(float* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 8) {
      const __m256 above = _mm256_castsi256_ps(lane_mask32(positive >> lane));
      const __m256 below = _mm256_castsi256_ps(lane_mask32(negative >> lane));
      const __m256 value = _mm256_blendv_ps(_mm256_blendv_ps(zero, plus, above), minus, below);
      put<kStream>(out + lane, _mm256_castps_si256(value));
    }
  }
};

template <bool kStream>
struct SignExpander<double, kStream> {
  __m256d plus, minus, zero;
  SignExpander(double p, double m, double z)
      : plus(_mm256_set1_pd(p)), minus(_mm256_set1_pd(m)), zero(_mm256_set1_pd(z)) {}
  void operator()(double* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 4) {
      const __m256d above = _mm256_castsi256_pd(lane_mask64(positive >> lane));
      const __m256d below = _mm256_castsi256_pd(lane_mask64(negative >> lane));
      const __m256d value = _mm256_blendv_pd(_mm256_blendv_pd(zero, plus, above), minus, below);
      put<kStream>(out + lane, _mm256_castpd_si256(value));
    }
  }
};

}  // namespace
}  // namespace pix2pixhd::cpu
