// The runtime API that the shim declares: launches, their errors, and what it reports of the device.
#include <cinttypes>
#include <cstdio>
#include <map>
#include <optional>
#include <utility>

#include "simulator.h"

extern char __executable_start;

namespace harness {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocks = 0x7fffffff;

struct Grid {
  cudaLaunchConfig_t config;
  std::function<void()> thread;
};

cudaError_t last_error = cudaSuccess;
cudaError_t planned_error = cudaSuccess;
cudaStream_t stream = nullptr;
bool overlapped = false;
bool postponing = false;
std::optional<Grid> postponed;
Device device{0, 13000, 90};
std::map<const void*, int64_t> launches_of;
int64_t launches = 0;

void run_postponed() {
  const std::optional<Grid> grid = std::exchange(postponed, std::nullopt);
  if (grid.has_value()) execute(grid->config, grid->thread, false, nullptr);
}

bool may_overlap(const cudaLaunchConfig_t& config) {
  bool allowed = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    allowed = allowed || (config.attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                          config.attrs[i].val.programmaticStreamSerializationAllowed != 0);
  }
  return allowed;
}

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const bool possible = config.gridDim.x > 0 && config.gridDim.x <= kMostBlocks && config.blockDim.x > 0 &&
                        config.blockDim.x <= kMostThreads && config.gridDim.y * config.gridDim.z == 1 &&
                        config.blockDim.y * config.blockDim.z == 1;
  last_error = planned_error != cudaSuccess ? planned_error : possible ? cudaSuccess : cudaErrorInvalidConfiguration;
  planned_error = cudaSuccess;
  if (last_error != cudaSuccess) return last_error;
  ++launches;
  ++launches_of[kernel];
  stream = config.stream;
  overlapped = may_overlap(config);
  if (overlapped) {
    const bool early = postponed.has_value();
    execute(config, thread, true, early ? std::function<void()>(run_postponed) : nullptr);
    return cudaSuccess;
  }
  run_postponed();
  if (postponing) {
    postponed = Grid{config, thread};
  } else {
    execute(config, thread, false, nullptr);
  }
  return cudaSuccess;
}

void set_postponing(bool wanted) {
  postponing = wanted;
  if (!wanted) run_postponed();
}

void fail_next_launch(cudaError_t error) { planned_error = error; }
cudaStream_t last_stream() { return stream; }
bool last_overlapped() { return overlapped; }
void set_device(const Device& wanted) { device = wanted; }

Totals totals() { return {static_cast<int64_t>(launches_of.size()), launches, executed_blocks()}; }

void print_kernels() {
  for (const auto& [kernel, count] : launches_of) {
    std::printf("kernel %tx %" PRId64 "\n", static_cast<const char*>(kernel) - &__executable_start, count);
  }
}

}  // namespace harness

cudaError_t cudaGetDevice(int* index) {
  *index = harness::device.index;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = harness::device.driver;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  if (harness::device.code_version == 0) return harness::last_error = cudaErrorNoKernelImageForDevice;
  attributes->ptxVersion = harness::device.code_version;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(harness::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "another error";
  }
}
