// The elementwise parts of VGG for the perceptual loss, forward and backward, on one row of work. Included by
// kernels_impl.h: same rules.
//
// Kept for the backward are bits: which elements a ReLU let through (1 bit), the sign of the L1 term (2 bits, as
// multi_l1 keeps them), and for a pooled element which of the four it came from and whether ReLU let it through (3
// bits).
#pragma once

#include <cstdint>

#include "kernels.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

template <typename T>
using Compute = typename Wider<T, T>::type;

// Runs f(pointer, word index) on 32 elements at a time; the last ones through a padded copy of both tensors.
template <typename T, typename F>
void for_each_word(T* x, T* y, int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) f(x + i, y == nullptr ? nullptr : y + i, i / 32);
  if (i == n) return;
  T tail_x[32] = {};
  T tail_y[32] = {};
  for (int64_t lane = 0; i + lane < n; ++lane) {
    tail_x[lane] = x[i + lane];
    if (y != nullptr) tail_y[lane] = y[i + lane];
  }
  f(tail_x, y == nullptr ? nullptr : tail_y, i / 32);
  for (int64_t lane = 0; i + lane < n; ++lane) {
    x[i + lane] = tail_x[lane];
    if (y != nullptr) y[i + lane] = tail_y[lane];
  }
}

template <typename T>
uint32_t alive_bits(const T* x) {
  using V = Vec<Compute<T>>;
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; lane += V::kLanes) bits |= V::bits(V::alive(V::load(x + lane))) << lane;
  return bits;
}

template <typename T>
void relu_typed(T* x, int64_t n, uint32_t* mask) {
  for_each_word(x, static_cast<T*>(nullptr), n, [&](T* block, T*, int64_t word) {
    const uint32_t bits = alive_bits(block);
    keep(block, block, bits);
    if (mask != nullptr) mask[word] = bits;
  });
}

template <typename T>
double relu_l1_typed(T* input, T* target, int64_t n, uint32_t* signs, uint32_t* mask) {
  using V = Vec<Compute<T>>;
  typename V::Sum sum = V::zero_sum();
  for_each_word(input, target, n, [&](T* x, T* y, int64_t word) {
    const uint32_t alive_x = alive_bits(x);
    keep(x, x, alive_x);
    keep(y, y, alive_bits(y));
    uint32_t positive = 0;
    uint32_t negative = 0;
    for (int lane = 0; lane < 32; lane += V::kLanes) {
      const auto difference = V::subtract(V::load(x + lane), V::load(y + lane));
      V::add_absolute(sum, difference, lane);
      positive |= V::positive(difference) << lane;
      negative |= V::negative(difference) << lane;
    }
    if (mask != nullptr) {
      mask[word] = alive_x;
      signs[2 * word] = positive;
      signs[2 * word + 1] = negative;
    }
  });
  return V::total(sum);
}

template <typename T>
void relu_l1_backward_typed(T* grad, int64_t n, const uint32_t* mask, const uint32_t* signs, double coefficient) {
  using C = Compute<T>;
  using V = Vec<C>;
  const SignExpander<C, false> expand(static_cast<C>(coefficient), static_cast<C>(-coefficient), C(0));
  for_each_word(grad, static_cast<T*>(nullptr), n, [&](T* g, T*, int64_t word) {
    if (signs != nullptr) {
      alignas(64) C term[32];
      expand(term, signs[2 * word], signs[2 * word + 1]);
      for (int lane = 0; lane < 32; lane += V::kLanes) {
        V::store(g + lane, V::add(V::load(g + lane), V::load(term + lane)));
      }
    }
    keep(g, g, mask[word]);
  });
}

// One row of 2x2 windows, channels last: out [width, channels] from two rows of x [width or more, channels] pairs.
template <typename T>
void relu_pool_typed(const T* upper, const T* lower, T* out, int64_t width, int64_t channels, uint32_t* codes) {
  using V = Vec<Compute<T>>;
  for (int64_t column = 0; column < width; ++column) {
    const T* corner[4] = {upper + 2 * column * channels, upper + (2 * column + 1) * channels,
                          lower + 2 * column * channels, lower + (2 * column + 1) * channels};
    for (int64_t c = 0; c < channels; c += 32) {
      uint32_t low = 0;   // bit 0 of the position: right column
      uint32_t high = 0;  // bit 1: lower row
      uint32_t alive = 0;
      for (int lane = 0; lane < 32; lane += V::kLanes) {
        auto best = V::load(corner[0] + c + lane);
        uint32_t bit0 = 0;
        uint32_t bit1 = 0;
        for (int position = 1; position < 4; ++position) {
          const auto value = V::load(corner[position] + c + lane);
          const auto beats = V::beats(value, best);  // the first of equals stays, a NaN wins: as in PyTorch
          const uint32_t bits = V::bits(beats);
          best = V::select(beats, value, best);
          bit0 = position & 1 ? bit0 | bits : bit0 & ~bits;
          bit1 = position & 2 ? bit1 | bits : bit1 & ~bits;
        }
        V::store(out + column * channels + c + lane, best);
        low |= bit0 << lane;
        high |= bit1 << lane;
        alive |= V::bits(V::alive(best)) << lane;
      }
      T* result = out + column * channels + c;
      keep(result, result, alive);
      if (codes != nullptr) {
        uint32_t* word = codes + (column * channels + c) / 32 * 3;
        word[0] = low;
        word[1] = high;
        word[2] = alive;
      }
    }
  }
}

// The transpose: upper and lower [2 * width, channels] from grad [width, channels].
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

void relu(void* x, DType type, int64_t n, uint32_t* mask) {
  with_type(type, [&](auto t) { relu_typed(static_cast<decltype(t)*>(x), n, mask); });
}

double relu_l1(void* input, void* target, DType type, int64_t n, uint32_t* signs, uint32_t* mask) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return relu_l1_typed(static_cast<T*>(input), static_cast<T*>(target), n, signs, mask);
  });
}

void relu_l1_backward(void* grad, DType type, int64_t n, const uint32_t* mask, const uint32_t* signs,
                      double coefficient) {
  with_type(type,
            [&](auto t) { relu_l1_backward_typed(static_cast<decltype(t)*>(grad), n, mask, signs, coefficient); });
}

void relu_pool(const void* upper, const void* lower, void* out, DType type, int64_t width, int64_t channels,
               uint32_t* codes) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    relu_pool_typed(static_cast<const T*>(upper), static_cast<const T*>(lower), static_cast<T*>(out), width, channels,
                    codes);
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
