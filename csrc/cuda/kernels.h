// Launchers of the CUDA kernels: plain types and a stream in, a CUDA error code out (0 is success).
#pragma once

#include <cstdint>

#include "launch_plan.h"

namespace pix2pixhd::cuda {

using Stream = void*;  // cudaStream_t

// A scalar on the device that a kernel reads or writes: float32 or float64.
struct DeviceScalar {
  void* data;
  bool wide;
};

// partial[first_partial + block] = factor * sum over the block's chunk of |data[0] - data[1]|; packs signs where asked.
int l1_forward(const Launch& launch, double* partial, Stream stream);

// data[0][i] = upstream * factor * sign[i].
int l1_backward(const Launch& launch, DeviceScalar upstream, Stream stream);

// partial[first_partial + block] = factor * sum over the block's chunk of f(data[0]; constant).
int pointwise_forward(const Launch& launch, Pointwise kind, double* partial, Stream stream);

// data[1][i] = upstream * factor * f'(data[0][i]; constant).
int pointwise_backward(const Launch& launch, Pointwise kind, DeviceScalar upstream, Stream stream);

// loss = initial + partial[0] + ... + partial[count - 1], in a fixed order; for several rows of partial sums as many
// losses one after another.
int finish_sum(const double* partial, int64_t count, double initial, DeviceScalar loss, Stream stream, int rows = 1);

const char* error_text(int error);

}  // namespace pix2pixhd::cuda
