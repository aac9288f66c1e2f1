// Replaces CUDA's header of this name, so that a C++ compiler can build the kernels' sources for the CPU. It declares
// only what they use; runtime.cpp and simulator.cpp execute the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

// The simulator implements programmatic dependent launch, which this version has.
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time, so shared memory can be static. The section lets the simulator overwrite it before every
// block.
#define __shared__ static __attribute__((section("harness_shared")))

struct uint3 {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __stwb(uint4* to, uint4 value) { *to = value; }
inline uint4 __ldg(const uint4* from) { return *from; }

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoKernelImageForDevice = 209
};
using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace harness {

enum class WarpOperation { kBallot, kShuffle, kShuffleDown };

// Runs `body` once per thread of every block.
cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body);

void block_barrier(int line);
void wait_for_previous_grid(int line);

// Waits for all lanes of the mask. Returns the ballot, or the value of the requested lane.
uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int argument, int line);

template <typename T>
T shuffle(WarpOperation operation, unsigned mask, T value, int argument, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(operation, mask, bits, argument, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace harness

// The caller's line, a default argument, distinguishes the calls in the source.
inline void __syncthreads(int line = __builtin_LINE()) { harness::block_barrier(line); }

inline void cudaGridDependencySynchronize(int line = __builtin_LINE()) { harness::wait_for_previous_grid(line); }
inline void cudaTriggerProgrammaticLaunchCompletion() {}  // the simulator starts the next grid as early as possible

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<unsigned>(harness::warp_operation(harness::WarpOperation::kBallot, mask, predicate != 0, 0, line));
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  return harness::shuffle(harness::WarpOperation::kShuffle, mask, value, lane, line);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int line = __builtin_LINE()) {
  return harness::shuffle(harness::WarpOperation::kShuffleDown, mask, value, static_cast<int>(delta), line);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Copied, as by a launch: a kernel sees neither later changes nor the caller's objects, and may run later.
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  static_assert(sizeof(copies) <= 4096, "kernel arguments are limited to 4 KiB");
  return harness::run_grid(*config, reinterpret_cast<const void*>(kernel),
                           [kernel, copies] { std::apply(kernel, copies); });
}
