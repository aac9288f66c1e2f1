// Runs a grid on the CPU. The threads of a block are fibres; blocks run one after another.
//
// A fibre runs until it waits at a barrier or a warp operation; then the next ready fibre runs. Misuse ends the process
// with a message: lanes missing from a warp operation, threads missing from a barrier, or threads that wait at
// different lines. ThreadSanitizer treats every fibre as a thread, and only barriers as synchronisation: warp
// operations do not order memory accesses, as on a GPU.
//
// A launch with the attribute of programmatic dependent launch runs before the previous kernel, if that was postponed,
// until its threads wait for it.
//
// Not simulated: blocks that run concurrently, the fused multiply-adds that nvcc generates, speed, and errors of the
// driver. Every kernel runs in two orders of blocks and threads, so a result that depends on the order is found.
#pragma once

#include <cstdint>

#include "shim/cuda_runtime.h"

namespace harness {

// The order in which ready threads and blocks run. A result that depends on it has a race.
enum class Order { kForward, kReversed };
void set_order(Order order);

// Runs only the blocks from `first` on, so that the last blocks of a huge grid can be run alone.
void set_first_block(int64_t first);

// The next launch fails with this error and runs nothing.
void fail_next_launch(cudaError_t error);

// Whether a launch waits for the next one, so that a kernel that may overlap it starts first. false runs what waits.
void set_postponing(bool wanted);

cudaStream_t last_stream();
bool last_overlapped();  // whether the last launch was allowed to

// The current device. code_version: the PTX version of the kernels' code for it, 0 if there is none.
struct Device {
  int index;
  int driver;
  int code_version;
};
void set_device(const Device& wanted);

// Runs a grid. overlaps: whether it may start before the previous grid, which `previous`, if not empty, runs.
void execute(const cudaLaunchConfig_t& config, const std::function<void()>& thread, bool overlaps,
             const std::function<void()>& previous);
int64_t executed_blocks();

struct Totals {
  int64_t kernels;  // distinct kernels
  int64_t launches;
  int64_t blocks;
};
Totals totals();

// Prints one line per executed kernel: "kernel <address relative to the executable> <launches>".
void print_kernels();

}  // namespace harness
