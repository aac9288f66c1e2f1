// A gradient written into newly mapped memory costs more in page faults than in bandwidth: 134 MB are 32,768 faults of
// 4 KiB but 64 of 2 MiB.
#pragma once

#include <cstddef>

namespace pix2pixhd::cpu {

// Asks for huge pages under a large output that is about to be written whole. A hint: it never fails, and does nothing
// where the system has none.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace pix2pixhd::cpu
