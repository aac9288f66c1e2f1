// Device helpers for the norm_act kernels: assignment of vectors to threads, parameters, and sums in a fixed order.
//
// The limit is the memory traffic per element: of a 16-bit type 2 bytes for the statistics, 4 for the forward and for
// the sums of the backward, 6 for the backward. In the time of these an A100 or H100 issues about 21, 43 and 65
// instructions per thread and element, of which the arithmetic needs about 6, 10 (sums: 17) and 20. Positions,
// alignment and padding are therefore computed once per 16-byte vector, and parameters loaded once per thread. Vectors
// that are not whole or not aligned, and those at the border of a plane, are left to functions that are not inlined:
// few vectors need them, and their registers would limit the threads of all.
#pragma once

#include <initializer_list>

#include "device.cuh"
#include "norm_act.h"
#include "perceptual.cuh"

namespace pix2pixhd::cuda {

template <typename T>
constexpr int kWide = static_cast<int>(16 / sizeof(T));  // elements of a 16-byte vector
template <typename T>
using Wide = Pack<T, kWide<T>>;

constexpr int kLoads = 4;                           // vectors of a tensor that a thread loads before it uses them
constexpr int kChannelVectors = 8;                  // most vectors of channels of a block: 128 bytes of a pixel
constexpr int kLanes = kThreads / kChannelVectors;  // pixels that such a block processes at a time

inline int wide_of(DType type) {
  return with_type(type, [](auto t) { return kWide<decltype(t)>; });
}

// The split of the pixels of feature maps over blocks. In a map of one channel (a plane) a vector is neighbouring
// pixels. In a map of several channels it is neighbouring channels of a pixel, of which a thread keeps the same for all
// its pixels, with their parameters.
struct NormGrid {
  int64_t pixels;  // of a map, or of a padded map
  int64_t channels;
  int64_t chunk;  // pixels of a block
  int64_t chunks;
  int64_t groups;  // of the vectors of channels
  int64_t blocks;
  uint32_t shift;  // a group is 2^shift vectors
  Divisor by_groups;
  Divisor by_chunks;
  Divisor by_width;

  // For kernels that sum. padded: over the padded positions.
  static NormGrid of_sums(const NormTensor& tensor, bool padded) {
    return {tensor, padded, kChannelShift, tensor.channels_last ? kDeepChunk : kPlaneChunk, 0};
  }
  // For elementwise kernels. Vectors of planes are aligned in the output, so that a plane may need one more.
  static NormGrid of_elements(const NormTensor& tensor, bool padded) {
    const int64_t wide = wide_of(tensor.type);
    if (!tensor.channels_last) return {tensor, padded, 0, kThreads * kLoads * wide, wide - 1};
    uint32_t shift = 0;
    while (shift < kChannelShift && (wide << shift) < tensor.map.channels) ++shift;
    return {tensor, padded, shift, kLoads * (kThreads >> shift), 0};
  }

 private:
  static constexpr uint32_t kChannelShift = 3;
  static_assert(kChannelVectors == 1 << kChannelShift);

  NormGrid(const NormTensor& tensor, bool padded, uint32_t shift_, int64_t chunk_, int64_t slack)
      : pixels(padded ? tensor.map.padded_height() * tensor.map.padded_width() : tensor.map.pixels()),
        channels(tensor.map.channels),
        chunk(chunk_),
        chunks(pixels > 0 ? (pixels + slack + chunk - 1) / chunk : 0),
        groups(tensor.channels_last ? groups_of(channels, int64_t{wide_of(tensor.type)} << shift_) : 1),
        blocks(tensor.maps() * chunks * groups),
        shift(shift_),
        by_groups(groups),
        by_chunks(chunks),
        by_width(padded ? tensor.map.padded_width() : tensor.map.width) {}
  static int64_t groups_of(int64_t channels, int64_t of_group) { return (channels + of_group - 1) / of_group; }
};

// The work of one block, and this thread's channels.
struct NormChunk {
  int64_t map;
  int64_t index;  // of the chunk among those of all feature maps
  int64_t first;  // pixel
  int64_t group;  // its first channel
  int64_t channel;

  template <typename T, bool kLast>
  static __device__ NormChunk of(const NormGrid& grid) {
    const Division<uint32_t> group = grid.by_groups.divide(blockIdx.x);
    const Division<uint32_t> within = grid.by_chunks.divide(group.quotient);
    const int64_t first = kLast ? (static_cast<int64_t>(group.remainder) << grid.shift) * kWide<T> : 0;
    const uint32_t vector = kLast ? threadIdx.x & ((1u << grid.shift) - 1) : 0;
    return {within.quotient, group.quotient, within.remainder * grid.chunk, first, first + vector * kWide<T>};
  }
};

struct Place {
  int64_t row;
  int64_t column;
};

// The place of a chunk's first pixel, from which those of the others follow by 32-bit divisions: a row has fewer than
// 2^31 pixels and a chunk at most 2^14, and Divisor is exact for this sum.
struct ChunkStart {
  int64_t row;
  uint32_t column;

  __device__ ChunkStart(const NormGrid& grid, int64_t first) {
    const Division<int64_t> place = grid.by_width.divide(first);
    row = place.quotient;
    column = static_cast<uint32_t>(place.remainder);
  }
  __device__ Place after(const NormGrid& grid, uint32_t pixels) const {
    const Division<uint32_t> place = grid.by_width.divide(column + pixels);
    return {row + place.quotient, place.remainder};
  }
};

// The pixel that is copied to padded position `i`, along one dimension; -1 for zero padding.
__device__ inline int64_t padding_source(int64_t i, int64_t before, int64_t size, PaddingMode mode) {
  i -= before;
  if (i >= 0 && i < size) return i;
  if (mode == PaddingMode::kZero) return -1;
  if (mode == PaddingMode::kReflect) return i < 0 ? -i : 2 * (size - 1) - i;
  return i < 0 ? 0 : size - 1;
}

// The place that is copied to a padded place; a negative row or column for zero padding.
__device__ inline Place padding_source(const Place& place, const PaddedImage& image) {
  return {padding_source(place.row, image.top, image.height, image.mode),
          padding_source(place.column, image.left, image.width, image.mode)};
}

// Whether the N padded places of a row from `place` on are copies of neighbouring pixels of the row `source`.
template <int N>
__device__ inline bool copies_neighbours(const Place& place, int64_t source, const PaddedImage& image) {
  return source >= 0 && place.column >= image.left && place.column + N <= image.left + image.width;
}

// Elements of x[0] to x[count - 1], or of a whole vector.
template <bool kWhole, typename T>
__device__ inline Wide<T> get(const T* x, int count) {
  return load<kWhole, kWide<T>>(x, 0, count, false);
}
template <bool kWhole, typename T>
__device__ inline void put(T* x, int count, const Wide<T>& pack) {
  if constexpr (kWhole) {
    store_vector<true>(x, pack);
  } else {
    store<false, kWide<T>>(x, 0, count, false, pack);
  }
}

template <typename T>
__device__ inline Wide<T> zeros() {
  Wide<T> pack;
#pragma unroll
  for (int i = 0; i < kWide<T>; ++i) pack.value[i] = narrow<T>(0.0);
  return pack;
}

// Elements between the last 16-byte boundary and x.
template <typename T>
__device__ inline int elements_past_boundary(const T* x) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
}

// Whether all tensors are aligned and, in feature maps of several channels, all vectors are whole. Null counts as
// aligned. In planes it depends on the position too whether a vector is whole and aligned.
template <typename T>
bool has_whole_vectors(const NormTensor& tensor, std::initializer_list<const void*> data) {
  bool whole = !tensor.channels_last || tensor.map.channels % kWide<T> == 0;
  for (const void* one : data) whole = whole && is_aligned(one);
  return whole;
}

// One of the parameters of N channels, of which a vector of a plane has the same for all elements.
template <typename C, int N>
struct Parameter {
  Pack<C, N> pack;

  __device__ C operator[](int i) const { return pack.value[N == 1 ? 0 : i]; }
};

template <bool kWhole, int N, typename C>
__device__ inline Parameter<C, N> read_parameter(const C* own, NormParameter which, int64_t channels, int count) {
  return {load<kWhole, N>(own + which * channels, 0, count, false)};
}

// Channels of this thread's vector that exist.
template <typename T>
__device__ inline int channel_count(int64_t channels, int64_t first) {
  return first >= channels ? 0 : static_cast<int>(channels - first < kWide<T> ? channels - first : kWide<T>);
}

// The parameters of the activation's argument: (x - offset) * scale + shift.
template <typename C, int N>
struct AffineParameters {
  Parameter<C, N> offset;
  Parameter<C, N> scale;
  Parameter<C, N> shift;

  template <bool kWhole>
  static __device__ AffineParameters read(const C* own, int64_t channels, int count) {
    return {read_parameter<kWhole, N>(own, kOffset, channels, count),
            read_parameter<kWhole, N>(own, kScale, channels, count),
            read_parameter<kWhole, N>(own, kShift, channels, count)};
  }
};

// The parameters of a map, from `channel` on.
template <typename C>
__device__ inline const C* parameters_of(const C* parameters, int64_t map, int64_t channels, int64_t channel) {
  return parameters + map * kNormParameters * channels + channel;
}

// The activation as a factor of negative values, which is 1 without an activation.
template <typename C>
struct Slopes {
  bool relu;
  C negative;
  C inverse;  // from output to input; 1 if the source is not the output

  Slopes(const NormActivation& activation, bool is_output)
      : relu(activation.kind == Activation::kRelu),
        negative(activation.kind == Activation::kLeakyRelu ? static_cast<C>(activation.slope) : C(1)),
        inverse(is_output ? C(1) / negative : C(1)) {}

  __device__ C activate(C z) const {
    if (relu) return passes_relu(z) ? z : C(0);
    return z > 0 ? z : z * negative;
  }
};

// The gradient after the activation's derivative, and z - kOffset.
template <typename C>
struct Masked {
  C gradient;
  C centred;
};

template <typename C, int N>
__device__ inline Masked<C> mask(C gradient, C source, const AffineParameters<C, N>& affine, int i,
                                 const Slopes<C>& slopes, bool is_output) {
  const C z = source > 0 ? source : source * slopes.inverse;
  const C centred = z - affine.offset[i];
  const C sign = is_output ? source : centred * affine.scale[i] + affine.shift[i];
  if (slopes.relu) {
    gradient = passes_relu(sign) ? gradient : C(0);
  } else {
    gradient = sign > 0 ? gradient : gradient * slopes.negative;
  }
  return {gradient, centred};
}

// Terms that are added in C before their sum is added in double: C is faster than double on most GPUs.
constexpr int kTerms = 8;

template <typename C>
struct Terms {
  C first;
  C second;
};

struct TwoSums {
  double first;
  double second;
};

// Adds the sums of the block's threads. Valid in the thread for which it returns true.
__device__ inline bool block_sums(TwoSums& sums) {
  sums.first = block_sum(sums.first);
  __syncthreads();  // block_sum reuses its shared memory
  sums.second = block_sum(sums.second);
  return threadIdx.x == 0;
}

// Adds the sums of the threads of each channel of a group of kChannelVectors vectors. Thread t returns true, with the
// sums of channel t, if the group has this channel.
template <typename C, int V>
__device__ inline bool channel_sums(const Pack<C, V>& first, const Pack<C, V>& second, TwoSums& sums) {
  constexpr int kChannels = kChannelVectors * V;
  constexpr int kParts = kThreads / (2 * kChannels);  // threads of each sum
  __shared__ Pack<C, V> terms[2][kLanes][kChannelVectors];
  __shared__ double parts[2][kParts][kChannels];
  const int own = threadIdx.x;
  terms[0][own / kChannelVectors][own % kChannelVectors] = first;
  terms[1][own / kChannelVectors][own % kChannelVectors] = second;
  __syncthreads();
  const int channel = own % kChannels;
  const int which = own / kChannels % 2;
  const int part = own / (2 * kChannels);
  double sum = 0.0;
#pragma unroll
  for (int k = 0; k < kLanes / kParts; ++k) {
    sum += terms[which][part * (kLanes / kParts) + k][channel / V].value[channel % V];
  }
  parts[which][part][channel] = sum;
  __syncthreads();
  if (own >= kChannels) return false;
  sums = {0.0, 0.0};
#pragma unroll
  for (int k = 0; k < kParts; ++k) {
    sums.first += parts[0][k][own];
    sums.second += parts[1][k][own];
  }
  return true;
}

// partial[chunk, 0 and 1, channel].
__device__ inline void put_sums(double* partial, const NormGrid& grid, int64_t index, int64_t channel,
                                const TwoSums& sums) {
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
