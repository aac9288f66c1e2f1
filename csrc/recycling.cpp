#include "recycling.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <limits>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pix2pixhd {
namespace {

// Smaller outputs are left to the C library's allocator, which recycles them well.
constexpr int64_t kRecycledBytes = int64_t{1} << 20;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Lock-free, so that a fork at any moment leaves the child a usable state.
std::atomic<bool> recycling{false};
std::atomic<int64_t> check_time{kNever};  // on steady_clock, in nanoseconds
std::atomic<int64_t> calls_left{0};       // operator calls until a check that comes before check_time

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t bytes_of(const std::vector<int64_t>& sizes, int32_t scalar_type) {
  int64_t bytes = scalar_type == static_cast<int32_t>(ScalarType::Int)
                      ? static_cast<int64_t>(sizeof(int32_t))
                      : element_size(dtype_from_scalar_type(scalar_type));
  for (const int64_t size : sizes) bytes *= size;
  return bytes;
}

}  // namespace

Tensor empty_output(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t scalar_type,
                    Device device) {
  if (!recycling.load(std::memory_order_relaxed) || bytes_of(sizes, scalar_type) < kRecycledBytes) {
    return empty_strided(sizes, strides, scalar_type, device);
  }
  std::array<StableIValue, 3> stack{torch::stable::detail::from(sizes), torch::stable::detail::from(strides),
                                    torch::stable::detail::from(static_cast<int64_t>(scalar_type))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("pix2pixhd::recycled_empty", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void count_operator_call() {
  const int64_t due = check_time.load(std::memory_order_relaxed);
  if (due == kNever) return;
  if (calls_left.fetch_sub(1, std::memory_order_relaxed) > 1 && now() < due) return;
  check_time.store(kNever, std::memory_order_relaxed);  // the check schedules the next one
  std::array<StableIValue, 1> stack{};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("pix2pixhd::check_recycling", "", stack.data(), TORCH_ABI_VERSION));
}

}  // namespace pix2pixhd

// What the pool calls, through ctypes and not as operators: it must work under any dispatch mode and during a fork.
#define PIX2PIXHD_EXPORT extern "C" __attribute__((visibility("default")))

PIX2PIXHD_EXPORT void pix2pixhd_enable_recycling(bool enabled) {
  pix2pixhd::recycling.store(enabled, std::memory_order_relaxed);
}

// A check is due after this many seconds or operator calls, whichever comes first; infinitely many seconds cancel it.
PIX2PIXHD_EXPORT void pix2pixhd_schedule_check(double seconds, int64_t calls) {
  pix2pixhd::calls_left.store(calls, std::memory_order_relaxed);
  pix2pixhd::check_time.store(
      std::isfinite(seconds) ? pix2pixhd::now() + static_cast<int64_t>(seconds * 1e9) : pix2pixhd::kNever,
      std::memory_order_relaxed);
}

// Lets the system take the whole pages of memory whose contents are not needed any more: at once, or with `lazily` only
// when it runs short. The allocation itself stays valid; its contents become undefined.
PIX2PIXHD_EXPORT void pix2pixhd_discard(void* data, size_t bytes, bool lazily) {
#if defined(__linux__) && defined(MADV_FREE)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, lazily ? MADV_FREE : MADV_DONTNEED);
#else
  (void)data, (void)bytes, (void)lazily;
#endif
}

STABLE_TORCH_LIBRARY_FRAGMENT(pix2pixhd, m) {
  // Implemented in pix2pixhd/ops/recycling.py.
  m.def("recycled_empty(int[] size, int[] stride, int dtype) -> Tensor");
  m.def("check_recycling() -> ()");
  m.def("release_cpu_memory() -> int");
}
