// Statistics and forward of norm_act.
//
// Memory traffic: the statistics read x once; the forward reads x and the residual once and writes y once.
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

// Deviations are from the first pixel, so that a large mean does not cancel. Inf - Inf would be NaN where the mean is
// Inf.
template <typename T>
__device__ inline Compute<T> origin_of(T x) {
  const Compute<T> value = widen(x);
  return value - value == 0 ? value : Compute<T>(0);
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
    for (int i = 0; i < V; ++i) origin.value[i] = origin_of(pack.value[i]);
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
  using C = Compute<T>;
  allow_overlap();
  const NormChunk chunk = NormChunk::of<T, kLast>(grid);
  const int64_t pixels = grid.pixels - chunk.first < grid.chunk ? grid.pixels - chunk.first : grid.chunk;
  const T* own = x + (chunk.map * grid.pixels + chunk.first) * grid.channels;
  int64_t channel = 0;
  TwoSums sums;
  if constexpr (kLast) {
    const int count = channel_count<T>(grid.channels, chunk.channel);
    const T* from = own + chunk.channel;
    if (!(whole ? channel_deviations<true>(from, grid, pixels, count, sums)
                : channel_deviations<false>(from, grid, pixels, count, sums))) {
      return;
    }
    channel = chunk.group + threadIdx.x;
    if (channel >= grid.channels) return;
  } else {
    const bool aligned = whole && chunk.map * grid.pixels % kWide<T> == 0;
    sums = plane_deviations(own, pixels, origin_of(own[0]), aligned);
    if (!block_sums(sums)) return;
  }
  const auto count = static_cast<double>(pixels);
  const C origin = origin_of(own[channel]);
  const double squares = sums.second - sums.first * sums.first / count;
  put_sums(partial, grid, chunk.index, channel,
           {sums.first + static_cast<double>(origin) * count, squares < 0.0 ? 0.0 : squares});
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

template <typename T>
struct ForwardArgs {
  const T* x;
  const T* residual;  // or null
  T* y;
  PaddedImage image;
  Slopes<Compute<T>> slopes;
  const Compute<T>* parameters;
};

template <typename T, int N>
__device__ inline T forward_element(const ForwardArgs<T>& args, const AffineParameters<Compute<T>, N>& affine, int i,
                                    T x, T residual) {
  using C = Compute<T>;
  const C z = (widen(x) - affine.offset[i]) * affine.scale[i] + affine.shift[i];
  C result = args.slopes.activate(z);
  if (args.residual != nullptr) result = result + widen(residual);
  return narrow<T>(result);
}

template <typename T, int N>
__device__ inline Wide<T> forward_vector(const ForwardArgs<T>& args, const AffineParameters<Compute<T>, N>& affine,
                                         const Wide<T>& x, const Wide<T>& residual) {
  Wide<T> y;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    y.value[i] = forward_element(args, affine, i, x.value[i], residual.value[i]);
  }
  return y;
}

// A vector at `first` in a padded plane whose sources are not aligned, or that is not whole, or crosses the border.
template <typename T>
__device__ __attribute__((noinline)) void forward_few(const ForwardArgs<T>& args, const NormGrid& grid, int64_t map,
                                                      int64_t first) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  const auto affine =
      AffineParameters<Compute<T>, 1>::template read<true>(parameters_of(args.parameters, map, 1, 0), 1, 1);
  const int64_t source = map * image.height * image.width;
  T* y = args.y + map * grid.pixels;
  const Division<int64_t> start = grid.by_width.divide(first < 0 ? 0 : first);
  const Place place{start.quotient, start.remainder};
  const Place from = padding_source(place, image);
  if (first >= 0 && first + V <= grid.pixels && copies_neighbours<V>(place, from.row, image)) {
    const int64_t at = source + from.row * image.width + from.column;
    const Wide<T> x = get<false>(args.x + at, V);
    Wide<T> residual;
    if (args.residual != nullptr) residual = get<false>(args.residual + at, V);
    put<true>(y + first, V, forward_vector(args, affine, x, residual));
    return;
  }
#pragma unroll 1
  for (int i = 0; i < V; ++i) {
    if (first + i < 0 || first + i >= grid.pixels) continue;
    const Division<int64_t> one = grid.by_width.divide(first + i);
    const Place copied = padding_source(Place{one.quotient, one.remainder}, image);
    T result = narrow<T>(0.0);
    if (copied.row >= 0 && copied.column >= 0) {
      const int64_t at = source + copied.row * image.width + copied.column;
      result = forward_element(args, affine, 0, args.x[at], args.residual != nullptr ? args.residual[at] : result);
    }
    y[first + i] = result;
  }
}

template <typename T>
__device__ inline void forward_plane(const ForwardArgs<T>& args, const NormGrid& grid, const NormChunk& chunk) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  T* y = args.y + chunk.map * grid.pixels;
  const int64_t begin = chunk.first - elements_past_boundary(y);
  const ChunkStart start(grid, begin < 0 ? 0 : begin);
  const auto before = static_cast<int>(begin < 0 ? begin : 0);  // of the plane
  Wide<T> from[kLoads];
  Wide<T> added[kLoads];
  bool whole[kLoads];
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int offset = before + static_cast<int>(threadIdx.x + u * kThreads) * V;
    const Place place = start.after(grid, static_cast<uint32_t>(offset < 0 ? 0 : offset));
    const int64_t row = padding_source(place.row, image.top, image.height, image.mode);
    const int64_t at = (chunk.map * image.height + row) * image.width + place.column - image.left;
    const bool aligned = is_aligned(args.x + at) && (args.residual == nullptr || is_aligned(args.residual + at));
    whole[u] =
        offset >= 0 && begin - before + offset + V <= grid.pixels && copies_neighbours<V>(place, row, image) && aligned;
    if (whole[u]) from[u] = get<true>(args.x + at, V);
    if (whole[u] && args.residual != nullptr) added[u] = get<true>(args.residual + at, V);
  }
  const auto affine =
      AffineParameters<Compute<T>, 1>::template read<true>(parameters_of(args.parameters, chunk.map, 1, 0), 1, 1);
  unsigned others = 0;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int64_t at = begin + static_cast<int>(threadIdx.x + u * kThreads) * V;
    if (whole[u]) {
      put<true>(y + at, V, forward_vector(args, affine, from[u], added[u]));
    } else if (at < grid.pixels) {
      others |= 1u << u;
    }
  }
  if (others == 0) return;
#pragma unroll 1
  for (int u = 0; u < kLoads; ++u) {
    const int64_t at = begin + static_cast<int>(threadIdx.x + u * kThreads) * V;
    if (others >> u & 1u) forward_few(args, grid, chunk.map, at);
  }
}

template <bool kWhole, typename T>
__device__ inline void forward_channels(const ForwardArgs<T>& args, const NormGrid& grid, const NormChunk& chunk) {
  const PaddedImage& image = args.image;
  const int count = channel_count<T>(grid.channels, chunk.channel);
  if (count == 0) return;
  const int64_t own = chunk.map * image.height * image.width * grid.channels + chunk.channel;
  T* y = args.y + (chunk.map * grid.pixels + chunk.first) * grid.channels + chunk.channel;
  const ChunkStart start(grid, chunk.first);
  const uint32_t lane = threadIdx.x >> grid.shift;
  Wide<T> from[kLoads];
  Wide<T> added[kLoads];
  bool inside[kLoads];
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint32_t pixel = lane + u * (kThreads >> grid.shift);
    const Place source = padding_source(start.after(grid, pixel), image);
    const int64_t at = own + (source.row * image.width + source.column) * grid.channels;
    inside[u] = chunk.first + pixel < grid.pixels && source.row >= 0 && source.column >= 0;
    if (inside[u]) from[u] = get<kWhole>(args.x + at, count);
    if (inside[u] && args.residual != nullptr) added[u] = get<kWhole>(args.residual + at, count);
  }
  const auto affine = AffineParameters<Compute<T>, kWide<T>>::template read<kWhole>(
      parameters_of(args.parameters, chunk.map, grid.channels, chunk.channel), grid.channels, count);
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint32_t pixel = lane + u * (kThreads >> grid.shift);
    if (chunk.first + pixel >= grid.pixels) continue;
    Wide<T> result = zeros<T>();
    if (inside[u]) result = forward_vector(args, affine, from[u], added[u]);
    put<kWhole>(y + pixel * grid.channels, count, result);
  }
}

// y = pad(act((x - mean) * scale + shift) + residual). whole: see has_whole_vectors.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_kernel(const __grid_constant__ ForwardArgs<T> args, const __grid_constant__ NormGrid grid, bool whole) {
  const NormChunk chunk = NormChunk::of<T, kLast>(grid);
  if constexpr (!kLast) {
    forward_plane(args, grid, chunk);
  } else if (whole) {
    forward_channels<true>(args, grid, chunk);
  } else {
    forward_channels<false>(args, grid, chunk);
  }
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

int norm_act(const void* x, const void* residual, void* y, const NormTensor& tensor, const NormActivation& activation,
             const void* parameters, Stream stream) {
  const PaddedImage& map = tensor.map;
  const int64_t height = map.padded_height();
  const int64_t width = map.padded_width();
  if (tensor.maps() * map.channels * height * width == 0) return cudaSuccess;
  if (width * map.channels > kLongestRow) return cudaErrorInvalidValue;
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const NormGrid grid = NormGrid::of_elements(tensor, true);
    const ForwardArgs<T> args{static_cast<const T*>(x),     static_cast<const T*>(residual),  static_cast<T*>(y), map,
                              Slopes<C>(activation, false), static_cast<const C*>(parameters)};
    const auto kernel = tensor.channels_last ? norm_act_kernel<T, true> : norm_act_kernel<T, false>;
    return launch_blocks(kernel, grid.blocks, stream, args, grid,
                         has_whole_vectors<T>(tensor, {x, residual, y, parameters}));
  });
}

}  // namespace pix2pixhd::cuda
