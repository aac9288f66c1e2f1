// Device helpers for all kernels: element types, vector accesses, reductions in a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#include "kernels.h"

namespace pix2pixhd::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarps = kThreads / 32;

template <typename I>
struct Division {
  I quotient;
  I remainder;
};

// Division by a number that the host knows. Numbers below 2^31 are divided by multiplication (Granlund and Montgomery,
// 1994, theorem 4.2): 64-bit division takes about a hundred instructions on a GPU, and 32-bit division twenty.
struct Divisor {
  int64_t divisor;
  uint32_t shift;
  uint64_t factor;  // ceil(2^shift / divisor)

  // A divisor above 2^31 has the quotients of 2^31. Nothing is launched for an empty map, whose divisors may be 0.
  explicit Divisor(int64_t d) : divisor(d < 1 ? 1 : d), shift(31) {
    const int64_t small = divisor < kLimit ? divisor : kLimit;
    while ((int64_t{1} << (shift - 31)) < small) ++shift;
    factor = ((uint64_t{1} << shift) + static_cast<uint64_t>(small) - 1) / static_cast<uint64_t>(small);
  }
  // n < 2^31
  __device__ Division<uint32_t> divide(uint32_t n) const {
    const auto quotient = static_cast<uint32_t>(n * factor >> shift);
    return {quotient, n - quotient * static_cast<uint32_t>(divisor)};
  }
  // Any n >= 0. Only positions in huge tensors are divided in 64 bits.
  __device__ Division<int64_t> divide(int64_t n) const {
    if (n >= kLimit) return {n / divisor, n % divisor};
    const Division<uint32_t> small = divide(static_cast<uint32_t>(n));
    return {small.quotient, small.remainder};
  }

 private:
  static constexpr int64_t kLimit = int64_t{1} << 31;
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ T narrow(double x);
template <>
__device__ inline float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
__device__ inline double narrow<double>(double x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(double x) {
  return __float2half_rn(static_cast<float>(x));
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(double x) {
  return __float2bfloat16_rn(static_cast<float>(x));
}

// Elements of one vector access per thread: 16 bytes, or 32 bytes for double.
template <typename T>
constexpr int kVector = sizeof(T) == 2 ? 8 : 4;

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T value[N];
};

// Loads N elements from x[at] on; elements from x[count] on are zero. kWhole: all N elements exist and are aligned. It
// is a template argument because the compiler may split the vector access if elementwise accesses are in the same
// function.
template <bool kWhole, int N, typename T>
__device__ inline Pack<T, N> load(const T* x, int at, int count, bool aligned) {
  if constexpr (kWhole) {
    return *reinterpret_cast<const Pack<T, N>*>(x + at);
  } else {
    if (aligned && at + N <= count) return load<true, N>(x, at, count, aligned);
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.value[i] = at + i < count ? x[at + i] : narrow<T>(0.0);
    return pack;
  }
}

template <bool kWhole, int N, typename T>
__device__ inline void store(T* x, int at, int count, bool aligned, const Pack<T, N>& pack) {
  if constexpr (kWhole) {
    *reinterpret_cast<Pack<T, N>*>(x + at) = pack;
  } else {
    if (aligned && at + N <= count) return store<true, N>(x, at, count, aligned, pack);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (at + i < count) x[at + i] = pack.value[i];
    }
  }
}

// The index of the tensor that this block works on.
__device__ inline int find_tensor(const LaunchArgs& args, int block) {
  int low = 0;
  int high = args.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (args.block_begin[middle] <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The work of one block: `count` elements of a tensor from `begin` on. Only `begin` needs 64 bits.
struct Chunk {
  int tensor;
  int64_t begin;
  int count;
  bool aligned;
  bool whole;  // kBlockChunk elements and 16-byte aligned
};

__device__ inline Chunk find_chunk(const LaunchArgs& args, int block) {
  Chunk chunk;
  chunk.tensor = find_tensor(args, block);
  const TensorArgs& tensor = args.tensor[chunk.tensor];
  chunk.begin = (block - args.block_begin[chunk.tensor]) * kBlockChunk;
  const int64_t left = tensor.numel - chunk.begin;
  chunk.count = static_cast<int>(left < kBlockChunk ? left : kBlockChunk);
  chunk.aligned = tensor.aligned != 0;
  chunk.whole = chunk.aligned && chunk.count == kBlockChunk;
  return chunk;
}

// Sum over the block in a fixed order. Only thread 0 returns it.
__device__ inline double block_sum(double value) {
  __shared__ double warp_sum[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) total += warp_sum[warp];
  }
  return total;
}

__device__ inline double read(DeviceScalar scalar) {
  return scalar.is_float64 ? *static_cast<const double*>(scalar.data) : *static_cast<const float*>(scalar.data);
}

template <typename F>
int with_type(DType type, F&& f) {
  switch (type) {
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

// Programmatic dependent launch (CUDA programming guide, section 4.5), compute capability 9.0 and newer: a kernel that
// is launched by launch_overlapping starts while the last blocks of the previous kernel in the stream still run, which
// hides the latency of its launch. It must begin with wait_for_previous_kernel.

// Lets the next kernel start once all blocks have called this or ended.
__device__ inline void allow_overlap() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits until the previous kernel has ended and its results are visible. Pointers to them must not be __restrict__: the
// compiler may then read through them before the wait.
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Whether kernels of this library wait on the current device. A GPU of compute capability 9.0 may run code of an older
// architecture, compiled from its PTX, in which wait_for_previous_kernel is empty; so the version of the code counts,
// not the GPU. CUDA graphs contain such launches since CUDA 12.3. All kernels are compiled for the same architectures.
inline bool kernels_wait(const void* any_kernel) {
  constexpr int kOldestDriver = 12030;
  constexpr int kOldestCode = 90;
  thread_local int known_device = -1;
  thread_local bool known = false;
  int device = -1;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess && device == known_device) return known;
  int driver = 0;
  cudaFuncAttributes code{};
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, any_kernel);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the launch that follows reports the error
    return false;
  }
  known_device = device;
  known = driver >= kOldestDriver && code.ptxVersion >= kOldestCode;
  return known;
}

// Launches a kernel with blocks of kThreads threads. Returns the error of this launch and clears it, so that later CUDA
// calls do not report it. Uses an API call instead of <<<>>>, so that the tests can compile the sources with any C++
// compiler and run them without a GPU.
template <typename... Parameters, typename... Arguments>
int launch_with(cudaLaunchAttribute* attributes, int attribute_count, void (*kernel)(Parameters...), int blocks,
                Stream stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = static_cast<unsigned>(attribute_count);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
}

template <typename... Parameters, typename... Arguments>
int launch_kernel(void (*kernel)(Parameters...), int blocks, Stream stream, Arguments&&... arguments) {
  return launch_with(nullptr, 0, kernel, blocks, stream, std::forward<Arguments>(arguments)...);
}

// launch_kernel for a kernel that begins with wait_for_previous_kernel. previous: blocks of the launch before it, which
// must be of this library; the kernels of others need not keep the rules above. If there were none, it does not
// overlap.
template <typename... Parameters, typename... Arguments>
int launch_overlapping(int64_t previous, void (*kernel)(Parameters...), int blocks, Stream stream,
                       Arguments&&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const int attributes = previous > 0 && kernels_wait(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  return launch_with(&overlap, attributes, kernel, blocks, stream, std::forward<Arguments>(arguments)...);
}

inline int block_count(const Launch& launch) { return launch.args.block_begin[launch.args.count]; }

}  // namespace pix2pixhd::cuda
