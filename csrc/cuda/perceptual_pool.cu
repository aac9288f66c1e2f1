// Bias, ReLU and max-pooling of feature maps, forward and backward.
//
// Memory traffic: the forward reads the map once and writes a quarter of its size; the backward does the reverse. Both
// also access 3 bits per pooled element.
#include <type_traits>

#include "perceptual.cuh"

namespace pix2pixhd::cuda {
namespace {

// The assignment of pooling windows to blocks: a block handles kRow elements of one row of windows, a thread one
// vector. A vector never crosses two windows, because channels is a multiple of its size. Consecutive threads handle
// consecutive channels.
struct Windows {
  MapShape map;
  int64_t rows;    // rows of windows per image
  int64_t length;  // elements of one row of windows: columns * channels
  int64_t blocks_per_row;
  Divisor by_rows;
  Divisor by_blocks;  // per row
  Divisor by_channels;

  // row_elements per block
  Windows(const MapShape& shape, int64_t rows_, int64_t columns, int row_elements)
      : map(shape),
        rows(rows_),
        length(columns * shape.channels),
        blocks_per_row((length + row_elements - 1) / row_elements),
        by_rows(rows),
        by_blocks(blocks_per_row),
        by_channels(shape.channels) {}
};

// The vector of one thread.
struct Window {
  int64_t batch;
  int64_t row;
  int64_t at;      // first element, within the row of windows
  int64_t corner;  // upper left element of the window, within the map
  int64_t column;  // column of windows * channels
  uint32_t channel;

  template <typename T>
  static __device__ Window of(const Windows& windows, const T*) {
    const Division<uint32_t> block = windows.by_blocks.divide(blockIdx.x);
    const Division<uint32_t> row = windows.by_rows.divide(block.quotient);
    Window window;
    window.batch = row.quotient;
    window.row = row.remainder;
    window.at = static_cast<int64_t>(block.remainder) * kRow<T> + static_cast<int64_t>(threadIdx.x) * kVector<T>;
    window.channel = static_cast<uint32_t>(windows.by_channels.divide(window.at).remainder);
    window.column = window.at - window.channel;
    window.corner = (window.batch * windows.map.height + 2 * window.row) * windows.map.width * windows.map.channels +
                    window.at + window.column;
    return window;
  }
};

// Writes ReLU of the maximum of four vectors. Returns the bits of the planes: column from bit 0, row from bit 8, passed
// from bit 16.
template <bool kAligned, typename T>
__device__ inline unsigned pool_vector(const T* upper, int64_t to_right, int64_t to_lower, const ChannelVector<T>& bias,
                                       uint32_t channel, T* out) {
  constexpr int V = kVector<T>;
  Pack<T, V> corner[4] = {load<kAligned, V>(upper, 0, V, false), load<kAligned, V>(upper + to_right, 0, V, false),
                          load<kAligned, V>(upper + to_lower, 0, V, false),
                          load<kAligned, V>(upper + to_lower + to_right, 0, V, false)};
  if (bias.data != nullptr) {
    const Pack<T, V> own_bias = bias.template at<V>(channel);
#pragma unroll
    for (int k = 0; k < 4; ++k) add_bias(corner[k], own_bias);
  }
  Pack<T, V> best = corner[0];
  unsigned column = 0;
  unsigned row = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    int position = 0;
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      const Compute<T> value = widen(corner[k].value[c]);
      if (value > widen(best.value[c]) || value != value) {  // ties keep the first, NaN is the maximum: as in PyTorch
        best.value[c] = corner[k].value[c];
        position = k;
      }
    }
    column |= (position & 1u) << c;
    row |= (position >> 1 & 1u) << c;
  }
  const unsigned passed = relu_vector(best);
  store_vector<kAligned>(out, best);
  return column | row << 8 | passed << 16;
}

template <typename T, bool kAligned, bool kCodes>
__global__ void __launch_bounds__(kThreads)
    relu_pool_kernel(const T* __restrict__ x, T* __restrict__ out, uint32_t* __restrict__ codes, ChannelVector<T> bias,
                     Windows windows) {
  const Window window = Window::of(windows, x);
  const int64_t to_right = windows.map.channels;
  const int64_t to_lower = windows.map.width * windows.map.channels;
  const int64_t to = (window.batch * windows.rows + window.row) * windows.length + window.at;
  const bool inside = window.at < windows.length;
  unsigned bits = 0;
  if (inside) {
    bits = pool_vector<kAligned>(x + window.corner, to_right, to_lower, bias, window.channel, out + to);
  }
  if constexpr (kCodes) {
    const unsigned bytes = gather_bits<kVector<T>>(bits);
    if (inside) put_bits<3>(codes, to, bytes);
  }
}

template <bool kAligned, typename T, int V>
__device__ inline void store_where(T* out, const Pack<T, V>& pack, unsigned bits) {
  Pack<T, V> kept;
#pragma unroll
  for (int c = 0; c < V; ++c) kept.value[c] = bits >> c & 1u ? pack.value[c] : narrow<T>(0.0);
  store_vector<kAligned>(out, kept);
}

// Writes the gradient of a window's four corners, except those outside the map.
template <bool kAligned, typename T>
__device__ inline void spread_vector(const T* grad, const uint32_t* codes, T* out, const Windows& windows,
                                     const Window& window) {
  constexpr int V = kVector<T>;
  const MapShape& map = windows.map;
  const int64_t pooled_rows = map.height / 2;
  const int64_t pooled_length = map.width / 2 * map.channels;
  Pack<T, V> g;
#pragma unroll
  for (int c = 0; c < V; ++c) g.value[c] = narrow<T>(0.0);
  unsigned column = 0;
  unsigned row = 0;
  unsigned passed = 0;
  if (window.row < pooled_rows && window.at < pooled_length) {  // other windows are incomplete and were not pooled
    const int64_t from = (window.batch * pooled_rows + window.row) * pooled_length + window.at;
    g = load<kAligned, V>(grad + from, 0, V, false);
    column = get_bits<3>(codes, from, 0);
    row = get_bits<3>(codes, from, 1);
    passed = get_bits<3>(codes, from, 2);
  }
  const bool has_right = 2 * window.column + map.channels < map.width * map.channels;
  const bool has_lower = 2 * window.row + 1 < map.height;
  T* upper = out + window.corner;
  T* lower = upper + map.width * map.channels;
  store_where<kAligned>(upper, g, passed & ~column & ~row);
  if (has_right) store_where<kAligned>(upper + map.channels, g, passed & column & ~row);
  if (has_lower) store_where<kAligned>(lower, g, passed & ~column & row);
  if (has_right && has_lower) store_where<kAligned>(lower + map.channels, g, passed & column & row);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    relu_pool_backward_kernel(const T* __restrict__ grad, const uint32_t* __restrict__ codes, T* __restrict__ out,
                              Windows windows) {
  const Window window = Window::of(windows, grad);
  if (window.at >= windows.length) return;
  spread_vector<kAligned>(grad, codes, out, windows, window);
}

template <typename F>
int with_flag(bool flag, F&& f) {
  return flag ? f(std::true_type{}) : f(std::false_type{});
}

int64_t block_count(const Windows& windows) { return windows.map.batch * windows.rows * windows.blocks_per_row; }

}  // namespace

int relu_pool(const void* x, void* out, DType type, const MapShape& shape, const void* bias, uint32_t* codes,
              Stream stream) {
  return with_type(type, [&](auto t) {
    return with_flag(is_aligned(x) && is_aligned(out), [&](auto aligned) {
      using T = decltype(t);
      constexpr bool kAligned = decltype(aligned)::value;
      const auto kernel = codes != nullptr ? relu_pool_kernel<T, kAligned, true> : relu_pool_kernel<T, kAligned, false>;
      const Windows windows(shape, shape.height / 2, shape.width / 2, kRow<T>);
      return launch_blocks(kernel, block_count(windows), stream, static_cast<const T*>(x), static_cast<T*>(out), codes,
                           ChannelVector<T>(bias), windows);
    });
  });
}

int relu_pool_backward(const void* grad, void* out, DType type, const MapShape& shape, const uint32_t* codes,
                       Stream stream) {
  return with_type(type, [&](auto t) {
    return with_flag(is_aligned(grad) && is_aligned(out), [&](auto aligned) {
      using T = decltype(t);
      // Includes the incomplete windows at the edge of the map, whose gradient is zero.
      const Windows windows(shape, (shape.height + 1) / 2, (shape.width + 1) / 2, kRow<T>);
      return launch_blocks(relu_pool_backward_kernel<T, decltype(aligned)::value>, block_count(windows), stream,
                           static_cast<const T*>(grad), codes, static_cast<T*>(out), windows);
    });
  });
}

}  // namespace pix2pixhd::cuda
