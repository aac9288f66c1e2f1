// The elementwise parts of VGG: ReLU, the L1 term at a tapped layer, max-pooling, forward and backward.
//
// Limit: every map is read once and written once, in place where there is a place; beside it 1 to 3 bits an element.
//
// Bits: a thread holds 8 elements of a half type, 4 of another, so 8 bits or 4, and two neighbours make a byte. Bytes
// in order are words in order, as both the GPU and the host are little-endian.
#include <cstring>
#include <type_traits>

#include "device.cuh"
#include "vgg.h"

namespace pix2pixhd::cuda {
namespace {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // limit of gridDim.x
static_assert(kMapChunk % 32 == 0, "a word belongs to one block");

template <typename T>
using Compute = typename Wider<T, T>::type;

// Consecutive elements that a block's threads take at a time, one vector each.
template <typename T>
constexpr int kRow = kThreads * kVector<T>;

// What ReLU lets through: NaN too.
template <typename C>
__device__ inline bool is_alive(C x) {
  return !(x <= 0);
}

// One whole vector. An intrinsic, as the compiler takes apart the plain stores of what it has chosen element by
// element.
template <bool kAligned, typename T, int V>
__device__ inline void store_vector(T* x, const Pack<T, V>& pack) {
  if constexpr (kAligned) {
    uint4 words[sizeof(pack) / sizeof(uint4)];
    memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) {
      __stwb(reinterpret_cast<uint4*>(x) + i, words[i]);
    }
  } else {
    store<false, V>(x, 0, V, false, pack);
  }
}

// Completes the bytes of planes, which begin at bits 0, 8, 16: valid where a byte of elements begins. All lanes take
// part.
template <int V>
__device__ inline unsigned gather_bits(unsigned bits) {
  static_assert(V == 4 || V == 8, "a byte is two threads' or one's");
  if constexpr (V == 4) bits |= __shfl_down_sync(kFullWarp, bits, 1) << 4;
  return bits;
}

// Where the byte of element `at` is in the first of several planes; the others follow at steps of 4 bytes.
template <int kPlanes>
__device__ inline int64_t byte_index(int64_t at) {
  return at / 32 * (4 * kPlanes) + at / 8 % 4;
}

template <int kPlanes>
__device__ inline void put_bits(uint32_t* words, int64_t at, unsigned bits) {
  if (at % 8 != 0) return;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(words) + byte_index<kPlanes>(at);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) bytes[4 * plane] = static_cast<uint8_t>(bits >> 8 * plane);
}

// The bit of element `at` in bit 0, those of its thread's next ones above it.
template <int kPlanes>
__device__ inline unsigned get_bits(const uint32_t* words, int64_t at, int plane) {
  return reinterpret_cast<const uint8_t*>(words)[byte_index<kPlanes>(at) + 4 * plane] >> at % 8;
}

// What one block works on: count elements from begin on.
struct MapPart {
  int64_t begin;
  int count;
  bool whole;  // kMapChunk elements with 16-byte accesses
};

__device__ inline MapPart find_part(int64_t n, bool aligned) {
  const int64_t begin = blockIdx.x * kMapChunk;
  const int count = static_cast<int>(n - begin < kMapChunk ? n - begin : kMapChunk);
  return {begin, count, aligned && count == kMapChunk};
}

// The elements beyond the end that share a word with the last: they load as zero, and the padding becomes zero.
__device__ inline int padded(int count) { return (count + 31) / 32 * 32; }

// ReLU of one vector in place; returns the bits of what it lets through.
template <typename T, int V>
__device__ inline unsigned relu_vector(Pack<T, V>& pack) {
  unsigned bits = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    const bool alive = is_alive(widen(pack.value[c]));
    pack.value[c] = alive ? pack.value[c] : narrow<T>(0.0);
    bits |= alive ? 1u << c : 0u;
  }
  return bits;
}

template <bool kWhole, bool kMask, typename T>
__device__ inline void relu_part(T* x, uint32_t* mask, int count, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  Pack<T, V> pack[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) pack[u] = load<kWhole, V>(x, first + u * kRow<T>, count, aligned);
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    const unsigned bits = relu_vector(pack[u]);
    store<kWhole, V>(x, at, count, aligned, pack[u]);
    if constexpr (kMask) {
      const unsigned bytes = gather_bits<V>(bits);
      if (kWhole || at < padded(count)) put_bits<1>(mask, at, bytes);
    }
  }
}

template <typename T, bool kMask>
__global__ void __launch_bounds__(kThreads) relu_kernel(T* x, uint32_t* mask, int64_t n, bool aligned) {
  const MapPart part = find_part(n, aligned);
  uint32_t* words = kMask ? mask + part.begin / 32 : nullptr;
  if (part.whole) {
    relu_part<true, kMask>(x + part.begin, words, part.count, true);
  } else {
    relu_part<false, kMask>(x + part.begin, words, part.count, aligned);
  }
}

// ReLU of both sides; returns this thread's part of the sum.
template <bool kWhole, bool kBits, typename T>
__device__ inline double relu_l1_part(T* x, T* y, uint32_t* signs, uint32_t* mask, int count, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  Pack<T, V> a[kRows];
  Pack<T, V> b[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    a[u] = load<kWhole, V>(x, first + u * kRow<T>, count, aligned);
    b[u] = load<kWhole, V>(y, first + u * kRow<T>, count, aligned);
  }
  double sum = 0.0;
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    unsigned bits = relu_vector(a[u]);
    relu_vector(b[u]);
    store<kWhole, V>(x, at, count, aligned, a[u]);
    store<kWhole, V>(y, at, count, aligned, b[u]);
    Compute<T> terms = 0;  // one vector's before double
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const Compute<T> difference = widen(a[u].value[c]) - widen(b[u].value[c]);
      terms += difference < 0 ? -difference : difference;
      bits |= difference > 0 ? 0x100u << c : difference < 0 ? 0x10000u << c : 0u;
    }
    sum += terms;
    if constexpr (kBits) {
      const unsigned bytes = gather_bits<V>(bits);
      if (kWhole || at < padded(count)) {
        put_bits<1>(mask, at, bytes);
        put_bits<2>(signs, at, bytes >> 8);
      }
    }
  }
  return sum;
}

template <typename T, bool kBits>
__global__ void __launch_bounds__(kThreads)
    relu_l1_kernel(T* input, T* target, uint32_t* __restrict__ signs, uint32_t* __restrict__ mask,
                   double* __restrict__ partial, int64_t n, bool aligned) {
  const MapPart part = find_part(n, aligned);
  T* x = input + part.begin;
  T* y = target + part.begin;
  uint32_t* sign_words = kBits ? signs + part.begin / 16 : nullptr;
  uint32_t* mask_words = kBits ? mask + part.begin / 32 : nullptr;
  const double sum = part.whole ? relu_l1_part<true, kBits>(x, y, sign_words, mask_words, part.count, true)
                                : relu_l1_part<false, kBits>(x, y, sign_words, mask_words, part.count, aligned);
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total / static_cast<double>(n);
}

template <bool kWhole, bool kSigns, typename T>
__device__ inline void relu_l1_backward_part(T* grad, const uint32_t* mask, const uint32_t* signs,
                                             Compute<T> coefficient, int count, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  Pack<T, V> pack[kRows];
  unsigned alive[kRows] = {};
  unsigned positive[kRows] = {};
  unsigned negative[kRows] = {};
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    pack[u] = load<kWhole, V>(grad, at, count, aligned);
    if (!kWhole && at >= count) continue;
    alive[u] = get_bits<1>(mask, at, 0);
    if constexpr (kSigns) {
      positive[u] = get_bits<2>(signs, at, 0);
      negative[u] = get_bits<2>(signs, at, 1);
    }
  }
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
#pragma unroll
    for (int c = 0; c < V; ++c) {
      T value = pack[u].value[c];
      if constexpr (kSigns) {
        const Compute<T> term = positive[u] >> c & 1u   ? coefficient
                                : negative[u] >> c & 1u ? -coefficient
                                                        : Compute<T>(0);
        value = narrow<T>(widen(value) + term);
      }
      pack[u].value[c] = alive[u] >> c & 1u ? value : narrow<T>(0.0);
    }
    store<kWhole, V>(grad, first + u * kRow<T>, count, aligned, pack[u]);
  }
}

template <typename T, bool kSigns>
__global__ void __launch_bounds__(kThreads)
    relu_l1_backward_kernel(T* __restrict__ grad, const uint32_t* __restrict__ mask, const uint32_t* __restrict__ signs,
                            Compute<T> coefficient, int64_t n, bool aligned) {
  const MapPart part = find_part(n, aligned);
  T* g = grad + part.begin;
  const uint32_t* mask_words = mask + part.begin / 32;
  const uint32_t* sign_words = kSigns ? signs + part.begin / 16 : nullptr;
  if (part.whole) {
    relu_l1_backward_part<true, kSigns>(g, mask_words, sign_words, coefficient, part.count, true);
  } else {
    relu_l1_backward_part<false, kSigns>(g, mask_words, sign_words, coefficient, part.count, aligned);
  }
}

// How pooling's windows are shared out: kRow elements of one row of windows to a block, a vector to a thread. A vector
// never crosses from one window to the next, as channels are a multiple of it; consecutive threads are on consecutive
// channels.
struct Windows {
  MapShape map;
  int64_t rows;    // of windows in one map
  int64_t length;  // elements of one row of windows: columns * channels
  int64_t blocks_per_row;
};

// One thread's vector of windows.
struct Window {
  int64_t batch;
  int64_t row;
  int64_t at;      // in the row of windows
  int64_t corner;  // upper left, in the map
  int64_t column;  // times channels

  template <typename T>
  static __device__ Window of(const Windows& windows, const T*) {
    const int64_t row = blockIdx.x / static_cast<uint64_t>(windows.blocks_per_row);
    const int64_t block = blockIdx.x % static_cast<uint64_t>(windows.blocks_per_row);
    Window window;
    window.batch = row / windows.rows;
    window.row = row % windows.rows;
    window.at = block * kRow<T> + static_cast<int64_t>(threadIdx.x) * kVector<T>;
    window.column = window.at / windows.map.channels * windows.map.channels;
    window.corner = (window.batch * windows.map.height + 2 * window.row) * windows.map.width * windows.map.channels +
                    window.at + window.column;
    return window;
  }
};

// The maximum of four vectors, through ReLU. Returns the planes' bits: column from bit 0, row from bit 8, alive from
// bit 16.
template <bool kAligned, typename T>
__device__ inline unsigned pool_vector(const T* upper, int64_t to_right, int64_t to_lower, T* out) {
  constexpr int V = kVector<T>;
  const Pack<T, V> corner[4] = {load<kAligned, V>(upper, 0, V, false), load<kAligned, V>(upper + to_right, 0, V, false),
                                load<kAligned, V>(upper + to_lower, 0, V, false),
                                load<kAligned, V>(upper + to_lower + to_right, 0, V, false)};
  Pack<T, V> best = corner[0];
  unsigned column = 0;
  unsigned row = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    int position = 0;
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      const Compute<T> value = widen(corner[k].value[c]);
      if (value > widen(best.value[c]) || value != value) {  // the first of equals stays, a NaN wins: as in PyTorch
        best.value[c] = corner[k].value[c];
        position = k;
      }
    }
    column |= (position & 1u) << c;
    row |= (position >> 1 & 1u) << c;
  }
  const unsigned alive = relu_vector(best);
  store_vector<kAligned>(out, best);
  return column | row << 8 | alive << 16;
}

template <typename T, bool kAligned, bool kCodes>
__global__ void __launch_bounds__(kThreads)
    relu_pool_kernel(const T* __restrict__ x, T* __restrict__ out, uint32_t* __restrict__ codes, Windows windows) {
  const Window window = Window::of(windows, x);
  const int64_t to_right = windows.map.channels;
  const int64_t to_lower = windows.map.width * windows.map.channels;
  const int64_t to = (window.batch * windows.rows + window.row) * windows.length + window.at;
  const bool inside = window.at < windows.length;
  unsigned bits = 0;
  if (inside) bits = pool_vector<kAligned>(x + window.corner, to_right, to_lower, out + to);
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

// A window's gradient: its four corners, or those of them that the map has.
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
  unsigned alive = 0;
  if (window.row < pooled_rows && window.at < pooled_length) {  // others had no part in pooling
    const int64_t from = (window.batch * pooled_rows + window.row) * pooled_length + window.at;
    g = load<kAligned, V>(grad + from, 0, V, false);
    column = get_bits<3>(codes, from, 0);
    row = get_bits<3>(codes, from, 1);
    alive = get_bits<3>(codes, from, 2);
  }
  const bool has_right = 2 * window.column + map.channels < map.width * map.channels;
  const bool has_lower = 2 * window.row + 1 < map.height;
  T* upper = out + window.corner;
  T* lower = upper + map.width * map.channels;
  store_where<kAligned>(upper, g, alive & ~column & ~row);
  if (has_right) store_where<kAligned>(upper + map.channels, g, alive & column & ~row);
  if (has_lower) store_where<kAligned>(lower, g, alive & ~column & row);
  if (has_right && has_lower) store_where<kAligned>(lower + map.channels, g, alive & column & row);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    relu_pool_backward_kernel(const T* __restrict__ grad, const uint32_t* __restrict__ codes, T* __restrict__ out,
                              Windows windows) {
  const Window window = Window::of(windows, grad);
  if (window.at >= windows.length) return;
  spread_vector<kAligned>(grad, codes, out, windows, window);
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <typename F>
int with_flag(bool flag, F&& f) {
  return flag ? f(std::true_type{}) : f(std::false_type{});
}

// launch_kernel for a number of blocks that may be none, or more than a grid takes.
template <typename... Parameters, typename... Arguments>
int launch_blocks(void (*kernel)(Parameters...), int64_t blocks, Stream stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  return launch_kernel(kernel, static_cast<int>(blocks), stream, arguments...);
}

// Windows of `rows` by `columns`, shared out to blocks of row_elements each.
Windows share_out(const MapShape& map, int64_t rows, int64_t columns, int row_elements) {
  const int64_t length = columns * map.channels;
  return {map, rows, length, (length + row_elements - 1) / row_elements};
}

int64_t block_count(const Windows& windows) { return windows.map.batch * windows.rows * windows.blocks_per_row; }

}  // namespace

int relu(void* x, DType type, int64_t n, uint32_t* mask, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = mask != nullptr ? relu_kernel<T, true> : relu_kernel<T, false>;
    return launch_blocks(kernel, map_blocks(n), stream, static_cast<T*>(x), mask, n, is_aligned(x));
  });
}

int relu_l1(void* input, void* target, DType type, int64_t n, uint32_t* signs, uint32_t* mask, double* partial,
            Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = signs != nullptr ? relu_l1_kernel<T, true> : relu_l1_kernel<T, false>;
    return launch_blocks(kernel, map_blocks(n), stream, static_cast<T*>(input), static_cast<T*>(target), signs, mask,
                         partial, n, is_aligned(input) && is_aligned(target));
  });
}

int relu_l1_backward(void* grad, DType type, int64_t n, const uint32_t* mask, const uint32_t* signs, double coefficient,
                     Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = signs != nullptr ? relu_l1_backward_kernel<T, true> : relu_l1_backward_kernel<T, false>;
    return launch_blocks(kernel, map_blocks(n), stream, static_cast<T*>(grad), mask, signs,
                         static_cast<Compute<T>>(coefficient), n, is_aligned(grad));
  });
}

int relu_pool(const void* x, void* out, DType type, const MapShape& shape, uint32_t* codes, Stream stream) {
  return with_type(type, [&](auto t) {
    return with_flag(is_aligned(x) && is_aligned(out), [&](auto aligned) {
      using T = decltype(t);
      constexpr bool kAligned = decltype(aligned)::value;
      const auto kernel = codes != nullptr ? relu_pool_kernel<T, kAligned, true> : relu_pool_kernel<T, kAligned, false>;
      const Windows windows = share_out(shape, shape.height / 2, shape.width / 2, kRow<T>);
      return launch_blocks(kernel, block_count(windows), stream, static_cast<const T*>(x), static_cast<T*>(out), codes,
                           windows);
    });
  });
}

int relu_pool_backward(const void* grad, void* out, DType type, const MapShape& shape, const uint32_t* codes,
                       Stream stream) {
  return with_type(type, [&](auto t) {
    return with_flag(is_aligned(grad) && is_aligned(out), [&](auto aligned) {
      using T = decltype(t);
      // Windows that the map's edge cuts off too: their elements' gradient is zero.
      const Windows windows = share_out(shape, (shape.height + 1) / 2, (shape.width + 1) / 2, kRow<T>);
      return launch_blocks(relu_pool_backward_kernel<T, decltype(aligned)::value>, block_count(windows), stream,
                           static_cast<const T*>(grad), codes, static_cast<T*>(out), windows);
    });
  });
}

}  // namespace pix2pixhd::cuda
