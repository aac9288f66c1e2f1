// Large CPU outputs, recycled from call to call.
//
// A training step asks for the same large gradients again and again. Newly mapped pages cost more than writing the
// gradients: inside a discriminator step at 1024x512 (24 M float32 elements) 35 ms of page faults and zeroing per
// backward, against 5 ms into memory that is already there. pix2pixhd/ops/recycling.py therefore keeps the storages of
// large outputs and hands them out again. It is written in Python because the stable ABI can neither wrap memory in a
// storage that PyTorch can resize nor tell how many tensors share a storage. This file is the operators' side: it calls
// that pool, and triggers its periodic check from every operator call, large or small.
#pragma once

#include <cstdint>
#include <vector>

#include "stable_tensor.h"

namespace pix2pixhd {

// A tensor with undefined contents, recycled when it is large and recycling is on.
Tensor empty_output(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t scalar_type,
                    Device device);

// Called once by every CPU operator. Costs one atomic load while the pool holds nothing.
void count_operator_call();

}  // namespace pix2pixhd
