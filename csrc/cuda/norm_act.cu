// Forward of norm_act.
//
// Memory traffic: x and the residual are read once, y is written once.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

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
