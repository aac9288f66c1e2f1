// Launchers of the CUDA kernels. They take plain types and a stream, and return a CUDA error code (0 is success).
#pragma once

#include <cstdint>

#include "launch_plan.h"

namespace pix2pixhd::cuda {

using Stream = void*;  // cudaStream_t

// A float32 or float64 scalar in device memory.
struct DeviceScalar {
  void* data;
  bool is_float64;
};

// partial[first_partial + block] = factor * sum over the block's chunk of |data[0] - data[1]|. Packs the signs of
// tensors with `signs`.
int l1_forward(const Launch& launch, double* partial, Stream stream);

// data[0][i] = upstream * factor * sign[i].
int l1_backward(const Launch& launch, DeviceScalar upstream, Stream stream);

// partial[first_partial + block] = factor * sum over the block's chunk of f(data[0]; constant).
int pointwise_forward(const Launch& launch, Pointwise kind, double* partial, Stream stream);

// data[1][i] = upstream * factor * f'(data[0][i]; constant).
int pointwise_backward(const Launch& launch, Pointwise kind, DeviceScalar upstream, Stream stream);

// loss[r] = initial + partial[r, 0] + ... + partial[r, count - 1] in a fixed order. partial: [rows, count].
int finish_sum(const double* partial, int64_t count, double initial, DeviceScalar loss, Stream stream, int rows = 1);

const char* error_text(int error);

}  // namespace pix2pixhd::cuda
