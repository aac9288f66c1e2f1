// CPU kernels, each on one chunk of one tensor. They take raw pointers and sizes, no framework types.
#pragma once

#include <cstdint>

#include "../types.h"

namespace pix2pixhd::cpu {

// Elements of a chunk, the unit of work and of summation; a multiple of kSignTile. The size is fixed, so that the
// partial sums, and therefore the result, are bitwise independent of the number of threads. With 128 KiB of float32 the
// fixed cost per chunk stays below 1 %, and a discriminator's smallest feature map still has chunks for several
// threads.
constexpr int64_t kChunk = int64_t{1} << 15;

// A chunk of a feature map [pixels, channels]: `size` elements, of which the first has channel index `channel`. size,
// channels and channel are multiples of 32.
struct MapChunk {
  int64_t size;
  int64_t channels;
  int64_t channel;
  const void* bias;    // [channels] in the map's dtype, or null
  const void* weight;  // [pixels], from the first element's pixel on; double for a double map, otherwise float; or null
};

// Whole pixels of a feature map [pixels, channels] for the tap of LPIPS. channels is a multiple of 32.
struct LpipsPixels {
  int64_t count;
  int64_t channels;
  const void* bias;    // [channels] in the map's dtype, or null
  const void* linear;  // [channels], the weights of the channels; double for a double map, otherwise float
  const void* weight;  // [count], as in MapChunk, or null
};

// What norm_act computes on rows of one image, see norm_act_impl.h.
struct NormRows {
  PaddedImage image;
  Activation activation;
  double slope;   // of leaky ReLU
  int64_t first;  // rows [first, last): of the padded result in the forward, of the image in the backward
  int64_t last;
  bool source_is_output;    // backward only: whether the source is the activated result, or x
  bool through_statistics;  // backward only: whether the statistics are functions of x
  const void* parameters;   // [kNormParameters, channels], float64 for a float64 image, otherwise float32
};

// Rows of NormRows::parameters. The forward uses the first three.
enum NormParameter : int {
  kOffset,    // mean; if the source is the output: bias
  kScale,     // rstd * weight
  kShift,     // bias
  kGradient,  // the gradient of x is kGradient * (g + (kCentred * (z - kOffset) + kConstant)), where g is the
  kCentred,  // gradient after the activation's derivative, and z is x, or the output before the activation. The product
  kConstant,  // of kGradient and kCentred, which has the size of rstd^2, may underflow
  kNormParameters
};

struct Kernels {
  const char* name;

  // Returns the sum over i of |input[i] - target[i]|, accumulated in double.
  // signs: [2 * ceil(n / 32)] words, alternating (positive, negative), 32 elements per word; null when no gradient is
  // required.
  double (*l1_forward)(const void* input, DType input_type, const void* target, DType target_type, int64_t n,
                       uint32_t* signs);

  // grad[i] = coefficient * sign[i]. A zero sign gives 0 * coefficient: a NaN or Inf upstream gradient propagates, as
  // in PyTorch. stream: use non-temporal stores, for gradients that do not fit the caches.
  void (*l1_backward)(void* grad, DType type, int64_t n, const uint32_t* signs, double coefficient, bool stream);

  // Returns the sum over i of f(input[i]; constant), accumulated in double.
  double (*pointwise_forward)(const void* input, DType type, int64_t n, Pointwise kind, double constant);

  // grad[i] = coefficient * f'(input[i]; constant).
  void (*pointwise_backward)(void* grad, const void* input, DType type, int64_t n, Pointwise kind, double constant,
                             double coefficient);

  // The elementwise stages of the perceptual loss, see perceptual_impl.h.

  // x = max(0, x + bias) in place. mask: one word per 32 elements, a bit is set where ReLU passes the element; or null.
  void (*relu)(void* x, DType type, const MapChunk& chunk, uint32_t* mask);

  // Applies bias and ReLU to input, and to target unless it is activated already, in place. Returns the sum of
  // weight * distance. kept: signs as in l1_forward, or differences in the map's dtype; mask: of input; both may be
  // null.
  double (*relu_distance)(void* input, void* target, bool target_is_activated, DType type, const MapChunk& chunk,
                          Distance distance, void* kept, uint32_t* mask);

  // grad = mask * grad in place; n is a multiple of 32.
  void (*relu_backward)(void* grad, DType type, int64_t n, const uint32_t* mask);

  // grad = mask * (grad + coefficient * weight * derivative of the distance) in place.
  void (*relu_distance_backward)(void* grad, DType type, const MapChunk& chunk, Distance distance, const uint32_t* mask,
                                 const void* kept, double coefficient);

  // The tap of LPIPS, see lpips_impl.h. Applies bias and ReLU as relu_distance does, and returns the sum of
  // weight * distance over the pixels. kept: kept_scale times half the derivative of each pixel's distance in input, in
  // the map's dtype, Inf of float16 replaced by the largest finite number; null if no gradient is required. The
  // backward is that of the squared distance.
  double (*relu_lpips)(void* input, void* target, bool target_is_activated, DType type, const LpipsPixels& pixels,
                       double kept_scale, void* kept, uint32_t* mask);

  // One row of the 2x2 max-pooling of max(0, x + bias): out [width, channels] from upper and lower [2 * width,
  // channels], two rows of a channels-last map. channels is a multiple of 32. bias: [channels] or null. codes: 3 words
  // per 32 elements of out (column of the maximum, row of the maximum, passed by ReLU), or null.
  void (*relu_pool)(const void* upper, const void* lower, void* out, DType type, int64_t width, int64_t channels,
                    const void* bias, uint32_t* codes);

  // The backward of relu_pool: writes the gradients upper and lower [2 * width, channels] from grad [width, channels].
  void (*relu_pool_backward)(const void* grad, void* upper, void* lower, DType type, int64_t width, int64_t channels,
                             const uint32_t* codes);

  // Stages of norm_act, see norm_act_impl.h.

  // sums[c] = sum of channel c of x [pixels, channels], sums[channels + c] = sum of its squared deviations from the
  // chunk's mean.
  void (*norm_statistics)(const void* x, DType type, int64_t pixels, int64_t channels, double* sums);

  // Rows of y = pad(act((x - mean) * scale + shift) + residual). x, residual (or null) and y: the first row of the
  // image.
  void (*norm_act)(const void* x, const void* residual, void* y, DType type, const NormRows& rows);

  // sums[c] = sum of g over the rows of channel c, sums[channels + c] = sum of g * (z - kOffset).
  void (*norm_act_sums)(const void* grad, const void* source, DType type, const NormRows& rows, double* sums);

  // Rows of the gradients of x and of the residual; either may be null.
  void (*norm_act_backward)(const void* grad, const void* source, void* grad_x, void* grad_residual, DType type,
                            const NormRows& rows);
};

extern const Kernels kBaseline;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon;
#endif

// The table of the best instruction set that this processor supports, or of PIX2PIXHD_CPU_ISA (baseline, avx2, avx512,
// neon) if it supports that one. Selected once, at the first call.
const Kernels& kernels();

// Comma-separated names of the supported instruction sets, the best one last.
const char* supported_instruction_sets();

// Selects the named instruction set ("auto" for the best one). Returns false if it is unknown or not supported by this
// processor.
bool select_kernels(const char* name);

}  // namespace pix2pixhd::cpu
