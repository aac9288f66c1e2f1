// Vectors of one element: for processors without AVX2 and for other architectures.
#pragma once

#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
struct Vec {
  static constexpr int kLanes = 1;
  struct Sum {
    double part[4];
  };
  static Sum zero_sum() { return {}; }
  template <typename T>
  static C load(const T* x) {
    return C(widen(*x));
  }
  static C subtract(C a, C b) { return a - b; }
  static void add_absolute(Sum& sum, C x, int lane) { sum.part[lane & 3] += x < 0 ? -double(x) : double(x); }
  static void add_square(Sum& sum, C x, int lane) { sum.part[lane & 3] += double(x) * double(x); }
  static C add(C a, C b) { return a + b; }
  static C multiply(C a, C b) { return a * b; }
  static C broadcast(C x) { return x; }
  template <typename T>
  static void store(T* out, C x) {
    *out = narrow<T>(x);
  }
  using Mask = bool;
  static uint32_t bits(Mask m) { return m; }
  static Mask passes_relu(C x) { return !(x <= 0); }  // NaN passes, as in PyTorch
  static Mask exceeds(C x, C best) { return x > best || x != x; }
  static C select(Mask m, C x, C otherwise) { return m ? x : otherwise; }
  static uint32_t positive(C x) { return x > 0; }
  static uint32_t negative(C x) { return x < 0; }
  static double total(const Sum& sum) { return (sum.part[0] + sum.part[1]) + (sum.part[2] + sum.part[3]); }
};

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
