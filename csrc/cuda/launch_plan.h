// The host side of a multi-tensor launch, in plain C++: which block works on which chunk of which tensor, how many
// tensors fit one launch, where partial sums go. All of it travels in the kernel's arguments: nothing is copied to the
// device.
#pragma once

#include <cstdint>
#include <vector>

#include "../types.h"

namespace pix2pixhd::cuda {

constexpr int kThreads = 256;
// Elements per block, fixed: partial sums, and so every bit of the result, do not depend on the GPU. 64 KiB of float32
// from each side keeps a block busy for microseconds; the 24 M elements of the discriminator's features give 1,470
// blocks.
constexpr int64_t kBlockChunk = 16384;
// 4 KiB is the limit on kernel arguments before CUDA 12.1 and sm_70.
constexpr int kMaxTensors = 64;

// One tensor of a multi-tensor launch.
struct TensorArgs {
  void* data[2];    // L1 forward: input, target; L1 backward: gradient, -; pointwise: input, gradient
  uint32_t* signs;  // this tensor's part of the packed signs; null without
  int64_t numel;
  double factor;    // weight / numel
  double constant;  // of a pointwise loss
  int32_t aligned;  // whether 16-byte accesses are possible
};

struct LaunchArgs {
  TensorArgs tensor[kMaxTensors];
  int32_t block_begin[kMaxTensors + 1];  // tensor k owns the blocks [block_begin[k], block_begin[k + 1])
  int32_t count;
  int64_t first_partial;  // where this launch's partial sums begin
};
// Beside them a kernel takes at most a pointer or a DeviceScalar.
static_assert(sizeof(LaunchArgs) + 16 <= 4096, "kernel arguments are limited to 4 KiB");

struct Launch {
  LaunchArgs args;
  DType type[2];  // of data[0] and data[1], the same for all tensors of the launch, as is whether they have signs
};

struct PlanEntry {
  TensorArgs tensor;
  DType type[2];
};

struct Plan {
  std::vector<Launch> launches;
  int64_t partials;  // number of blocks of all launches
};

// Groups the entries by types and by whether signs are packed, in order of first appearance; splits groups over
// launches and skips empty tensors.
Plan make_plan(const std::vector<PlanEntry>& entries);

}  // namespace pix2pixhd::cuda
