// Device helpers for the norm_act kernels: assignment of pixels to threads, and sums in a fixed order.
#pragma once

#include "device.cuh"
#include "norm_act.h"
#include "perceptual.cuh"

namespace pix2pixhd::cuda {

constexpr int kRowElements = 4096;  // elements that a block of an elementwise kernel processes

// The split of the rows of all feature maps, of `length` elements, over blocks: a block processes several short rows,
// or a part of a long one.
struct RowGrid {
  int64_t rows;
  int64_t length;
  int64_t rows_per_block;
  int64_t blocks_per_row;
  int64_t blocks_per_map;
  Divisor by_map;  // of blocks,
  Divisor by_row;  // as is this
  Divisor by_length;
  Divisor by_channels;

  RowGrid(int64_t rows_, int64_t width, int64_t channels)
      : rows(rows_),
        length(width * channels),
        rows_per_block(length < kRowElements ? kRowElements / length : 1),
        blocks_per_row((length + kRowElements - 1) / kRowElements),
        blocks_per_map((rows + rows_per_block - 1) / rows_per_block * blocks_per_row),
        by_map(blocks_per_map),
        by_row(blocks_per_row),
        by_length(length),
        by_channels(channels) {}
};

// Calls f(row, column, channel) for the elements of this block, neighbouring threads with neighbouring elements.
template <typename F>
__device__ inline void for_each_element(const RowGrid& grid, const F& f) {
  const Division<uint32_t> block = grid.by_row.divide(grid.by_map.divide(blockIdx.x).remainder);
  const int64_t first_row = block.quotient * grid.rows_per_block;
  const uint32_t start = block.remainder * kRowElements;
  const int64_t left =
      (grid.rows - first_row < grid.rows_per_block ? grid.rows - first_row : grid.rows_per_block) * grid.length - start;
  const auto count = static_cast<uint32_t>(left < kRowElements ? left : kRowElements);
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    const Division<uint32_t> row = grid.by_length.divide(start + i);
    const Division<uint32_t> column = grid.by_channels.divide(row.remainder);
    f(first_row + row.quotient, static_cast<int64_t>(column.quotient), static_cast<int64_t>(column.remainder));
  }
}

// The map that this block of an elementwise kernel works on.
__device__ inline int64_t map_of(const RowGrid& grid) { return grid.by_map.divide(blockIdx.x).quotient; }

// The parameters of a map.
template <typename C>
__device__ inline const C* parameters_of(const void* parameters, int64_t map, int64_t channels) {
  return static_cast<const C*>(parameters) + map * kNormParameters * channels;
}

// The pixel that is copied to padded position `i`, along one dimension; -1 for zero padding.
__device__ inline int64_t padding_source(int64_t i, int64_t before, int64_t size, PaddingMode mode) {
  i -= before;
  if (i >= 0 && i < size) return i;
  if (mode == PaddingMode::kZero) return -1;
  if (mode == PaddingMode::kReflect) return i < 0 ? -i : 2 * (size - 1) - i;
  return i < 0 ? 0 : size - 1;
}

// The split of the pixels of feature maps over blocks that sum. A block of a map of several channels sums 32 of them: a
// warp reads neighbouring channels of a pixel. Otherwise all its threads read neighbouring pixels.
struct SumGrid {
  int64_t pixels;
  int64_t channels;
  int64_t chunks;
  int64_t groups;  // of 32 channels
  int64_t blocks;
  Divisor by_groups;
  Divisor by_chunks;
  Divisor by_width;

  explicit SumGrid(const NormTensor& tensor)
      : pixels(tensor.map.height * tensor.map.width),
        channels(tensor.map.channels),
        chunks(tensor.chunks()),
        groups(tensor.channels_last ? (channels + 31) / 32 : 1),
        blocks(tensor.maps() * chunks * groups),
        by_groups(groups),
        by_chunks(chunks),
        by_width(tensor.map.width) {}
};

template <bool kLast>
struct SumChunk {
  int64_t map;
  int64_t index;  // of the chunk among those of all feature maps
  int64_t first;  // pixel
  int64_t end;
  int64_t channel;  // of this thread

  static __device__ SumChunk of(const SumGrid& grid) {
    constexpr int64_t kChunk = kLast ? kDeepChunk : kPlaneChunk;
    SumChunk chunk;
    const Division<uint32_t> group = grid.by_groups.divide(blockIdx.x);
    const Division<uint32_t> within = grid.by_chunks.divide(group.quotient);
    chunk.index = group.quotient;
    chunk.map = within.quotient;
    chunk.first = within.remainder * kChunk;
    chunk.end = grid.pixels - chunk.first < kChunk ? grid.pixels : chunk.first + kChunk;
    chunk.channel = kLast ? static_cast<int64_t>(group.remainder) * 32 + threadIdx.x % 32 : 0;
    return chunk;
  }
};

struct TwoSums {
  double first;
  double second;
};

// Adds f(pixel, &first, &second) over this thread's pixels. Eight terms at a time are added in C, which is faster than
// double on most GPUs.
template <typename C, bool kLast, typename F>
__device__ inline TwoSums sum_pixels(const SumGrid& grid, const SumChunk<kLast>& chunk, const F& f) {
  constexpr int kStep = kLast ? kWarps : kThreads;
  constexpr int kTerms = 8;
  TwoSums sums{0.0, 0.0};
  if (chunk.channel >= grid.channels) return sums;
  const int64_t own = chunk.first + (kLast ? threadIdx.x / 32 : threadIdx.x);
  for (int64_t pixel = own; pixel < chunk.end; pixel += kTerms * kStep) {
    C first = 0;
    C second = 0;
#pragma unroll
    for (int u = 0; u < kTerms; ++u) {
      if (pixel + u * kStep < chunk.end) f(pixel + u * kStep, &first, &second);
    }
    sums.first += first;
    sums.second += second;
  }
  return sums;
}

// Adds the sums of the block's threads, for each channel. Valid in the threads for which it returns true.
template <bool kLast>
__device__ inline bool block_sums(TwoSums& sums) {
  if constexpr (kLast) {
    __shared__ double shared[2][kWarps][32];
    shared[0][threadIdx.x / 32][threadIdx.x % 32] = sums.first;
    shared[1][threadIdx.x / 32][threadIdx.x % 32] = sums.second;
    __syncthreads();
    if (threadIdx.x >= 32) return false;
    sums = {0.0, 0.0};
    for (int warp = 0; warp < kWarps; ++warp) {
      sums.first += shared[0][warp][threadIdx.x];
      sums.second += shared[1][warp][threadIdx.x];
    }
    return true;
  } else {
    sums.first = block_sum(sums.first);
    __syncthreads();  // block_sum reuses its shared memory
    sums.second = block_sum(sums.second);
    return threadIdx.x == 0;
  }
}

// partial[chunk, 0 and 1, channel] of this thread.
__device__ inline void put_sums(double* partial, const SumGrid& grid, int64_t index, int64_t channel,
                                const TwoSums& sums) {
  if (channel >= grid.channels) return;
  partial[2 * index * grid.channels + channel] = sums.first;
  partial[(2 * index + 1) * grid.channels + channel] = sums.second;
}

// The position of chunk `chunk` of image n and channel c in the partial sums. The second sum follows after
// `channels of a map` elements.
__device__ inline int64_t partial_at(const NormTensor& tensor, int64_t chunks, int64_t n, int64_t c, int64_t chunk) {
  const int64_t map = tensor.channels_last ? n : n * tensor.channels + c;
  return 2 * (map * chunks + chunk) * tensor.map.channels + (tensor.channels_last ? c : 0);
}

}  // namespace pix2pixhd::cuda
