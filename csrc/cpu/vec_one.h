// Vectors of one element: the last elements of a row, and processors without AVX2.
#pragma once

#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

template <typename C>
struct One {
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
  static Mask above_zero(C x) { return x > 0; }
  static Mask exceeds(C x, C best) { return x > best || x != x; }
  static C select(Mask m, C x, C otherwise) { return m ? x : otherwise; }
  static uint32_t positive(C x) { return x > 0; }
  static uint32_t negative(C x) { return x < 0; }
  static void accumulate(double* sums, C x) { *sums += x; }
  static double total(const Sum& sum) { return (sum.part[0] + sum.part[1]) + (sum.part[2] + sum.part[3]); }
};

}  // namespace
}  // namespace pix2pixhd::cpu
