// The host side of a multi-tensor launch, in plain C++: the assignment of blocks to chunks of tensors, the split of
// many tensors over launches, and the positions of the partial sums. All of it is passed as kernel arguments: no table
// is copied to the device.
#pragma once

#include <cstdint>
#include <vector>

#include "../types.h"

namespace pix2pixhd::cuda {

constexpr int kThreads = 256;
// Elements per block. Fixed, so that the partial sums, and therefore the result, are bitwise independent of the GPU. 32
// KiB of float32 per side: larger blocks leave more multiprocessors idle at the end, smaller ones cost more starts and
// sums of blocks than they save. The 24 M elements of the discriminator features give 2,940 blocks, whose sums one
// block adds in one round trip to the memory.
constexpr int64_t kBlockChunk = 8192;
// Kernel arguments are limited to 4 KiB before CUDA 12.1 and sm_70.
constexpr int kMaxTensors = 64;

// One tensor of a multi-tensor launch.
struct TensorArgs {
  void* data[2];    // L1 forward: input, target; L1 backward: gradient, -; pointwise: input, gradient
  uint32_t* signs;  // packed signs of this tensor; null without signs
  int64_t numel;
  double factor;    // weight / numel
  double constant;  // of a pointwise loss
  int32_t aligned;  // whether data[0] and data[1] are 16-byte aligned
};

struct LaunchArgs {
  TensorArgs tensor[kMaxTensors];
  int32_t block_begin[kMaxTensors + 1];  // tensor k owns the blocks [block_begin[k], block_begin[k + 1])
  int32_t count;
  int64_t first_partial;  // index of this launch's first partial sum
};
// A kernel takes at most a pointer or a DeviceScalar in addition.
static_assert(sizeof(LaunchArgs) + 16 <= 4096, "kernel arguments are limited to 4 KiB");

struct Launch {
  LaunchArgs args;
  DType type[2];  // of data[0] and data[1]; the same for all tensors of the launch
};

struct PlanEntry {
  TensorArgs tensor;
  DType type[2];
};

struct Plan {
  std::vector<Launch> launches;
  int64_t partials;  // number of blocks of all launches
};

// Groups the entries by dtypes and by whether signs are packed, in order of first appearance. Splits groups over
// launches and skips empty tensors.
Plan make_plan(const std::vector<PlanEntry>& entries);

}  // namespace pix2pixhd::cuda
