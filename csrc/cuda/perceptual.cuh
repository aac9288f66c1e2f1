// Device helpers of VGG's kernels: bits, bias and ReLU of one vector.
//
// A thread holds 8 elements of a half type, 4 of another, so 8 bits or 4, and two neighbours make a byte. Bytes in
// order are words in order, as both the GPU and the host are little-endian.
#pragma once

#include <cstring>

#include "device.cuh"
#include "perceptual.h"

namespace pix2pixhd::cuda {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // limit of gridDim.x

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

// x + bias of one vector, rounded to the map's type as PyTorch's own addition is.
template <typename T, int V>
__device__ inline void add_bias(Pack<T, V>& pack, const T* bias) {
#pragma unroll
  for (int c = 0; c < V; ++c) pack.value[c] = narrow<T>(widen(pack.value[c]) + widen(bias[c]));
}

// ReLU of one vector in place, after the bias where there is one; returns the bits of what it lets through.
template <typename T, int V>
__device__ inline unsigned relu_vector(Pack<T, V>& pack, const T* bias) {
  if (bias != nullptr) add_bias(pack, bias);
  unsigned bits = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    const bool alive = is_alive(widen(pack.value[c]));
    pack.value[c] = alive ? pack.value[c] : narrow<T>(0.0);
    bits |= alive ? 1u << c : 0u;
  }
  return bits;
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// launch_kernel for a number of blocks that may be none, or more than a grid takes.
template <typename... Parameters, typename... Arguments>
int launch_blocks(void (*kernel)(Parameters...), int64_t blocks, Stream stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  return launch_kernel(kernel, static_cast<int>(blocks), stream, arguments...);
}

}  // namespace pix2pixhd::cuda
