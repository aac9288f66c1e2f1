// The tap of LPIPS (arXiv 1801.03924) on pixels of two channels-last feature maps. Included by kernels_impl.h, whose
// rules apply.
//
// With u = x / (|x| + eps) and v = y / (|y| + eps), where |x| is the norm over the channels of a pixel, its distance is
// the sum over the channels of linear * (u - v)^2. A pixel's channels stay in the cache while they are read three
// times: for the norms, for the distance, and for the gradient.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

// The sum of the lanes in a fixed order.
inline double lane_sum(decltype(Vec<double>::broadcast(0.0)) x) {
  double lanes[Vec<double>::kLanes];
  Vec<double>::store(lanes, x);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// The norm of n channels.
template <typename T>
double pixel_norm(const T* x, int64_t n) {
  using V = Vec<double>;
  auto sum = V::broadcast(0.0);
  for (int64_t c = 0; c < n; c += V::kLanes) {
    const auto value = V::load(x + c);
    sum = V::add(sum, V::multiply(value, value));
  }
  return std::sqrt(lane_sum(sum));
}

// Replaces Inf by the largest finite number in 32 elements of float16: one pixel of tiny features must not make the
// whole gradient infinite.
inline void saturate(Half* x) {
  for (int lane = 0; lane < 32; ++lane) x[lane].bits -= (x[lane].bits & 0x7fffu) == 0x7c00u ? 1 : 0;
}
template <typename T>
void saturate(T*) {}

template <typename T>
double relu_lpips_typed(T* input, T* target, bool target_is_activated, const LpipsPixels& pixels, double kept_scale,
                        T* kept, uint32_t* mask) {
  using C = Compute<T>;
  using V = Vec<C>;
  using D = Vec<double>;
  const int64_t n = pixels.channels;
  const auto* linear = static_cast<const C*>(pixels.linear);
  const auto* weight = static_cast<const C*>(pixels.weight);
  double total = 0.0;
  for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
    T* x = input + pixel * n;
    T* y = target + pixel * n;
    for (int64_t c = 0; c < n; c += 32) {
      const T* bias = bias_at<T>(pixels.bias, c);
      const uint32_t passed = relu_word(x + c, bias);
      if (!target_is_activated) relu_word(y + c, bias);
      if (mask != nullptr) mask[(pixel * n + c) / 32] = passed;
    }
    const double norm = pixel_norm(x, n);
    const double scale_x = 1.0 / (norm + kLpipsEps);
    const double scale_y = 1.0 / (pixel_norm(y, n) + kLpipsEps);
    auto distance = D::broadcast(0.0);
    auto along = D::broadcast(0.0);  // the sum of linear * (u - v) * u
    for (int64_t c = 0; c < n; c += D::kLanes) {
      const auto u = D::multiply(D::load(x + c), D::broadcast(scale_x));
      const auto difference = D::subtract(u, D::multiply(D::load(y + c), D::broadcast(scale_y)));
      const auto weighted = D::multiply(D::load(linear + c), difference);
      distance = D::add(distance, D::multiply(weighted, difference));
      along = D::add(along, D::multiply(weighted, u));
    }
    total += (weight != nullptr ? static_cast<double>(weight[pixel]) : 1.0) * lane_sum(distance);
    if (kept == nullptr) continue;
    // Half the derivative in x: (linear * (u - v) - x / |x| * along) / (|x| + eps). The second term is negligible for
    // tiny norms, and zero, not NaN, for a norm of zero.
    const double radial = norm > kLpipsTiny ? lane_sum(along) / norm * scale_x * kept_scale : 0.0;
    const auto own = V::broadcast(static_cast<C>(scale_x));
    const auto other = V::broadcast(static_cast<C>(scale_y));
    const auto outer = V::broadcast(static_cast<C>(scale_x * kept_scale));
    const auto inner = V::broadcast(static_cast<C>(radial));
    T* out = kept + pixel * n;
    for (int64_t c = 0; c < n; c += 32) {
      for (int64_t k = c; k < c + 32; k += V::kLanes) {
        const auto value = V::load(x + k);
        const auto difference = V::subtract(V::multiply(value, own), V::multiply(V::load(y + k), other));
        const auto direct = V::multiply(outer, V::multiply(V::load(linear + k), difference));
        V::store(out + k, V::subtract(direct, V::multiply(inner, value)));
      }
      saturate(out + c);
    }
  }
  return total;
}

double relu_lpips(void* input, void* target, bool target_is_activated, DType type, const LpipsPixels& pixels,
                  double kept_scale, void* kept, uint32_t* mask) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return relu_lpips_typed(static_cast<T*>(input), static_cast<T*>(target), target_is_activated, pixels, kept_scale,
                            static_cast<T*>(kept), mask);
  });
}

}  // namespace
}  // namespace pix2pixhd::cpu
