// Runs a grid on the CPU: the threads of a block are fibres, blocks follow one another.
//
// A fibre runs until it waits at a barrier or a warp operation, then the next one that can go on does. Every wrong use
// ends the process with a message: lanes that miss from a warp operation, threads that miss from a barrier, two threads
// that wait at different lines. ThreadSanitizer takes every fibre for a thread of its own and only barriers for order
// between them: warp operations order no memory, as on a GPU.
//
// What it cannot show: blocks that run at once (a result that depends on their order does show, as every kernel runs
// in two orders), the fused multiply-adds that nvcc forms, speed, and what the driver says of a launch.
#pragma once

#include <cstdint>

#include "shim/cuda_runtime.h"

namespace harness {

// The order in which ready threads and blocks run. A result that depends on it has a race.
enum class Order { kForward, kReversed };
void set_order(Order order);

// Runs only the blocks from first on, so that a huge grid's last blocks can be had alone.
void set_first_block(int64_t first);

// The next launch fails with this error and runs nothing.
void fail_next_launch(cudaError_t error);

cudaStream_t last_stream();

struct Totals {
  int64_t kernels;  // distinct ones
  int64_t launches;
  int64_t blocks;
};
Totals totals();

// One line for every kernel that ran: "kernel <address from the start of the executable> <launches>".
void print_kernels();

}  // namespace harness
