// Statistics of norm_act.
//
// Memory traffic: x is read once. Chunks whose sums in C cancel or overflow are read two more times.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

template <typename C>
__device__ inline void add_deviation(Terms<C>& terms, C x, C origin) {
  const C deviation = x - origin;
  terms.first += deviation;
  terms.second += deviation * deviation;
}

// A vector that is not aligned, or of which only `count` elements exist.
template <typename T>
__device__ __attribute__((noinline)) Terms<Compute<T>> add_few(Terms<Compute<T>> terms, const T* x, int count,
                                                               Compute<T> origin) {
  const Wide<T> pack = get<false>(x, count);
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    if (i < count) add_deviation<Compute<T>>(terms, widen(pack.value[i]), origin);
  }
  return terms;
}

// Most that the squared distance of a chunk's mean from its first pixel may exceed the variance. The first pixel may be
// an outlier: the variance would then be the small difference of two large sums, in the precision of C.
constexpr double kMostCancellation = 16.0;

// Sums of the deviations of a channel of a chunk from the first pixel, so that a large mean does not cancel, as the sum
// and the squared deviations from the mean. `accurate` is false if they cancel or overflow, or if a value is not
// finite.
struct ChunkStatistics {
  TwoSums sums;
  bool accurate;

  template <typename T>
  static __device__ ChunkStatistics of(const TwoSums& deviations, T origin, double count) {
    const double shift = deviations.first * deviations.first / count;
    const double squares = deviations.second - shift;
    return {{deviations.first + static_cast<double>(widen(origin)) * count, squares},
            squares - squares == 0.0 && shift <= kMostCancellation * squares};
  }
};

// Sums in double of the deviations of every step-th pixel of a channel from `origin`, and of their squares. stride:
// elements between pixels. Eight loads are in flight, as few chunks need this.
template <typename T>
__device__ __attribute__((noinline)) TwoSums exact_sums(const T* x, int64_t stride, int first, int step, int pixels,
                                                        double origin) {
  TwoSums sums{0.0, 0.0};
#pragma unroll 8
  for (int i = first; i < pixels; i += step) {
    const double deviation = static_cast<double>(widen(x[i * stride])) - origin;
    sums.first += deviation;
    sums.second += deviation * deviation;
  }
  return sums;
}

// The sum and the squared deviations of a chunk of a plane, by all threads of the block. Valid in thread 0.
template <typename T>
__device__ __attribute__((noinline)) TwoSums exact_plane(const T* x, int pixels) {
  __shared__ double mean;
  const double sum = block_sum(exact_sums(x, 1, threadIdx.x, kThreads, pixels, 0.0).first);
  if (threadIdx.x == 0) mean = sum / pixels;
  __syncthreads();
  return {sum, block_sum(exact_sums(x, 1, threadIdx.x, kThreads, pixels, mean).second)};
}

// The same of a channel of a chunk of several channels, by one thread.
template <typename T>
__device__ inline TwoSums exact_channel(const T* x, int64_t channels, int pixels) {
  const double sum = exact_sums(x, channels, 0, 1, pixels, 0.0).first;
  return {sum, exact_sums(x, channels, 0, 1, pixels, sum / pixels).second};
}

// Adds this thread's vectors of a chunk of a plane.
template <typename T>
__device__ inline TwoSums plane_deviations(const T* x, int64_t pixels, Compute<T> origin, bool aligned) {
  using C = Compute<T>;
  constexpr int V = kWide<T>;
  constexpr int kVectors = kTerms / V;  // that are added in C
  TwoSums sums{0.0, 0.0};
#pragma unroll 1
  for (int first = threadIdx.x * V; first < pixels; first += kLoads * kThreads * V) {
    Wide<T> pack[kLoads];
    bool whole[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int at = first + u * kThreads * V;
      whole[u] = aligned && at + V <= pixels;
      if (whole[u]) pack[u] = get<true>(x + at, V);
    }
#pragma unroll
    for (int u = 0; u < kLoads; u += kVectors) {
      Terms<C> terms{0, 0};
#pragma unroll
      for (int k = u; k < u + kVectors; ++k) {
        const int at = first + k * kThreads * V;
        if (whole[k]) {
#pragma unroll
          for (int i = 0; i < V; ++i) add_deviation<C>(terms, widen(pack[k].value[i]), origin);
        } else if (at < pixels) {
          terms = add_few(terms, x + at, static_cast<int>(pixels - at < V ? pixels - at : V), origin);
        }
      }
      sums.first += terms.first;
      sums.second += terms.second;
    }
  }
  return sums;
}

// Adds this thread's channels of a chunk of pixels.
template <bool kWhole, typename T>
__device__ inline bool channel_deviations(const T* x, const NormGrid& grid, int64_t pixels, int count, TwoSums& sums) {
  using C = Compute<T>;
  constexpr int V = kWide<T>;
  static_assert(kDeepChunk == kTerms * kLanes);
  const int lane = threadIdx.x / kChannelVectors;
  Pack<C, V> origin{};
  Pack<C, V> first{};
  Pack<C, V> second{};
  if (count > 0) {
    const Wide<T> pack = get<kWhole>(x, count);
#pragma unroll
    for (int i = 0; i < V; ++i) origin.value[i] = widen(pack.value[i]);
  }
#pragma unroll 1
  for (int pixel = lane; pixel < kDeepChunk; pixel += kLoads * kLanes) {
    Wide<T> pack[kLoads];
    bool exists[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int at = pixel + u * kLanes;
      exists[u] = count > 0 && at < pixels;
      if (exists[u]) pack[u] = get<kWhole>(x + at * grid.channels, count);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (!exists[u]) continue;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const C deviation = widen(pack[u].value[i]) - origin.value[i];
        first.value[i] += deviation;
        second.value[i] += deviation * deviation;
      }
    }
  }
  return channel_sums(first, second, sums);
}

// partial: the sum of each chunk and channel, and the sum of squared deviations from the chunk's mean. whole: see
// has_whole_vectors.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    norm_statistics_kernel(const T* __restrict__ x, NormGrid grid, bool whole, double* __restrict__ partial) {
  allow_overlap();
  const NormChunk chunk = NormChunk::of<T, kLast>(grid);
  const int64_t pixels = grid.pixels - chunk.first < grid.chunk ? grid.pixels - chunk.first : grid.chunk;
  const T* own = x + (chunk.map * grid.pixels + chunk.first) * grid.channels;
  const auto count = static_cast<int>(pixels);
  if constexpr (kLast) {
    const int existing = channel_count<T>(grid.channels, chunk.channel);
    const T* from = own + chunk.channel;
    TwoSums sums;
    if (!(whole ? channel_deviations<true>(from, grid, pixels, existing, sums)
                : channel_deviations<false>(from, grid, pixels, existing, sums))) {
      return;
    }
    const int64_t channel = chunk.group + threadIdx.x;
    if (channel >= grid.channels) return;
    auto result = ChunkStatistics::of(sums, own[channel], count);
    if (!result.accurate) result.sums = exact_channel(own + channel, grid.channels, count);
    put_sums(partial, grid, chunk.index, channel, result.sums);
  } else {
    __shared__ ChunkStatistics result;
    const bool aligned = whole && chunk.map * grid.pixels % kWide<T> == 0;
    TwoSums sums = plane_deviations(own, pixels, widen(own[0]), aligned);
    if (block_sums(sums)) result = ChunkStatistics::of(sums, own[0], count);
    __syncthreads();
    TwoSums exact;
    if (!result.accurate) exact = exact_plane(own, count);
    if (threadIdx.x == 0) put_sums(partial, grid, chunk.index, 0, result.accurate ? result.sums : exact);
  }
}

template <typename C>
struct StatisticsOutput {
  C* mean;
  C* rstd;
  C* var;
};

// One block per row and channel of the statistics.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    finish_statistics_kernel(const double* partial, NormTensor tensor, int64_t images, double eps, int64_t chunks,
                             Divisor by_channels, Divisor by_chunks, StatisticsOutput<C> out) {
  wait_for_previous_kernel();
  __shared__ double shared_mean;
  const Division<uint32_t> row = by_channels.divide(blockIdx.x);
  const int64_t channel = row.remainder;
  const int64_t first = row.quotient * images;
  const int64_t pixels = tensor.map.height * tensor.map.width;
  const int64_t chunk_pixels = tensor.channels_last ? kDeepChunk : kPlaneChunk;
  const auto count = static_cast<double>(images * pixels);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < images * chunks; i += kThreads) {
    const Division<int64_t> chunk = by_chunks.divide(i);
    sum += partial[partial_at(tensor, chunks, first + chunk.quotient, channel, chunk.remainder)];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) shared_mean = sum / count;
  __syncthreads();
  const double mean = shared_mean;
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < images * chunks; i += kThreads) {
    const Division<int64_t> chunk = by_chunks.divide(i);
    const int64_t at = partial_at(tensor, chunks, first + chunk.quotient, channel, chunk.remainder);
    const int64_t left = pixels - chunk.remainder * chunk_pixels;
    const auto size = static_cast<double>(left < chunk_pixels ? left : chunk_pixels);
    const double difference = partial[at] / size - mean;
    squares += partial[at + tensor.map.channels] + size * difference * difference;
  }
  squares = block_sum(squares);
  if (threadIdx.x != 0) return;
  const double var = squares / count;
  out.mean[blockIdx.x] = static_cast<C>(mean);
  out.rstd[blockIdx.x] = static_cast<C>(1.0 / sqrt(var + eps));
  out.var[blockIdx.x] = static_cast<C>(var);
}

}  // namespace

int norm_statistics(const void* x, const NormTensor& tensor, int64_t rows, double eps, double* partial, void* mean,
                    void* rstd, void* var, Stream stream) {
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const NormGrid grid = NormGrid::of_sums(tensor, false);
    const auto kernel = tensor.channels_last ? norm_statistics_kernel<T, true> : norm_statistics_kernel<T, false>;
    const int error = launch_blocks(kernel, grid.blocks, stream, static_cast<const T*>(x), grid,
                                    has_whole_vectors<T>(tensor, {x}), partial);
    if (error != cudaSuccess) return error;
    // The mean of no pixels is 0/0 = NaN, as in PyTorch.
    const StatisticsOutput<C> out{static_cast<C*>(mean), static_cast<C*>(rstd), static_cast<C*>(var)};
    return launch_overlapping_blocks(grid.blocks, finish_statistics_kernel<C>, rows * tensor.channels, stream,
                                     static_cast<const double*>(partial), tensor,
                                     rows == tensor.batch ? 1 : tensor.batch, eps, tensor.chunks(),
                                     Divisor(tensor.channels), Divisor(tensor.chunks()), out);
  });
}

}  // namespace pix2pixhd::cuda
