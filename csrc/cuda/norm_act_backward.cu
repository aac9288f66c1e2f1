// Backward of norm_act: the gradients of x and of the residual.
//
// Memory traffic: grad and source are read once, each gradient is written once. The gradient of a pixel is the sum over
// the padded positions that it was copied to, in a fixed order: no atomics.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
};

// The padded positions that pixel `i` is copied to along one dimension: its own, those before the image, and those
// after it. Computed when needed, because an array of them would be in local memory.
__device__ inline Range copies_of(int which, int64_t i, int64_t before, int64_t size, int64_t after, PaddingMode mode) {
  if (which == 0) return {before + i, before + i + 1};
  if (mode == PaddingMode::kReflect) {
    const int64_t copy = which == 1 ? before - i : before + 2 * (size - 1) - i;
    const bool exists = which == 1 ? i >= 1 && i <= before : i <= size - 2 && i >= size - 1 - after;
    return {copy, exists ? copy + 1 : copy};
  }
  if (mode == PaddingMode::kReplicate && which == 1 && i == 0) return {0, before};
  if (mode == PaddingMode::kReplicate && which == 2 && i == size - 1) return {before + size, before + size + after};
  return {0, 0};
}

// Calls f(padded pixel) for all copies of a pixel, in a fixed order.
template <typename F>
__device__ inline void for_copies(const PaddedImage& image, int64_t row, int64_t column, const F& f) {
  const int64_t width = image.left + image.width + image.right;
#pragma unroll 1
  for (int i = 0; i < 9; ++i) {
    const Range rows = copies_of(i / 3, row, image.top, image.height, image.bottom, image.mode);
    const Range columns = copies_of(i % 3, column, image.left, image.width, image.right, image.mode);
#pragma unroll 1
    for (int64_t r = rows.begin; r < rows.end; ++r) {
#pragma unroll 1
      for (int64_t k = columns.begin; k < columns.end; ++k) f(r * width + k);
    }
  }
}

template <typename T>
struct BackwardArgs {
  const T* grad;
  const T* source;
  bool is_output;
  bool through_statistics;
  T* grad_x;         // or null
  T* grad_residual;  // or null
  PaddedImage image;
  Slopes<Compute<T>> slopes;
  const Compute<T>* parameters;
};

// Whether N neighbouring pixels of a row were copied to one padded position each. Zero padding copies nothing.
template <int N>
__device__ inline bool is_inner(const Place& place, const PaddedImage& image) {
  if (image.mode == PaddingMode::kZero) return true;
  return place.row > image.top && place.row < image.height - 1 - image.bottom && place.column > image.left &&
         place.column + N - 1 < image.width - 1 - image.right;
}

// The index of a pixel's own copy in the padded map.
__device__ inline int64_t padded_pixel(const Place& place, const PaddedImage& image) {
  return (place.row + image.top) * (image.left + image.width + image.right) + place.column + image.left;
}

// The gradient of a pixel of a plane. grad: of the first padded pixel.
template <typename T>
__device__ inline Compute<T> gather(const T* grad, const PaddedImage& image, const Place& place) {
  if (is_inner<1>(place, image)) return widen(grad[padded_pixel(place, image)]);
  Compute<T> sum = 0;
  for_copies(image, place.row, place.column, [&](int64_t pixel) { sum = sum + widen(grad[pixel]); });
  return sum;
}

// The parameters of a vector.
template <typename C, int N>
struct BackwardParameters {
  AffineParameters<C, N> affine;
  Parameter<C, N> centred;
  Parameter<C, N> constant;

  // The last two are defined if the backward differentiates through the statistics.
  template <bool kWhole>
  static __device__ BackwardParameters read(const C* own, int64_t channels, int count, bool through_statistics) {
    BackwardParameters parameters;
    parameters.affine = AffineParameters<C, N>::template read<kWhole>(own, channels, count);
    if (through_statistics) {
      parameters.centred = read_parameter<kWhole, N>(own, kCentred, channels, count);
      parameters.constant = read_parameter<kWhole, N>(own, kConstant, channels, count);
    }
    return parameters;
  }
};

template <typename T, int N>
__device__ inline T backward_element(const BackwardArgs<T>& args, const BackwardParameters<Compute<T>, N>& parameters,
                                     int i, Compute<T> gradient, T source) {
  using C = Compute<T>;
  const Masked<C> masked = mask<C>(gradient, widen(source), parameters.affine, i, args.slopes, args.is_output);
  C result = masked.gradient;
  if (args.through_statistics) {
    const C mean = parameters.centred[i] * masked.centred + parameters.constant[i];
    result = result + mean;
  }
  return narrow<T>(parameters.affine.scale[i] * result);
}

// Writes both gradients of a vector at `at`, from the sum over the copies. kWhole: of whole, aligned vectors.
template <bool kWhole, typename T, int N>
__device__ inline void write_gradients(const BackwardArgs<T>& args, const BackwardParameters<Compute<T>, N>& parameters,
                                       int64_t at, int count, const Pack<Compute<T>, kWide<T>>& gradient,
                                       const Wide<T>& source) {
  if (args.grad_residual != nullptr) {
    Wide<T> result;
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) result.value[i] = narrow<T>(gradient.value[i]);
    put<kWhole>(args.grad_residual + at, count, result);
  }
  if (args.grad_x == nullptr) return;
  Wide<T> result;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) {
    result.value[i] = backward_element(args, parameters, i, gradient.value[i], source.value[i]);
  }
  put<kWhole>(args.grad_x + at, count, result);
}

template <typename T>
__device__ inline Pack<Compute<T>, kWide<T>> widen_vector(const Wide<T>& pack) {
  Pack<Compute<T>, kWide<T>> wide;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) wide.value[i] = widen(pack.value[i]);
  return wide;
}

// A vector at `first` in a plane that is not aligned, or not whole, or whose pixels have several copies.
template <typename T>
__device__ __attribute__((noinline)) void backward_few(const BackwardArgs<T>& args, const NormGrid& grid, int64_t map,
                                                       int64_t first) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  const auto parameters = BackwardParameters<Compute<T>, 1>::template read<true>(
      parameters_of(args.parameters, map, 1, 0), 1, 1, args.through_statistics);
  const int64_t own = map * grid.pixels;
  const T* grad =
      args.grad + map * (image.top + image.height + image.bottom) * (image.left + image.width + image.right);
  const Division<int64_t> start = grid.by_width.divide(first < 0 ? 0 : first);
  const Place place{start.quotient, start.remainder};
  if (first >= 0 && place.column + V <= image.width && is_inner<V>(place, image)) {
    const Wide<T> g = get<false>(grad + padded_pixel(place, image), V);
    Wide<T> source = zeros<T>();
    if (args.grad_x != nullptr) source = get<false>(args.source + own + first, V);
    write_gradients<false>(args, parameters, own + first, V, widen_vector<T>(g), source);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < V; ++i) {
    if (first + i < 0 || first + i >= grid.pixels) continue;
    const Division<int64_t> one = grid.by_width.divide(first + i);
    const Compute<T> g = gather(grad, image, Place{one.quotient, one.remainder});
    const int64_t at = own + first + i;
    if (args.grad_residual != nullptr) args.grad_residual[at] = narrow<T>(g);
    if (args.grad_x != nullptr) args.grad_x[at] = backward_element(args, parameters, 0, g, args.source[at]);
  }
}

template <typename T>
__device__ inline bool are_aligned(const BackwardArgs<T>& args, int64_t at) {
  return (args.grad_x == nullptr || (is_aligned(args.grad_x + at) && is_aligned(args.source + at))) &&
         (args.grad_residual == nullptr || is_aligned(args.grad_residual + at));
}

template <typename T>
__device__ inline void backward_plane(const BackwardArgs<T>& args, const NormGrid& grid, const NormChunk& chunk) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  const int64_t own = chunk.map * grid.pixels;
  const T* grad =
      args.grad + chunk.map * (image.top + image.height + image.bottom) * (image.left + image.width + image.right);
  const T* written = args.grad_x != nullptr ? args.grad_x : args.grad_residual;
  const int64_t begin = chunk.first - elements_past_boundary(written + own);
  const ChunkStart start(grid, begin < 0 ? 0 : begin);
  const auto before = static_cast<int>(begin < 0 ? begin : 0);  // of the plane
  Wide<T> g[kLoads];
  Wide<T> source[kLoads];
  bool whole[kLoads];
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int offset = before + static_cast<int>(threadIdx.x + u * kThreads) * V;
    const int64_t at = begin - before + offset;
    const Place place = start.after(grid, static_cast<uint32_t>(offset < 0 ? 0 : offset));
    const T* from = grad + padded_pixel(place, image);
    whole[u] = offset >= 0 && at + V <= grid.pixels && place.column + V <= image.width && is_inner<V>(place, image) &&
               is_aligned(from) && are_aligned(args, own + at);
    if (!whole[u]) continue;
    g[u] = get<true>(from, V);
    if (args.grad_x != nullptr) source[u] = get<true>(args.source + own + at, V);
  }
  const auto parameters = BackwardParameters<Compute<T>, 1>::template read<true>(
      parameters_of(args.parameters, chunk.map, 1, 0), 1, 1, args.through_statistics);
  unsigned others = 0;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const int64_t at = begin + static_cast<int>(threadIdx.x + u * kThreads) * V;
    if (whole[u]) {
      write_gradients<true>(args, parameters, own + at, V, widen_vector<T>(g[u]), source[u]);
    } else if (at < grid.pixels) {
      others |= 1u << u;
    }
  }
  if (others == 0) return;
#pragma unroll 1
  for (int u = 0; u < kLoads; ++u) {
    const int64_t at = begin + static_cast<int>(threadIdx.x + u * kThreads) * V;
    if (others >> u & 1u) backward_few(args, grid, chunk.map, at);
  }
}

// The channels of a pixel that has several copies. grad: of the first padded pixel.
template <bool kWhole, typename T>
__device__ __attribute__((noinline)) void backward_copies(const BackwardArgs<T>& args, const NormChunk& chunk,
                                                          const T* grad, int64_t row, int64_t column, int64_t at,
                                                          int count) {
  const PaddedImage& image = args.image;
  Pack<Compute<T>, kWide<T>> sum{};
  for_copies(image, row, column, [&](int64_t pixel) {
    const Wide<T> one = get<kWhole>(grad + pixel * image.channels, count);
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) sum.value[i] = sum.value[i] + widen(one.value[i]);
  });
  const auto parameters = BackwardParameters<Compute<T>, kWide<T>>::template read<kWhole>(
      parameters_of(args.parameters, chunk.map, image.channels, chunk.channel), image.channels, count,
      args.through_statistics);
  Wide<T> source = zeros<T>();
  if (args.grad_x != nullptr) source = get<kWhole>(args.source + at, count);
  write_gradients<kWhole>(args, parameters, at, count, sum, source);
}

template <bool kWhole, typename T>
__device__ inline void backward_channels(const BackwardArgs<T>& args, const NormGrid& grid, const NormChunk& chunk) {
  constexpr int V = kWide<T>;
  const PaddedImage& image = args.image;
  const int count = channel_count<T>(grid.channels, chunk.channel);
  if (count == 0) return;
  const int64_t own = (chunk.map * grid.pixels + chunk.first) * grid.channels + chunk.channel;
  const int64_t padded = (image.top + image.height + image.bottom) * (image.left + image.width + image.right);
  const T* grad = args.grad + chunk.map * padded * grid.channels + chunk.channel;
  const ChunkStart start(grid, chunk.first);
  const uint32_t lane = threadIdx.x >> grid.shift;
  Wide<T> g[kLoads];
  Wide<T> source[kLoads];
  unsigned inner = 0;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint32_t pixel = lane + u * (kThreads >> grid.shift);
    const Place place = start.after(grid, pixel);
    if (chunk.first + pixel >= grid.pixels || !is_inner<1>(place, image)) continue;
    inner |= 1u << u;
    g[u] = get<kWhole>(grad + padded_pixel(place, image) * grid.channels, count);
    if (args.grad_x != nullptr) source[u] = get<kWhole>(args.source + own + pixel * grid.channels, count);
  }
  if (inner != 0) {
    const auto parameters = BackwardParameters<Compute<T>, V>::template read<kWhole>(
        parameters_of(args.parameters, chunk.map, grid.channels, chunk.channel), grid.channels, count,
        args.through_statistics);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const uint32_t pixel = lane + u * (kThreads >> grid.shift);
      if (inner >> u & 1u) {
        write_gradients<kWhole>(args, parameters, own + pixel * grid.channels, count, widen_vector<T>(g[u]), source[u]);
      }
    }
  }
  if (inner == (1u << kLoads) - 1) return;
#pragma unroll 1
  for (int u = 0; u < kLoads; ++u) {
    const uint32_t pixel = lane + u * (kThreads >> grid.shift);
    if (inner >> u & 1u || chunk.first + pixel >= grid.pixels) continue;
    const Place place = start.after(grid, pixel);
    backward_copies<kWhole>(args, chunk, grad, place.row, place.column, own + pixel * grid.channels, count);
  }
}

// whole: see has_whole_vectors.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_backward_kernel(const __grid_constant__ BackwardArgs<T> args, const __grid_constant__ NormGrid grid,
                             bool whole) {
  const NormChunk chunk = NormChunk::of<T, kLast>(grid);
  if constexpr (!kLast) {
    backward_plane(args, grid, chunk);
  } else if (whole) {
    backward_channels<true>(args, grid, chunk);
  } else {
    backward_channels<false>(args, grid, chunk);
  }
}

// Without padding all pixels are read in place, as with zero padding.
PaddedImage image_of(const NormTensor& tensor) {
  PaddedImage image = tensor.map;
  if (!image.is_padded()) image.mode = PaddingMode::kZero;
  return image;
}

}  // namespace

int norm_act_backward(const void* grad, const NormSource& source, void* grad_x, void* grad_residual,
                      const NormTensor& tensor, const NormActivation& activation, const void* parameters,
                      Stream stream) {
  const PaddedImage& map = tensor.map;
  if (tensor.maps() * map.channels * map.pixels() == 0) return cudaSuccess;
  if (map.width * map.channels > kLongestRow) return cudaErrorInvalidValue;
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const NormGrid grid = NormGrid::of_elements(tensor, false);
    const BackwardArgs<T> args{static_cast<const T*>(grad),
                               static_cast<const T*>(source.data),
                               source.is_output,
                               source.through_statistics,
                               static_cast<T*>(grad_x),
                               static_cast<T*>(grad_residual),
                               image_of(tensor),
                               Slopes<C>(activation, source.is_output),
                               static_cast<const C*>(parameters)};
    const auto kernel = tensor.channels_last ? norm_act_backward_kernel<T, true> : norm_act_backward_kernel<T, false>;
    return launch_blocks(kernel, grid.blocks, stream, args, grid,
                         has_whole_vectors<T>(tensor, {grad, source.data, grad_x, grad_residual, parameters}));
  });
}

}  // namespace pix2pixhd::cuda
