#include "huge_pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pix2pixhd::cpu {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < 2 * kHugePage) return;
  // Rounded outwards: the allocator lays large outputs side by side, and the parts of two neighbours on one huge page
  // would otherwise fault in by 4 KiB (half of all faults at the discriminator's sizes). What lies outside the process's
  // mappings is skipped by the kernel; the advice changes no contents.
  const auto begin = reinterpret_cast<uintptr_t>(data) & ~(kHugePage - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes + kHugePage - 1) & ~(kHugePage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace pix2pixhd::cpu
