// For processors without AVX2 and for other architectures: vectors of one element.
#pragma once

#include "vec_one.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
using Vec = One<C>;

inline void finish_stream() {}

// out[i] = bit i ? in[i] : 0 for 32 elements; in-place operation is allowed.
template <typename T>
inline void keep(T* out, const T* in, uint32_t bits) {
  for (int lane = 0; lane < 32; ++lane) out[lane] = (bits >> lane) & 1u ? in[lane] : T{};
}

// Writes 32 gradients from 32 signs. kStream has no effect: there are no portable non-temporal stores.
template <typename T, bool kStream>
struct SignExpander {
  T value[4];  // indexed by the bits (negative, positive)
  SignExpander(T plus, T minus, T zero) : value{zero, plus, minus, zero} {}
  void operator()(T* out, uint32_t positive, uint32_t negative) const {
    for (int lane = 0; lane < 32; ++lane) {
      out[lane] = value[((positive >> lane) & 1u) | (((negative >> lane) & 1u) << 1)];
    }
  }
};

}  // namespace
}  // namespace pix2pixhd::cpu
