// CPU kernels on one chunk of one tensor: raw pointers and sizes in, no framework types.
#pragma once

#include <cstdint>

#include "../types.h"

namespace pix2pixhd::cpu {

// A chunk is the unit of work and of summation. Its size is fixed, so that partial sums, and with them every bit of the
// result, do not depend on the number of threads. A multiple of kSignTile; 128 KiB of float32 keeps the fixed cost of a
// chunk under 1 % and lets a discriminator's smallest feature map still be shared between threads.
constexpr int64_t kChunk = int64_t{1} << 15;

// Part of a map of VGG, [pixels, channels]: size elements, the first of them at `channel` of its pixel. All three are
// multiples of 32.
struct MapChunk {
  int64_t size;
  int64_t channels;
  int64_t channel;
  const void* bias;    // [channels] in the map's type, or null
  const void* weight;  // [pixels from the first element's on], float, or double for double; or null
};

struct Kernels {
  const char* name;

  // Returns the sum over i of |input[i] - target[i]|, accumulated in double.
  // signs: [2 * ceil(n / 32)] words, (positive, negative) planes of 32 elements each; null when nobody wants a
  // gradient.
  double (*l1_forward)(const void* input, DType input_type, const void* target, DType target_type, int64_t n,
                       uint32_t* signs);

  // grad[i] = coefficient * sign[i]; a zero sign gives 0 * coefficient, so a NaN or Inf upstream shows as in PyTorch.
  // stream: write around the caches, for gradients that do not fit them.
  void (*l1_backward)(void* grad, DType type, int64_t n, const uint32_t* signs, double coefficient, bool stream);

  // Returns the sum over i of f(input[i]; constant), accumulated in double.
  double (*pointwise_forward)(const void* input, DType type, int64_t n, Pointwise kind, double constant);

  // grad[i] = coefficient * f'(input[i]; constant).
  void (*pointwise_backward)(void* grad, const void* input, DType type, int64_t n, Pointwise kind, double constant,
                             double coefficient);

  // The elementwise parts of VGG, see perceptual_impl.h.
  // x = max(0, x + bias); mask: a word per 32 elements of what was let through, or null.
  void (*relu)(void* x, DType type, const MapChunk& chunk, uint32_t* mask);

  // The same of both in place, of target only unless it is activated, then the sum of weight * distance.
  // kept: signs as in l1_forward, or the differences in the map's type; mask: that of input; both may be null.
  double (*relu_distance)(void* input, void* target, bool target_is_activated, DType type, const MapChunk& chunk,
                          Distance distance, void* kept, uint32_t* mask);

  // grad = mask * grad, in place; n a multiple of 32.
  void (*relu_backward)(void* grad, DType type, int64_t n, const uint32_t* mask);

  // grad = mask * (grad + coefficient * weight * derivative of the distance), in place.
  void (*relu_distance_backward)(void* grad, DType type, const MapChunk& chunk, Distance distance, const uint32_t* mask,
                                 const void* kept, double coefficient);

  // One row of max-pooling 2x2 of max(0, x + bias), channels last, channels a multiple of 32: out [width, channels]
  // from the rows upper and lower [2 * width, channels]. bias: [channels] or null. codes: 3 words per 32 elements of
  // out (column, row, let through), or null.
  void (*relu_pool)(const void* upper, const void* lower, void* out, DType type, int64_t width, int64_t channels,
                    const void* bias, uint32_t* codes);

  // Its gradient: upper and lower from grad.
  void (*relu_pool_backward)(const void* grad, void* upper, void* lower, DType type, int64_t width, int64_t channels,
                             const uint32_t* codes);
};

extern const Kernels kBaseline;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The best table that this processor runs, or the one named by PIX2PIXHD_CPU_ISA (baseline, avx2, avx512) when the
// processor has it. Decided once, at the first call.
const Kernels& kernels();

// Comma-separated names of the tables that this processor can run, the best last.
const char* supported_instruction_sets();

// Uses the named table from now on ("auto" for the best one). False when this processor cannot run it or it is unknown.
bool select_kernels(const char* name);

}  // namespace pix2pixhd::cpu
