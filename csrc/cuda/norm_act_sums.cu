// Sums of the backward of norm_act.
//
// Memory traffic: grad and source are read once. The gradient of a pixel is the sum over the padded positions that it
// was copied to, so a sum over all pixels is one over all padded positions: neighbours in memory, without gathering
// copies.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

constexpr int kPairs = kLoads / 2;  // vectors of both tensors that a thread loads before it uses them

template <typename T>
struct SumArgs {
  const T* grad;
  const T* source;
  bool is_output;
  PaddedImage image;
  Slopes<Compute<T>> slopes;
  const Compute<T>* parameters;
};

template <typename T, int N>
__device__ inline void add_element(const SumArgs<T>& args, const AffineParameters<Compute<T>, N>& affine, int i, T grad,
                                   T source, Compute<T>& sum, Compute<T>& product) {
  const Masked<Compute<T>> masked =
      mask<Compute<T>>(widen(grad), widen(source), affine, i, args.slopes, args.is_output);
  sum += masked.gradient;
  product += masked.gradient * masked.centred;
}

// A vector at `first` in a padded plane that is not aligned, or not whole, or crosses the border.
template <typename T>
__device__ __attribute__((noinline)) Terms<Compute<T>> add_few(Terms<Compute<T>> terms, const SumArgs<T>& args,
                                                               const NormGrid& grid, int64_t map, int64_t first) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  const auto affine =
      AffineParameters<Compute<T>, 1>::template read<true>(parameters_of(args.parameters, map, 1, 0), 1, 1);
  const T* source = args.source + map * image.height * image.width;
  const T* grad = args.grad + map * grid.pixels;
  const Division<int64_t> start = grid.by_width.divide(first);
  const Place place{start.quotient, start.remainder};
  const Place from = padding_source(place, image);
  if (first + V <= grid.pixels && copies_neighbours<V>(place, from.row, image)) {
    const Wide<T> g = get<false>(grad + first, V);
    const Wide<T> x = get<false>(source + from.row * image.width + from.column, V);
#pragma unroll
    for (int i = 0; i < V; ++i) add_element(args, affine, 0, g.value[i], x.value[i], terms.first, terms.second);
    return terms;
  }
#pragma unroll 1
  for (int i = 0; i < V && first + i < grid.pixels; ++i) {
    const Division<int64_t> one = grid.by_width.divide(first + i);
    const Place copied = padding_source(Place{one.quotient, one.remainder}, image);
    if (copied.row < 0 || copied.column < 0) continue;
    add_element(args, affine, 0, grad[first + i], source[copied.row * image.width + copied.column], terms.first,
                terms.second);
  }
  return terms;
}

// Adds this thread's vectors of a chunk of a padded plane.
template <typename T>
__device__ inline TwoSums sum_plane(const SumArgs<T>& args, const NormGrid& grid, const NormChunk& chunk) {
  using C = Compute<T>;
  constexpr int V = kWide<T>;
  constexpr int kVectors = kTerms / V < kPairs ? kTerms / V : kPairs;  // that are added in C
  const PaddedImage& image = args.image;
  const auto affine =
      AffineParameters<C, 1>::template read<true>(parameters_of(args.parameters, chunk.map, 1, 0), 1, 1);
  const T* source = args.source + chunk.map * image.height * image.width;
  const T* grad = args.grad + chunk.map * grid.pixels + chunk.first;
  const int64_t left = grid.pixels - chunk.first;
  const auto pixels = static_cast<int>(left < kPlaneChunk ? left : kPlaneChunk);
  const ChunkStart start(grid, chunk.first);
  TwoSums sums{0.0, 0.0};
#pragma unroll 1
  for (int first = threadIdx.x * V; first < pixels; first += kPairs * kThreads * V) {
    Wide<T> g[kPairs];
    Wide<T> x[kPairs];
    bool whole[kPairs];
#pragma unroll
    for (int u = 0; u < kPairs; ++u) {
      const int at = first + u * kThreads * V;
      const Place place = start.after(grid, static_cast<uint32_t>(at));
      const int64_t row = padding_source(place.row, image.top, image.height, image.mode);
      const T* from = source + (row * image.width + place.column - image.left);
      whole[u] =
          at + V <= pixels && copies_neighbours<V>(place, row, image) && is_aligned(grad + at) && is_aligned(from);
      if (!whole[u]) continue;
      g[u] = get<true>(grad + at, V);
      x[u] = get<true>(from, V);
    }
#pragma unroll
    for (int u = 0; u < kPairs; u += kVectors) {
      Terms<C> terms{0, 0};
#pragma unroll
      for (int k = u; k < u + kVectors; ++k) {
        const int at = first + k * kThreads * V;
        if (whole[k]) {
#pragma unroll
          for (int i = 0; i < V; ++i) {
            add_element(args, affine, 0, g[k].value[i], x[k].value[i], terms.first, terms.second);
          }
        } else if (at < pixels) {
          terms = add_few(terms, args, grid, chunk.map, chunk.first + at);
        }
      }
      sums.first += terms.first;
      sums.second += terms.second;
    }
  }
  return sums;
}

// Adds this thread's channels of a chunk of padded pixels.
template <bool kWhole, typename T>
__device__ inline bool sum_channels(const SumArgs<T>& args, const NormGrid& grid, const NormChunk& chunk,
                                    TwoSums& sums) {
  using C = Compute<T>;
  constexpr int V = kWide<T>;
  static_assert(kDeepChunk == kTerms * kLanes);
  const PaddedImage& image = args.image;
  const int count = channel_count<T>(grid.channels, chunk.channel);
  const int64_t own = chunk.map * image.height * image.width * grid.channels + chunk.channel;
  const T* grad = args.grad + (chunk.map * grid.pixels + chunk.first) * grid.channels + chunk.channel;
  AffineParameters<C, V> affine{};
  if (count > 0) {
    affine = AffineParameters<C, V>::template read<kWhole>(
        parameters_of(args.parameters, chunk.map, grid.channels, chunk.channel), grid.channels, count);
  }
  const ChunkStart start(grid, chunk.first);
  Pack<C, V> first{};
  Pack<C, V> second{};
#pragma unroll 1
  for (uint32_t pixel = threadIdx.x / kChannelVectors; pixel < kDeepChunk; pixel += kPairs * kLanes) {
    Wide<T> g[kPairs];
    Wide<T> x[kPairs];
    bool inside[kPairs];
#pragma unroll
    for (int u = 0; u < kPairs; ++u) {
      const uint32_t at = pixel + u * kLanes;
      const Place from = padding_source(start.after(grid, at), image);
      inside[u] = count > 0 && chunk.first + at < grid.pixels && from.row >= 0 && from.column >= 0;
      if (!inside[u]) continue;
      g[u] = get<kWhole>(grad + at * grid.channels, count);
      x[u] = get<kWhole>(args.source + own + (from.row * image.width + from.column) * grid.channels, count);
    }
#pragma unroll
    for (int u = 0; u < kPairs; ++u) {
      if (!inside[u]) continue;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        add_element(args, affine, i, g[u].value[i], x[u].value[i], first.value[i], second.value[i]);
      }
    }
  }
  return channel_sums(first, second, sums);
}

// partial: the sums of g and of g * (z - kOffset) of each chunk and channel. whole: see has_whole_vectors.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_sums_kernel(const __grid_constant__ SumArgs<T> args, const __grid_constant__ NormGrid grid, bool whole,
                         double* __restrict__ partial) {
  allow_overlap();
  const NormChunk chunk = NormChunk::of<T, kLast>(grid);
  TwoSums sums;
  if constexpr (kLast) {
    if (!(whole ? sum_channels<true>(args, grid, chunk, sums) : sum_channels<false>(args, grid, chunk, sums))) return;
    if (chunk.group + threadIdx.x >= grid.channels) return;
    put_sums(partial, grid, chunk.index, chunk.group + threadIdx.x, sums);
  } else {
    sums = sum_plane(args, grid, chunk);
    if (block_sums(sums)) put_sums(partial, grid, chunk.index, 0, sums);
  }
}

// sums: [2, batch, channels]. One block per image and channel.
__global__ void __launch_bounds__(kThreads)
    finish_gradient_sums_kernel(const double* partial, NormTensor tensor, int64_t chunks, Divisor by_channels,
                                double* sums) {
  wait_for_previous_kernel();
  const Division<uint32_t> row = by_channels.divide(blockIdx.x);
  const int64_t n = row.quotient;
  const int64_t c = row.remainder;
  TwoSums own{0.0, 0.0};
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    const int64_t at = partial_at(tensor, chunks, n, c, i);
    own.first += partial[at];
    own.second += partial[at + tensor.map.channels];
  }
  if (!block_sums(own)) return;
  sums[blockIdx.x] = own.first;
  sums[tensor.batch * tensor.channels + blockIdx.x] = own.second;
}

}  // namespace

int norm_act_sums(const void* grad, const NormSource& source, const NormTensor& tensor,
                  const NormActivation& activation, const void* parameters, double* partial, double* sums,
                  Stream stream) {
  if (tensor.map.padded_width() * tensor.map.channels > kLongestRow) return cudaErrorInvalidValue;
  const NormGrid grid = NormGrid::of_sums(tensor, true);
  const int error = with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const SumArgs<T> args{static_cast<const T*>(grad),
                          static_cast<const T*>(source.data),
                          source.is_output,
                          tensor.map,
                          Slopes<C>(activation, source.is_output),
                          static_cast<const C*>(parameters)};
    const auto kernel = tensor.channels_last ? norm_act_sums_kernel<T, true> : norm_act_sums_kernel<T, false>;
    return launch_blocks(kernel, grid.blocks, stream, args, grid,
                         has_whole_vectors<T>(tensor, {grad, source.data, parameters}), partial);
  });
  if (error != cudaSuccess) return error;
  return launch_overlapping_blocks(grid.blocks, finish_gradient_sums_kernel, tensor.batch * tensor.channels, stream,
                                   static_cast<const double*>(partial), tensor, tensor.padded_chunks(),
                                   Divisor(tensor.channels), sums);
}

}  // namespace pix2pixhd::cuda
