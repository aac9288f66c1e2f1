// 512-bit vectors: AVX-512 F, BW, DQ and VL. Comparisons return the bits of the sign planes directly.
#pragma once

#include <immintrin.h>

#include "vec_one.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  struct Sum {
    __m512d part[4];
  };
  static Sum zero_sum() {
    return {{_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()}};
  }
  static __m256i load_bits(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
  static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
  static __m512 load(const Half* x) { return _mm512_cvtph_ps(load_bits(x)); }
  static __m512 load(const BFloat16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits(x)), 16));
  }
  static __m512 subtract(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
  static void add_absolute(Sum& sum, __m512 x, int lane) {
    const __m512 absolute = _mm512_abs_ps(x);
    const int part = (lane >> 3) & 2;
    sum.part[part] = _mm512_add_pd(sum.part[part], _mm512_cvtps_pd(_mm512_castps512_ps256(absolute)));
    sum.part[part + 1] = _mm512_add_pd(sum.part[part + 1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(absolute, 1)));
  }
  static void add_square(Sum& sum, __m512 x, int lane) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    const int part = (lane >> 3) & 2;
    sum.part[part] = _mm512_add_pd(sum.part[part], _mm512_mul_pd(low, low));
    sum.part[part + 1] = _mm512_add_pd(sum.part[part + 1], _mm512_mul_pd(high, high));
  }
  static __m512 multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 broadcast(float x) { return _mm512_set1_ps(x); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static void store(float* out, __m512 x) { _mm512_storeu_ps(out, x); }
  static void store(Half* out, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(BFloat16* out, __m512 x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i value = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(value));
  }
  using Mask = __mmask16;
  static uint32_t bits(Mask m) { return m; }
  static Mask passes_relu(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ); }
  static Mask above_zero(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ); }
  static Mask exceeds(__m512 x, __m512 best) {
    return _mm512_cmp_ps_mask(x, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  }
  static __m512 select(Mask m, __m512 x, __m512 otherwise) { return _mm512_mask_mov_ps(otherwise, m, x); }
  static uint32_t positive(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ); }
  static uint32_t negative(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ); }
  static void accumulate(double* sums, __m512 x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
  }
  static double total(const Sum& sum) {
    return _mm512_reduce_add_pd(
        _mm512_add_pd(_mm512_add_pd(sum.part[0], sum.part[1]), _mm512_add_pd(sum.part[2], sum.part[3])));
  }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  using Sum = Vec<float>::Sum;
  static Sum zero_sum() { return Vec<float>::zero_sum(); }
  static __m128i load_bits(const void* x) { return _mm_loadu_si128(static_cast<const __m128i*>(x)); }
  static __m512d load(const double* x) { return _mm512_loadu_pd(x); }
  static __m512d load(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }
  static __m512d load(const Half* x) { return _mm512_cvtps_pd(_mm256_cvtph_ps(load_bits(x))); }
  static __m512d load(const BFloat16* x) {
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(x)), 16)));
  }
  static __m512d subtract(__m512d a, __m512d b) { return _mm512_sub_pd(a, b); }
  static void add_absolute(Sum& sum, __m512d x, int lane) {
    const int part = (lane >> 3) & 3;
    sum.part[part] = _mm512_add_pd(sum.part[part], _mm512_abs_pd(x));
  }
  static void add_square(Sum& sum, __m512d x, int lane) {
    const int part = (lane >> 3) & 3;
    sum.part[part] = _mm512_add_pd(sum.part[part], _mm512_mul_pd(x, x));
  }
  static __m512d multiply(__m512d a, __m512d b) { return _mm512_mul_pd(a, b); }
  static __m512d broadcast(double x) { return _mm512_set1_pd(x); }
  static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
  static void store(double* out, __m512d x) { _mm512_storeu_pd(out, x); }
  using Mask = __mmask8;
  static uint32_t bits(Mask m) { return m; }
  static Mask passes_relu(__m512d x) { return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_NLE_UQ); }
  static Mask above_zero(__m512d x) { return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ); }
  static Mask exceeds(__m512d x, __m512d best) {
    return _mm512_cmp_pd_mask(x, best, _CMP_GT_OQ) | _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q);
  }
  static __m512d select(Mask m, __m512d x, __m512d otherwise) { return _mm512_mask_mov_pd(otherwise, m, x); }
  static uint32_t positive(__m512d x) { return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ); }
  static uint32_t negative(__m512d x) { return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LT_OQ); }
  static void accumulate(double* sums, __m512d x) { _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), x)); }
  static double total(const Sum& sum) { return Vec<float>::total(sum); }
};

// out[i] = bit i ? in[i] : 0 for 32 elements; in-place operation is allowed.
template <typename T>
inline void keep(T* out, const T* in, uint32_t bits) {
  constexpr int kLanes = 64 / sizeof(T);
  for (int lane = 0; lane < 32; lane += kLanes) {
    if constexpr (sizeof(T) == 2) {
      _mm512_storeu_si512(out, _mm512_maskz_mov_epi16(bits, _mm512_loadu_si512(in)));
    } else if constexpr (sizeof(T) == 4) {
      const auto mask = static_cast<__mmask16>(bits >> lane);
      _mm512_storeu_si512(out + lane, _mm512_maskz_mov_epi32(mask, _mm512_loadu_si512(in + lane)));
    } else {
      const auto mask = static_cast<__mmask8>(bits >> lane);
      _mm512_storeu_si512(out + lane, _mm512_maskz_mov_epi64(mask, _mm512_loadu_si512(in + lane)));
    }
  }
}

template <bool kStream>
inline void put(void* out, __m512i value) {
  if constexpr (kStream) {
    _mm512_stream_si512(static_cast<__m512i*>(out), value);
  } else {
    _mm512_storeu_si512(out, value);
  }
}

inline void finish_stream() { _mm_sfence(); }

// Writes 32 gradients from 32 signs. kStream uses non-temporal stores, which do not first read the cache line that they
// overwrite; out must then be 64-byte aligned.
template <typename T, bool kStream>
struct SignExpander {
  static_assert(sizeof(T) == 2);
  __m512i plus, minus, zero;
  SignExpander(T p, T m, T z)
      : plus(_mm512_set1_epi16(static_cast<short>(p.bits))),
        minus(_mm512_set1_epi16(static_cast<short>(m.bits))),
        zero(_mm512_set1_epi16(static_cast<short>(z.bits))) {}
  void operator()(T* out, uint32_t positive, uint32_t negative) const {
    put<kStream>(out, _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(zero, positive, plus), negative, minus));
  }
};

template <bool kStream>
struct SignExpander<float, kStream> {
  __m512 plus, minus, zero;
  SignExpander(float p, float m, float z)
      : plus(_mm512_set1_ps(p)), minus(_mm512_set1_ps(m)), zero(_mm512_set1_ps(z)) {}
  void operator()(float* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 16) {
      const auto above = static_cast<__mmask16>(positive >> lane);
      const auto below = static_cast<__mmask16>(negative >> lane);
      const __m512 value = _mm512_mask_mov_ps(_mm512_mask_mov_ps(zero, above, plus), below, minus);
      put<kStream>(out + lane, _mm512_castps_si512(value));
    }
  }
};

template <bool kStream>
struct SignExpander<double, kStream> {
  __m512d plus, minus, zero;
  SignExpander(double p, double m, double z)
      : plus(_mm512_set1_pd(p)), minus(_mm512_set1_pd(m)), zero(_mm512_set1_pd(z)) {}
  void operator()(double* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; lane += 8) {
      const auto above = static_cast<__mmask8>(positive >> lane);
      const auto below = static_cast<__mmask8>(negative >> lane);
      const __m512d value = _mm512_mask_mov_pd(_mm512_mask_mov_pd(zero, above, plus), below, minus);
      put<kStream>(out + lane, _mm512_castpd_si512(value));
    }
  }
};

}  // namespace
}  // namespace pix2pixhd::cpu
