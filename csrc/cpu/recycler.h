// Memory of large outputs, recycled from call to call.
//
// A training step asks for the same gradients again and again. From the C library each of them comes as newly mapped
// pages, and mapping and zeroing them costs more than writing the gradient: measured at the discriminator's 24 M
// elements, 4 to 40 ms a backward against 2 ms into memory that is already there. So large outputs come from here:
// blocks of whole huge pages (2 MiB; 64 faults instead of 32,768 for 134 MB), which are kept when their tensor is freed
// and handed out again at the next call. A kept block stays reclaimable by the system (MADV_FREE) and is unmapped when
// it has not been asked for in a while, so that no more is kept than the latest steps used.
#pragma once

#include <cstddef>

namespace pix2pixhd::cpu {

// Smaller outputs are left to the ordinary allocator, which recycles them well.
constexpr size_t kRecycledBytes = size_t{1} << 20;

// A block of at least `bytes`, aligned to 64 bytes or better, contents undefined. Null when the system has none or does
// not support it: ask the ordinary allocator then. Thread-safe, as are the others.
void* acquire_block(size_t bytes);

// Gives a block of acquire_block back.
void release_block(void* block);

// Unmaps all kept blocks; returns how many bytes that were.
size_t trim_blocks();

}  // namespace pix2pixhd::cpu
