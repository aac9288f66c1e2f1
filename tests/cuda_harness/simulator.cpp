#include "simulator.h"

#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "sanitizers.h"

extern char __start_harness_shared __attribute__((weak));
extern char __stop_harness_shared __attribute__((weak));

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim;
dim3 gridDim;

namespace harness {
namespace {

constexpr int kWarpSize = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kStackBytes = size_t{256} << 10;

struct Fibre {
  void* registers[5];  // of __builtin_setjmp
  ucontext_t start;    // first entry only
  char* stack;
  size_t stack_bytes;
  void* fake_stack;
  void* tsan;
  int thread;
  bool finished;
  bool waits_for_grid;
  bool knows_previous_grid;  // it has waited for the previous grid
  const char* waits_at;      // null while it is running
  int line;
  uint64_t result;
};

struct Warp {
  unsigned arrived;
  unsigned mask;
  WarpOperation operation;
  int line;
  int argument[kWarpSize];
  uint64_t value[kWarpSize];
};

// Ready threads, first in first out. Not a standard container, because sanitizers would see its allocations on every
// fibre.
class Queue {
 public:
  bool empty() const { return first_ == end_; }
  void push(Fibre* fibre) { ring_[end_++ % kMostThreads] = fibre; }
  Fibre* pop() { return ring_[first_++ % kMostThreads]; }

 private:
  Fibre* ring_[kMostThreads];
  unsigned first_ = 0;
  unsigned end_ = 0;
};

struct Barrier {
  int arrived;
  int line;
  int passed;  // number of completed barriers
};

Fibre main_fibre{};
std::vector<std::unique_ptr<Fibre>> fibres;
Fibre* current = &main_fibre;
Queue ready;
std::vector<Warp> warps;
Barrier barrier;
int threads;
const std::function<void()>* body;
const std::function<void()>* previous_grid;  // runs it; null once it has run
char begin_of_block;                         // ThreadSanitizer identifies synchronisation by these addresses
char end_of_block;
char barrier_order[2];  // used alternately: a thread can be one barrier ahead of another
char end_of_previous_grid;

Order order = Order::kForward;
int64_t first_block = 0;
int64_t blocks = 0;

const char* name(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::kBallot:
      return "__ballot_sync";
    case WarpOperation::kShuffle:
      return "__shfl_sync";
    default:
      return "__shfl_down_sync";
  }
}

template <typename... Arguments>
[[noreturn]] void fail(const char* format, Arguments... arguments) {
  std::fprintf(stderr, "SIMULATOR: block %u: ", blockIdx.x);
  std::fprintf(stderr, format, arguments...);
  std::fprintf(stderr, "\n");
  std::fflush(nullptr);
  _exit(3);
}

// In another function than its __builtin_setjmp, as the compiler requires.
[[noreturn]] __attribute__((noinline)) void jump(Fibre& to) { __builtin_longjmp(to.registers, 1); }

__attribute__((noinline)) void switch_to(Fibre& to) {
  Fibre& from = *current;
  if (&from == &to) return;
  current = &to;
  threadIdx = {static_cast<unsigned>(to.thread), 0, 0};
#if defined(HARNESS_ADDRESS)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(HARNESS_THREAD)
  constexpr unsigned kNoOrder = 1;
  __tsan_switch_to_fiber(to.tsan, kNoOrder);
#endif
  if (__builtin_setjmp(from.registers) == 0) jump(to);
#if defined(HARNESS_ADDRESS)
  __sanitizer_finish_switch_fiber(current->fake_stack, nullptr, nullptr);
#endif
}

void run_next() {
  if (ready.empty()) {
    switch_to(main_fibre);
    return;
  }
  switch_to(*ready.pop());
}

void wait(const char* where, int line) {
  Fibre* self = current;
  self->waits_at = where;
  self->line = line;
  run_next();
  self->waits_at = nullptr;
}

void run_thread() {
  Fibre* self = current;
  __tsan_acquire(&begin_of_block);
  (*body)();
  __tsan_release(&end_of_block);
  self->finished = true;
  run_next();
}

void enter(unsigned low, unsigned high) {
  auto* self = reinterpret_cast<Fibre*>(static_cast<uintptr_t>(high) << 32 | low);
  if (__builtin_setjmp(self->registers) == 0) setcontext(&main_fibre.start);
#if defined(HARNESS_ADDRESS)
  __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
#endif
  while (true) run_thread();
}

void add_fibre() {
  fibres.push_back(std::make_unique<Fibre>());
  Fibre& fibre = *fibres.back();
  fibre.thread = static_cast<int>(fibres.size()) - 1;
  // A guard page below every stack.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) fail("no memory for a stack");
  fibre.stack = static_cast<char*>(memory) + page;
  fibre.stack_bytes = kStackBytes;
#if defined(HARNESS_THREAD)
  fibre.tsan = __tsan_create_fiber(0);
#endif
  getcontext(&fibre.start);
  fibre.start.uc_stack.ss_sp = fibre.stack;
  fibre.start.uc_stack.ss_size = fibre.stack_bytes;
  const auto address = reinterpret_cast<uintptr_t>(&fibre);
  makecontext(&fibre.start, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
              static_cast<unsigned>(static_cast<uint64_t>(address) >> 32));
  swapcontext(&main_fibre.start, &fibre.start);
}

void set_up_main() {
  if (main_fibre.stack != nullptr) return;
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &main_fibre.stack_bytes);
  pthread_attr_destroy(&attributes);
  main_fibre.stack = static_cast<char*>(stack);
#if defined(HARNESS_THREAD)
  main_fibre.tsan = __tsan_get_current_fiber();
#endif
}

// Shared memory is not initialised. Here it starts as NaN in every floating-point type.
void poison_shared_memory() {
  volatile char* end = &__stop_harness_shared;
  for (volatile char* at = &__start_harness_shared; at != end; ++at) *at = static_cast<char>(0xff);
}

[[noreturn]] void report_deadlock() {
  int finished = 0;
  const Fibre* first = nullptr;
  for (int t = 0; t < threads; ++t) {
    finished += fibres[t]->finished ? 1 : 0;
    if (!fibres[t]->finished && first == nullptr) first = fibres[t].get();
  }
  fail("deadlock: %d of %d threads have ended, thread %d still waits at %s in line %d", finished, threads,
       first->thread, first->waits_at, first->line);
}

// The state of a grid, put aside while the previous grid runs.
class Suspended {
 public:
  Suspended()
      : warps_(std::exchange(warps, {})),
        barrier_(barrier),
        threads_(threads),
        body_(body),
        block_(blockIdx),
        block_dim_(blockDim),
        grid_dim_(gridDim) {
    fibres.swap(spare_);
    for (volatile char* at = &__start_harness_shared; at != &__stop_harness_shared; ++at) shared_.push_back(char{*at});
  }
  ~Suspended() {
    fibres.swap(spare_);
    warps = warps_;
    barrier = barrier_;
    threads = threads_;
    body = body_;
    blockIdx = block_;
    blockDim = block_dim_;
    gridDim = grid_dim_;
    volatile char* at = &__start_harness_shared;
    for (const char byte : shared_) *at++ = byte;
  }

 private:
  static std::vector<std::unique_ptr<Fibre>> spare_;  // a fibre belongs to one grid, because its stack is in use

  std::vector<Warp> warps_;
  Barrier barrier_;
  int threads_;
  const std::function<void()>* body_;
  uint3 block_;
  dim3 block_dim_;
  dim3 grid_dim_;
  std::vector<char> shared_;  // copied by bytes, because the sanitizers check a call of memcpy
};
std::vector<std::unique_ptr<Fibre>> Suspended::spare_;

// Threads that waited for the previous grid continue after it.
void finish_previous_grid() {
  bool waiting = false;
  for (int t = 0; t < threads; ++t) waiting = waiting || fibres[t]->waits_for_grid;
  if (!waiting) return;
  const std::function<void()>* run = std::exchange(previous_grid, nullptr);
  {
    const Suspended here;
    (*run)();
  }
  __tsan_release(&end_of_previous_grid);
  for (int t = 0; t < threads; ++t) {
    Fibre* fibre = fibres[order == Order::kForward ? t : threads - 1 - t].get();
    if (std::exchange(fibre->waits_for_grid, false)) ready.push(fibre);
  }
  run_next();
}

void run_block(bool overlaps) {
  poison_shared_memory();
  warps.assign((threads + kWarpSize - 1) / kWarpSize, Warp{});
  barrier = {};
  for (int t = 0; t < threads; ++t) {
    Fibre* fibre = fibres[order == Order::kForward ? t : threads - 1 - t].get();
    fibre->finished = fibre->waits_for_grid = fibre->knows_previous_grid = false;
    fibre->waits_at = nullptr;
    ready.push(fibre);
  }
  __tsan_release(&begin_of_block);
  run_next();
  finish_previous_grid();
  for (int t = 0; t < threads; ++t) {
    if (!fibres[t]->finished) report_deadlock();
    if (overlaps && !fibres[t]->knows_previous_grid) fail("thread %d does not wait for the previous grid", t);
  }
  __tsan_acquire(&end_of_block);
  ++blocks;
}

uint64_t result_for(const Warp& warp, int lane, unsigned lanes_that_voted) {
  if (warp.operation == WarpOperation::kBallot) return lanes_that_voted;
  const int wanted =
      warp.operation == WarpOperation::kShuffle ? warp.argument[lane] % kWarpSize : lane + warp.argument[lane];
  if (wanted >= kWarpSize) return warp.value[lane];  // __shfl_down_sync beyond the warp returns the lane's own value
  if ((warp.mask >> wanted & 1u) == 0)
    fail("%s in line %d: lane %d reads lane %d, which is not in the mask", name(warp.operation), warp.line, lane,
         wanted);
  return warp.value[wanted];
}

}  // namespace

uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int argument, int line) {
  Fibre* self = current;
  const int lane = self->thread % kWarpSize;
  const int first = self->thread - lane;
  Warp& warp = warps[self->thread / kWarpSize];
  if ((mask >> lane & 1u) == 0) fail("%s in line %d: lane %d is not in its own mask", name(operation), line, lane);
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.operation = operation;
    warp.line = line;
  } else if (warp.mask != mask || warp.operation != operation || warp.line != line) {
    fail("divergent warp: lane %d is at %s in line %d (mask %08x) while others wait at %s in line %d (mask %08x)", lane,
         name(operation), line, mask, name(warp.operation), warp.line, warp.mask);
  }
  warp.arrived |= 1u << lane;
  warp.argument[lane] = argument;
  warp.value[lane] = value;
  if (warp.arrived != mask) {
    wait(name(operation), line);
    return self->result;
  }
  warp.arrived = 0;
  unsigned votes = 0;
  for (int k = 0; k < kWarpSize; ++k) votes |= (mask >> k & 1u) != 0 && warp.value[k] != 0 ? 1u << k : 0u;
  for (int i = 0; i < kWarpSize; ++i) {
    const int k = order == Order::kForward ? i : kWarpSize - 1 - i;
    if ((mask >> k & 1u) == 0) continue;
    fibres[first + k]->result = result_for(warp, k, votes);
    if (k != lane) ready.push(fibres[first + k].get());
  }
  return self->result;
}

void block_barrier(int line) {
  if (barrier.arrived == 0) {
    barrier.line = line;
  } else if (barrier.line != line) {
    fail("divergent block: thread %d is at __syncthreads in line %d while others wait in line %d", current->thread,
         line, barrier.line);
  }
  char* turn = &barrier_order[barrier.passed % 2];
  __tsan_release(turn);
  if (++barrier.arrived < threads) {
    wait("__syncthreads", line);
  } else {
    barrier.arrived = 0;
    ++barrier.passed;
    for (int t = 0; t < threads; ++t) {
      Fibre* fibre = fibres[order == Order::kForward ? t : threads - 1 - t].get();
      if (fibre != current) ready.push(fibre);
    }
  }
  __tsan_acquire(turn);
}

void wait_for_previous_grid(int line) {
  if (previous_grid != nullptr) {
    current->waits_for_grid = true;
    wait("cudaGridDependencySynchronize", line);
  }
  __tsan_acquire(&end_of_previous_grid);
  current->knows_previous_grid = true;
}

void execute(const cudaLaunchConfig_t& config, const std::function<void()>& thread, bool overlaps,
             const std::function<void()>& previous) {
  set_up_main();
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  body = &thread;
  previous_grid = previous ? &previous : nullptr;
  threads = static_cast<int>(config.blockDim.x);
  while (fibres.size() < config.blockDim.x) add_fibre();
  const int64_t count = config.gridDim.x - first_block;
  for (int64_t i = 0; i < count; ++i) {
    blockIdx = {static_cast<unsigned>(first_block + (order == Order::kForward ? i : count - 1 - i)), 0, 0};
    run_block(overlaps);
  }
}

void set_order(Order wanted) { order = wanted; }
void set_first_block(int64_t first) { first_block = first; }
int64_t executed_blocks() { return blocks; }

}  // namespace harness
