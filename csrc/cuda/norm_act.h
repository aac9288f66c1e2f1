// Launchers of the norm_act kernels. As in kernels.h, they take plain types and a stream, and return a CUDA error code.
// Nothing is launched for an empty tensor.
//
// A map is an image of a channels-last tensor, or one channel of an image of a contiguous tensor. C is the type of the
// arithmetic: double for a double map, otherwise float.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pix2pixhd::cuda {

// Pixels of a chunk of a map, the unit of summation. Fixed, so that sums do not depend on the GPU.
constexpr int64_t kPlaneChunk = 16384;  // of a map of one channel
constexpr int64_t kDeepChunk = 256;     // of a map of several channels; a block sums 8 vectors of channels of a chunk

// Elements of a padded row of a map, which the kernels count in 32 bits. Launchers refuse longer rows.
constexpr int64_t kLongestRow = 0x7fffffff;

constexpr int64_t norm_chunks(int64_t pixels, bool channels_last) {
  return channels_last ? (pixels + kDeepChunk - 1) / kDeepChunk : (pixels + kPlaneChunk - 1) / kPlaneChunk;
}

struct NormTensor {
  int64_t batch;
  int64_t channels;
  PaddedImage map;  // of all channels if channels_last, otherwise of one
  bool channels_last;
  DType type;

  int64_t maps() const { return channels_last ? batch : batch * channels; }
  int64_t chunks() const { return norm_chunks(map.pixels(), channels_last); }
  int64_t padded_chunks() const { return norm_chunks(map.padded_height() * map.padded_width(), channels_last); }
  // Elements of the partial sums: [feature maps, chunks, 2, channels of a map]. Those of the backward are sums over the
  // padded positions.
  int64_t partials() const { return 2 * batch * channels * padded_chunks(); }
};

// A vector of affine parameters, or none.
struct NormParameterVector {
  const void* data;
  DType type;
};

// Statistics and affine parameters: mean and rstd [statistics, channels] in C, or null. statistics is batch or 1.
struct NormInputs {
  const void* mean;
  const void* rstd;
  NormParameterVector weight;
  NormParameterVector bias;
  int64_t statistics;
};

// Rows of the parameters of every map, [feature maps, kNormParameters, channels of a map] in C: those of the CPU, of
// which kScale is also the factor of the gradient.
enum NormParameter : int { kOffset, kScale, kShift, kCentred, kConstant, kNormParameters };

struct NormActivation {
  Activation kind;
  double slope;
};

// What the backward's source is, and what the statistics are functions of; see cpu/kernels.h.
struct NormSource {
  const void* data;
  bool is_output;
  bool through_statistics;
};

// Mean, rstd and variance [rows, channels] in C; rows is batch or 1. partial: scratch of partials() elements.
int norm_statistics(const void* x, const NormTensor& tensor, int64_t rows, double eps, double* partial, void* mean,
                    void* rstd, void* var, Stream stream);

// Fills parameters. sums: [2, batch, channels], from norm_act_sums; null in the forward, or if the backward does not
// differentiate through the statistics.
int norm_parameters(const NormTensor& tensor, const NormInputs& inputs, const NormSource& source, const double* sums,
                    void* parameters, Stream stream);

// y = pad(act((x - mean) * scale + shift) + residual). residual may be null.
int norm_act(const void* x, const void* residual, void* y, const NormTensor& tensor, const NormActivation& activation,
             const void* parameters, Stream stream);

// sums: [2, batch, channels], of g and of g * (z - kOffset). partial: scratch of partials() elements.
int norm_act_sums(const void* grad, const NormSource& source, const NormTensor& tensor,
                  const NormActivation& activation, const void* parameters, double* partial, double* sums,
                  Stream stream);

// The gradients of weight and bias [channels] in their dtypes; data is null for those that are not needed.
int norm_affine(const NormTensor& tensor, const NormInputs& inputs, const NormSource& source, const double* sums,
                const NormParameterVector& grad_weight, const NormParameterVector& grad_bias, Stream stream);

// The gradients of x and the residual; either may be null.
int norm_act_backward(const void* grad, const NormSource& source, void* grad_x, void* grad_residual,
                      const NormTensor& tensor, const NormActivation& activation, const void* parameters,
                      Stream stream);

}  // namespace pix2pixhd::cuda
