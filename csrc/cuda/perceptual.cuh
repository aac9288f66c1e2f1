// Device helpers for the perceptual kernels: packed bits, bias and ReLU of one vector.
//
// A thread holds 8 elements of a 16-bit type or 4 of another, hence 8 or 4 bits; with 4, two neighbouring threads form
// a byte. Consecutive bytes form words because both the GPU and the host are little-endian.
#pragma once

#include <cstring>
#include <type_traits>

#include "device.cuh"
#include "perceptual.h"

namespace pix2pixhd::cuda {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // limit of gridDim.x

template <typename T>
using Compute = typename Wider<T, T>::type;

// Consecutive elements that a block processes at a time, one vector per thread.
template <typename T>
constexpr int kRow = kThreads * kVector<T>;

// Whether ReLU passes x. NaN passes, as in PyTorch.
template <typename C>
__device__ inline bool passes_relu(C x) {
  return !(x <= 0);
}

// Rounds to T; values beyond the range of float16 become its largest finite number. NaN stays NaN.
template <typename T, typename C>
__device__ inline T narrow_finite(C x) {
  if constexpr (std::is_same_v<T, __half>) {
    constexpr C kLargest = 65504;
    x = x > kLargest ? kLargest : x < -kLargest ? -kLargest : x;
  }
  return narrow<T>(x);
}

// Stores one whole vector. Uses an intrinsic because the compiler splits a plain store of a vector whose elements were
// selected one by one.
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

// Completes the bytes of the planes, which begin at bits 0, 8 and 16. The result is valid in threads whose first
// element begins a byte. All lanes must call it.
template <int V>
__device__ inline unsigned gather_bits(unsigned bits) {
  static_assert(V == 4 || V == 8, "a byte must belong to one thread or two");
  if constexpr (V == 4) bits |= __shfl_down_sync(kFullWarp, bits, 1) << 4;
  return bits;
}

// Index of the byte of element `at` in the first plane. The bytes of the other planes follow at intervals of 4.
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

// The bit of element `at` in bit 0, followed by the bits of the thread's next elements.
template <int kPlanes>
__device__ inline unsigned get_bits(const uint32_t* words, int64_t at, int plane) {
  return reinterpret_cast<const uint8_t*>(words)[byte_index<kPlanes>(at) + 4 * plane] >> at % 8;
}

__host__ __device__ inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// A vector per channel that no kernel writes: the bias of a map, or the weights of LPIPS. data may be null.
template <typename T>
struct ChannelVector {
  const T* data;
  bool aligned;

  explicit ChannelVector(const void* data_) : data(static_cast<const T*>(data_)), aligned(is_aligned(data_)) {}

  // The elements of `channel` and those after it; channel is a multiple of V. Uses an intrinsic for the same reason as
  // store_vector; in addition, reads through it need not wait for stores, which the compiler could not rule out to be
  // to the same memory.
  template <int V>
  __device__ Pack<T, V> at(uint32_t channel) const {
    const T* from = data + channel;
    Pack<T, V> pack;
    if (aligned) {
      uint4 words[sizeof(pack) / sizeof(uint4)];
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) {
        words[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
      }
      memcpy(&pack, words, sizeof(pack));
    } else {
#pragma unroll
      for (int c = 0; c < V; ++c) pack.value[c] = from[c];
    }
    return pack;
  }
};

// x + bias of one vector, rounded to the map's dtype as in PyTorch.
template <typename T, int V>
__device__ inline void add_bias(Pack<T, V>& pack, const Pack<T, V>& bias) {
#pragma unroll
  for (int c = 0; c < V; ++c) pack.value[c] = narrow<T>(widen(pack.value[c]) + widen(bias.value[c]));
}

// Applies ReLU to one vector in place. Returns the bits of the elements that it passes.
template <typename T, int V>
__device__ inline unsigned relu_vector(Pack<T, V>& pack) {
  unsigned bits = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    const bool passed = passes_relu(widen(pack.value[c]));
    pack.value[c] = passed ? pack.value[c] : narrow<T>(0.0);
    bits |= passed ? 1u << c : 0u;
  }
  return bits;
}

// launch_kernel for any number of blocks: launches nothing for 0, and returns an error above the limit of a grid.
template <typename... Parameters, typename... Arguments>
int launch_blocks(void (*kernel)(Parameters...), int64_t blocks, Stream stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  return launch_kernel(kernel, static_cast<int>(blocks), stream, arguments...);
}

// launch_overlapping for any number of blocks.
template <typename... Parameters, typename... Arguments>
int launch_overlapping_blocks(int64_t previous, void (*kernel)(Parameters...), int64_t blocks, Stream stream,
                              Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  return launch_overlapping(previous, kernel, static_cast<int>(blocks), stream, arguments...);
}

}  // namespace pix2pixhd::cuda
