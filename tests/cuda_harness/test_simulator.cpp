// Tests of the CUDA shim and the simulator: half types, barriers, warp operations, launches and their errors.
#include <cmath>
#include <cstring>

#include "shim/cuda_bf16.h"
#include "shim/cuda_fp16.h"
#include "tensors.h"

namespace harness {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;

uint16_t to_bits(DType type, float x) {
  return type == DType::kFloat16 ? __float2half_rn(x).bits : __float2bfloat16_rn(x).bits;
}

float to_float(DType type, uint16_t bits) {
  return type == DType::kFloat16 ? __half2float(__half{bits}) : __bfloat162float(__nv_bfloat16{bits});
}

void check_rounding(DType type, float x) {
  const auto wanted = static_cast<uint16_t>(encode(type, x));
  check(to_bits(type, x) == wanted, "%s: %a becomes %04x, not %04x", name(type), static_cast<double>(x),
        to_bits(type, x), wanted);
}

// Converts every value in both directions, and the values next to every rounding border.
void check_half_type(DType type) {
  set_case(std::string("conversions of ") + name(type));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const double value = decode(type, bits);
    const float x = to_float(type, static_cast<uint16_t>(bits));
    check(same(x, value), "%s: %04x is %a, not %a", name(type), bits, static_cast<double>(x), value);
    if (std::isnan(value)) continue;
    check_rounding(type, x);
    const double next = decode(type, bits + 1);
    const double border = std::isinf(next) ? value * (1.0 + 0x1p-12) : (value + next) / 2.0;
    const auto middle = static_cast<float>(border);
    check_rounding(type, middle);
    check_rounding(type, std::nextafterf(middle, HUGE_VALF));
    check_rounding(type, std::nextafterf(middle, -HUGE_VALF));
  }
  Random random(1);
  for (int k = 0; k < 100000; ++k) {
    const auto bits = static_cast<uint32_t>(random.bits());
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    check_rounding(type, x);
  }
}

// Kernels that test the simulator.
void exchange_kernel(unsigned* out) {
  __shared__ unsigned value[64];
  const unsigned thread = threadIdx.x;
  const unsigned odd = __ballot_sync(kFullWarp, thread % 2 == 1);
  const unsigned first = __shfl_sync(kFullWarp, thread, 0);
  const unsigned later = __shfl_down_sync(kFullWarp, thread, 3);
  value[thread] = odd + first + later;
  __syncthreads();
  out[blockIdx.x * blockDim.x + thread] = value[63 - thread] + gridDim.x;
}

void half_warps_kernel(unsigned* out) {
  const unsigned mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __ballot_sync(mask, threadIdx.x % 4 == 0);
  } else {
    out[threadIdx.x] = 7;
  }
}

void missing_lane_kernel(unsigned* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __ballot_sync(kFullWarp, 1);
}

void two_places_kernel(unsigned* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __ballot_sync(kFullWarp, 1);
  } else {
    out[threadIdx.x] = __ballot_sync(kFullWarp, 0);
  }
}

void foreign_mask_kernel(unsigned* out) { out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1); }

void missing_thread_kernel(unsigned* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}

void two_barriers_kernel(unsigned* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

void race_kernel(unsigned* out) {
  __shared__ unsigned value[64];
  value[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = value[threadIdx.x ^ 32u];
}

void count_kernel(unsigned* out) {
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 5;
  __syncthreads();
  out[threadIdx.x] = count + threadIdx.x;
}

// Reads what the previous kernel writes before and after waiting for it.
void overlapping_kernel(unsigned* out) {
  __shared__ unsigned before[64];
  before[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  cudaGridDependencySynchronize();
  out[64 + threadIdx.x] = 100 * before[63 - threadIdx.x] + out[threadIdx.x];
}

void no_wait_kernel(unsigned* out) {
  if (threadIdx.x != 7) cudaGridDependencySynchronize();
  out[threadIdx.x] = 1;
}

int launch(void (*kernel)(unsigned*), unsigned blocks, unsigned threads, unsigned* out, bool overlap = false) {
  cudaLaunchAttribute attribute{cudaLaunchAttributeProgrammaticStreamSerialization, {overlap ? 1 : 0}};
  cudaLaunchConfig_t config{};
  config.attrs = &attribute;
  config.numAttrs = 1;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaLaunchKernelEx(&config, kernel, out);
}

// An overlapping kernel starts before the previous one has run, and continues after it.
void test_overlap() {
  set_case("overlapping kernels");
  for (const Order order : {Order::kForward, Order::kReversed}) {
    set_order(order);
    for (const bool overlap : {false, true}) {
      std::vector<unsigned> out(128, 2);
      set_postponing(true);
      launch(count_kernel, 1, 64, out.data());
      check(out[0] == 2, "a postponed kernel runs at once");
      launch(overlapping_kernel, 1, 64, out.data(), overlap);
      set_postponing(false);
      for (unsigned i = 0; i < 64; ++i) {
        const unsigned wanted = (overlap ? 200 : 100 * (5 + 63 - i)) + 5 + i;
        check(out[64 + i] == wanted, "thread %u has %u, not %u", i, out[64 + i], wanted);
      }
    }
  }
  set_order(Order::kForward);
}

// Whether a sum of `count` partial sums may overlap the kernel that computes them.
bool sum_overlaps(int64_t count) {
  Scalar loss(0.0, true);
  const std::vector<double> partial(1, 1.0);
  check(pix2pixhd::cuda::finish_sum(partial.data(), count, 0.0, loss.device(), nullptr) == cudaSuccess, "finish_sum");
  check(loss.get() == static_cast<double>(count), "the sum is %g", loss.get());
  check(cudaGetLastError() == cudaSuccess, "an error is left for a later check");
  return last_overlapped();
}

// A kernel may overlap the previous one only if its code waits: a GPU may run code of an older architecture.
void test_when_kernels_overlap() {
  set_case("launches that overlap");
  check(sum_overlaps(1), "no overlap on a GPU of compute capability 9.0");
  check(!sum_overlaps(0), "a sum without a kernel of ours before it overlaps");
  set_device({1, 13000, 80});
  check(!sum_overlaps(1), "code that does not wait overlaps");
  set_device({2, 12020, 90});
  check(!sum_overlaps(1), "overlap in spite of a driver whose graphs cannot contain it");
  set_device({3, 13000, 0});
  check(!sum_overlaps(1), "overlap without code for the device");
  set_device({4, 12030, 120});
  check(sum_overlaps(1), "no overlap on a newer GPU");
  set_device({0, 13000, 90});
  check(sum_overlaps(1), "no overlap after a change of devices");
}

}  // namespace

void test_shim() {
  check_half_type(DType::kFloat16);
  check_half_type(DType::kBFloat16);
}

void test_simulator() {
  set_case("simulator");
  std::vector<unsigned> out(192, 0);
  for (const Order order : {Order::kForward, Order::kReversed}) {
    set_order(order);
    check(launch(exchange_kernel, 3, 64, out.data()) == cudaSuccess, "a launch failed");
    for (unsigned i = 0; i < 192; ++i) {
      const unsigned other = 63 - i % 64;
      const unsigned later = other % 32 + 3 < 32 ? other + 3 : other;
      const unsigned wanted = 0xaaaaaaaau + other / 32 * 32 + later + 3;
      check(out[i] == wanted, "thread %u has %u, not %u", i, out[i], wanted);
    }
    check(launch(half_warps_kernel, 1, 32, out.data()) == cudaSuccess, "a launch failed");
    check(out[3] == 0x1111 && out[20] == 7, "half a warp votes %x", out[3]);
  }
  set_order(Order::kForward);

  set_case("errors of a launch");
  check(launch(exchange_kernel, 0, 64, out.data()) == cudaErrorInvalidConfiguration, "no block");
  check(launch(exchange_kernel, 1, 1025, out.data()) == cudaErrorInvalidConfiguration, "too many threads");
  check(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess, "the last error");

  using namespace pix2pixhd;
  Scalar loss(3.0, true);
  const double partial = 2.0;
  fail_next_launch(cudaErrorInvalidValue);
  check(cuda::finish_sum(&partial, 1, 0.0, loss.device(), nullptr) == cudaErrorInvalidValue,
        "a failed launch is hidden");
  check(cudaGetLastError() == cudaSuccess, "a failed launch leaves its error for a later check");
  check(loss.get() == 3.0, "a failed launch writes");
  check(std::strcmp(cuda::error_text(cudaErrorInvalidConfiguration), "invalid configuration argument") == 0,
        "wrong error text");
  int place = 0;
  check(cuda::finish_sum(&partial, 1, 0.5, loss.device(), &place) == cudaSuccess && loss.get() == 2.5, "a sum");
  check(static_cast<void*>(last_stream()) == &place, "another stream than the one asked for");
  test_overlap();
  test_when_kernels_overlap();
}

bool run_misuse(const char* name) {
  struct Misuse {
    const char* name;
    void (*kernel)(unsigned*);
  };
  constexpr Misuse kMisuses[] = {
      {"missing_lane", missing_lane_kernel}, {"two_places", two_places_kernel},
      {"foreign_mask", foreign_mask_kernel}, {"missing_thread", missing_thread_kernel},
      {"two_barriers", two_barriers_kernel}, {"race", race_kernel},
      {"no_wait", no_wait_kernel},
  };
  unsigned out[64];
  for (const Misuse& misuse : kMisuses) {
    if (std::strcmp(name, misuse.name) != 0) continue;
    set_case(name);
    launch(misuse.kernel, 1, 64, out, misuse.kernel == no_wait_kernel);
    return true;
  }
  return false;
}

}  // namespace harness
