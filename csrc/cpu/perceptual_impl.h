// The elementwise stages of the perceptual loss, forward and backward, on one chunk or one row. Included by
// kernels_impl.h, whose rules apply.
//
// Only bits are saved for backward: whether ReLU passes an element (1 bit), the sign of an L1 term (2 bits, as in
// multi_l1), and for a pooled element the position of the maximum and whether ReLU passes it (3 bits). The squared
// error is the exception: it needs the differences.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

template <typename T>
using Compute = typename Wider<T, T>::type;

// Calls f(element, channel) for every word of 32 elements of the chunk.
template <typename F>
void for_each_word(const MapChunk& chunk, F&& f) {
  int64_t channel = chunk.channel;
  for (int64_t i = 0; i < chunk.size; i += 32) {
    f(i, channel);
    channel += 32;
    if (channel == chunk.channels) channel = 0;
  }
}

template <typename T>
const T* bias_at(const void* bias, int64_t channel) {
  return bias == nullptr ? nullptr : static_cast<const T*>(bias) + channel;
}

// x + bias, rounded to the map's dtype as in PyTorch.
template <typename T>
void add_bias(T* out, const T* x, const T* bias) {
  using V = Vec<Compute<T>>;
  for (int lane = 0; lane < 32; lane += V::kLanes) {
    V::store(out + lane, V::add(V::load(x + lane), V::load(bias + lane)));
  }
}

template <typename T>
uint32_t relu_bits(const T* x) {
  using V = Vec<Compute<T>>;
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; lane += V::kLanes) bits |= V::bits(V::passes_relu(V::load(x + lane))) << lane;
  return bits;
}

// Adds the bias, if any, and applies ReLU to 32 elements in place. Returns the bits of the elements that ReLU passes.
template <typename T>
uint32_t relu_word(T* x, const T* bias) {
  if (bias != nullptr) add_bias(x, x, bias);
  const uint32_t bits = relu_bits(x);
  keep(x, x, bits);
  return bits;
}

template <typename T>
void relu_typed(T* x, const MapChunk& chunk, uint32_t* mask) {
  for_each_word(chunk, [&](int64_t i, int64_t channel) {
    const uint32_t bits = relu_word(x + i, bias_at<T>(chunk.bias, channel));
    if (mask != nullptr) mask[i / 32] = bits;
  });
}

template <Distance kDistance, typename T>
double relu_distance_typed(T* input, T* target, bool target_is_activated, const MapChunk& chunk, void* kept,
                           uint32_t* mask) {
  using V = Vec<Compute<T>>;
  const auto* weight = static_cast<const Compute<T>*>(chunk.weight);
  typename V::Sum sum = V::zero_sum();
  double total = 0.0;
  for_each_word(chunk, [&](int64_t i, int64_t channel) {
    T* x = input + i;
    T* y = target + i;
    const T* bias = bias_at<T>(chunk.bias, channel);
    const uint32_t passed = relu_word(x, bias);
    if (!target_is_activated) relu_word(y, bias);
    uint32_t positive = 0;
    uint32_t negative = 0;
    for (int lane = 0; lane < 32; lane += V::kLanes) {
      const auto difference = V::subtract(V::load(x + lane), V::load(y + lane));
      if constexpr (kDistance == Distance::kAbsolute) {
        V::add_absolute(sum, difference, lane);
        positive |= V::positive(difference) << lane;
        negative |= V::negative(difference) << lane;
      } else {
        V::add_square(sum, difference, lane);
        if (kept != nullptr) V::store(static_cast<T*>(kept) + i + lane, difference);
      }
    }
    if (mask != nullptr) mask[i / 32] = passed;
    if constexpr (kDistance == Distance::kAbsolute) {
      if (kept != nullptr) {
        static_cast<uint32_t*>(kept)[i / 16] = positive;
        static_cast<uint32_t*>(kept)[i / 16 + 1] = negative;
      }
    }
    if (weight != nullptr && (channel + 32 == chunk.channels || i + 32 == chunk.size)) {
      total += static_cast<double>(*weight++) * V::total(sum);
      sum = V::zero_sum();
    }
  });
  return weight != nullptr ? total : V::total(sum);
}

template <typename T>
void relu_backward_typed(T* grad, int64_t n, const uint32_t* mask) {
  for (int64_t i = 0; i < n; i += 32) keep(grad + i, grad + i, mask[i / 32]);
}

// Calls f(element, coefficient * weight of the pixel) for every word of 32 elements of the chunk.
template <typename C, typename F>
void for_each_weighted_word(const MapChunk& chunk, C coefficient, F&& f) {
  const auto* weight = static_cast<const C*>(chunk.weight);
  for_each_word(chunk, [&](int64_t i, int64_t channel) {
    f(i, weight != nullptr ? coefficient * *weight : coefficient);
    if (weight != nullptr && channel + 32 == chunk.channels) ++weight;
  });
}

template <typename T>
void relu_l1_backward_typed(T* grad, const MapChunk& chunk, const uint32_t* mask, const uint32_t* signs,
                            double coefficient) {
  using C = Compute<T>;
  using V = Vec<C>;
  for_each_weighted_word(chunk, static_cast<C>(coefficient), [&](int64_t i, C factor) {
    const SignExpander<C, false> expand(factor, -factor, C(0) * factor);  // 0 * NaN and 0 * Inf are NaN, as in PyTorch
    T* g = grad + i;
    alignas(64) C term[32];
    expand(term, signs[i / 16], signs[i / 16 + 1]);
    for (int lane = 0; lane < 32; lane += V::kLanes) {
      V::store(g + lane, V::add(V::load(g + lane), V::load(term + lane)));
    }
    keep(g, g, mask[i / 32]);
  });
}

template <typename T>
void relu_mse_backward_typed(T* grad, const MapChunk& chunk, const uint32_t* mask, const T* difference,
                             double coefficient) {
  using C = Compute<T>;
  using V = Vec<C>;
  for_each_weighted_word(chunk, static_cast<C>(2.0 * coefficient), [&](int64_t i, C factor) {
    T* g = grad + i;
    const auto factors = V::broadcast(factor);
    for (int lane = 0; lane < 32; lane += V::kLanes) {
      V::store(g + lane, V::add(V::load(g + lane), V::multiply(factors, V::load(difference + i + lane))));
    }
    keep(g, g, mask[i / 32]);
  });
}

// One row of 2x2 windows: out [width, channels] from upper and lower [at least 2 * width, channels].
template <typename T>
void relu_pool_typed(const T* upper, const T* lower, T* out, int64_t width, int64_t channels, const T* bias,
                     uint32_t* codes) {
  using V = Vec<Compute<T>>;
  T biased[4][32];
  for (int64_t column = 0; column < width; ++column) {
    const T* corner[4] = {upper + 2 * column * channels, upper + (2 * column + 1) * channels,
                          lower + 2 * column * channels, lower + (2 * column + 1) * channels};
    for (int64_t c = 0; c < channels; c += 32) {
      const T* window[4] = {corner[0] + c, corner[1] + c, corner[2] + c, corner[3] + c};
      if (bias != nullptr) {
        for (int k = 0; k < 4; ++k) {
          add_bias(biased[k], window[k], bias + c);
          window[k] = biased[k];
        }
      }
      uint32_t low = 0;   // bit 0 of the maximum's position: right column
      uint32_t high = 0;  // bit 1: lower row
      uint32_t passed = 0;
      for (int lane = 0; lane < 32; lane += V::kLanes) {
        auto best = V::load(window[0] + lane);
        uint32_t bit0 = 0;
        uint32_t bit1 = 0;
        for (int position = 1; position < 4; ++position) {
          const auto value = V::load(window[position] + lane);
          const auto exceeds = V::exceeds(value, best);  // ties keep the first, NaN is the maximum: as in PyTorch
          const uint32_t bits = V::bits(exceeds);
          best = V::select(exceeds, value, best);
          bit0 = position & 1 ? bit0 | bits : bit0 & ~bits;
          bit1 = position & 2 ? bit1 | bits : bit1 & ~bits;
        }
        V::store(out + column * channels + c + lane, best);
        low |= bit0 << lane;
        high |= bit1 << lane;
        passed |= V::bits(V::passes_relu(best)) << lane;
      }
      T* result = out + column * channels + c;
      keep(result, result, passed);
      if (codes != nullptr) {
        uint32_t* word = codes + (column * channels + c) / 32 * 3;
        word[0] = low;
        word[1] = high;
        word[2] = passed;
      }
    }
  }
}

// The gradients upper and lower [2 * width, channels] from grad [width, channels].
template <typename T>
void relu_pool_backward_typed(const T* grad, T* upper, T* lower, int64_t width, int64_t channels,
                              const uint32_t* codes) {
  for (int64_t column = 0; column < width; ++column) {
    for (int64_t c = 0; c < channels; c += 32) {
      const uint32_t* word = codes + (column * channels + c) / 32 * 3;
      const T* g = grad + column * channels + c;
      const uint32_t left = word[2] & ~word[0];
      const uint32_t right = word[2] & word[0];
      const int64_t at = 2 * column * channels + c;
      keep(upper + at, g, left & ~word[1]);
      keep(upper + at + channels, g, right & ~word[1]);
      keep(lower + at, g, left & word[1]);
      keep(lower + at + channels, g, right & word[1]);
    }
  }
}

void relu(void* x, DType type, const MapChunk& chunk, uint32_t* mask) {
  with_type(type, [&](auto t) { relu_typed(static_cast<decltype(t)*>(x), chunk, mask); });
}

double relu_distance(void* input, void* target, bool target_is_activated, DType type, const MapChunk& chunk,
                     Distance distance, void* kept, uint32_t* mask) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto run = distance == Distance::kAbsolute ? relu_distance_typed<Distance::kAbsolute, T>
                                                     : relu_distance_typed<Distance::kSquared, T>;
    return run(static_cast<T*>(input), static_cast<T*>(target), target_is_activated, chunk, kept, mask);
  });
}

void relu_backward(void* grad, DType type, int64_t n, const uint32_t* mask) {
  with_type(type, [&](auto t) { relu_backward_typed(static_cast<decltype(t)*>(grad), n, mask); });
}

void relu_distance_backward(void* grad, DType type, const MapChunk& chunk, Distance distance, const uint32_t* mask,
                            const void* kept, double coefficient) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    T* g = static_cast<T*>(grad);
    if (distance == Distance::kAbsolute) {
      relu_l1_backward_typed(g, chunk, mask, static_cast<const uint32_t*>(kept), coefficient);
    } else {
      relu_mse_backward_typed(g, chunk, mask, static_cast<const T*>(kept), coefficient);
    }
  });
}

void relu_pool(const void* upper, const void* lower, void* out, DType type, int64_t width, int64_t channels,
               const void* bias, uint32_t* codes) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    relu_pool_typed(static_cast<const T*>(upper), static_cast<const T*>(lower), static_cast<T*>(out), width, channels,
                    static_cast<const T*>(bias), codes);
  });
}

void relu_pool_backward(const void* grad, void* upper, void* lower, DType type, int64_t width, int64_t channels,
                        const uint32_t* codes) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    relu_pool_backward_typed(static_cast<const T*>(grad), static_cast<T*>(upper), static_cast<T*>(lower), width,
                             channels, codes);
  });
}

}  // namespace
}  // namespace pix2pixhd::cpu
