// Multi-tensor weighted L1: one launch for all layers and scales, forward and backward.
//
// Memory traffic: the forward reads both sides once and writes 2 bits per element. The backward reads 2 bits and writes
// one gradient element.
//
// Signs: a warp handles a tile of 32 * V consecutive elements, V per thread. Ballot c collects component c of all
// lanes, so the 2 * V words of a tile are (positive, negative) for c = 0 .. V - 1. V is the same for all dtypes: under
// autocast input and target may have different dtypes, and both gradients are computed from the same signs.
#include "device.cuh"

namespace pix2pixhd::cuda {
namespace {

constexpr int V = 4;
constexpr int kTile = 32 * V;
constexpr int kTileWords = kTile / 16;
constexpr int kRow = kWarps * kTile;  // one tile per warp
// Tiles in flight per warp: enough independent loads to hide the memory latency.
constexpr int kUnroll = 4;
static_assert(kSignTile % kTile == 0 && kBlockChunk % kSignTile == 0, "a sign tile must not cross blocks");
static_assert(kBlockChunk % (kUnroll * kRow) == 0, "a whole chunk must consist of whole rows of tiles");

// This thread's contribution to the sum of |x - y| over x[0 .. count) and y[0 .. count).
template <bool kWhole, bool kSigns, typename A, typename B>
__device__ inline double l1_chunk(const A* x, const B* y, uint32_t* signs, int count, bool aligned) {
  using C = typename Wider<A, B>::type;
  const int lane = threadIdx.x % 32;
  // With signs, whole sign tiles: both sides load zeros beyond the end, so the padding of the signs is written as zero.
  const int stop = kSigns ? static_cast<int>((count + kSignTile - 1) / kSignTile * kSignTile) : count;
  double sum = 0.0;
  // The loop bounds are the same for all lanes of a warp, so that all lanes take part in every ballot.
  for (int tile = static_cast<int>(threadIdx.x / 32) * kTile; kWhole ? tile < kBlockChunk : tile < stop;
       tile += kUnroll * kRow) {
    Pack<A, V> a[kUnroll];
    Pack<B, V> b[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      a[u] = load<kWhole, V>(x, tile + u * kRow + lane * V, count, aligned);
      b[u] = load<kWhole, V>(y, tile + u * kRow + lane * V, count, aligned);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int start = tile + u * kRow;
      if (!kWhole && start >= stop) break;
      C part = 0;  // V terms are added before the conversion to double
      unsigned word = 0;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const C difference = C(widen(a[u].value[c])) - C(widen(b[u].value[c]));
        part += difference < 0 ? -difference : difference;
        if (kSigns) {
          const unsigned positive = __ballot_sync(kFullWarp, difference > 0);
          const unsigned negative = __ballot_sync(kFullWarp, difference < 0);
          word = lane == 2 * c ? positive : lane == 2 * c + 1 ? negative : word;
        }
      }
      sum += part;
      if (kSigns && lane < kTileWords) signs[start / 16 + lane] = word;
    }
  }
  return sum;
}

// Resident blocks per multiprocessor, from which the compiler derives the register limit. float64 needs more registers
// for the loads in flight.
template <typename A, typename B>
constexpr int kResidentBlocks = sizeof(A) == 8 || sizeof(B) == 8 ? 2 : 4;

template <typename A, typename B, bool kSigns>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<A, B>)
    l1_forward_kernel(const __grid_constant__ LaunchArgs args, double* __restrict__ partial) {
  allow_overlap();
  const Chunk chunk = find_chunk(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[chunk.tensor];
  const A* x = static_cast<const A*>(tensor.data[0]) + chunk.begin;
  const B* y = static_cast<const B*>(tensor.data[1]) + chunk.begin;
  uint32_t* signs = kSigns ? tensor.signs + chunk.begin / 16 : nullptr;
  const double sum = chunk.whole ? l1_chunk<true, kSigns>(x, y, signs, chunk.count, true)
                                 : l1_chunk<false, kSigns>(x, y, signs, chunk.count, chunk.aligned);
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[args.first_partial + blockIdx.x] = total * tensor.factor;
}

// gradient[i] = coefficient * sign[i] for i in [0, count).
template <bool kWhole, typename T>
__device__ inline void expand_chunk(T* gradient, const uint32_t* signs, double coefficient, int count, bool aligned) {
  const int lane = threadIdx.x % 32;
  const T plus = narrow<T>(coefficient);
  const T minus = narrow<T>(-coefficient);
  const T zero = narrow<T>(0.0 * coefficient);  // a NaN or Inf upstream gradient propagates to ties, as in PyTorch
  for (int tile = static_cast<int>(threadIdx.x / 32) * kTile; kWhole ? tile < kBlockChunk : tile < count;
       tile += kUnroll * kRow) {
    Pack<uint32_t, 4> words[kUnroll][kTileWords / 4];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int start = tile + u * kRow;
      if (!kWhole && start >= count) break;
#pragma unroll
      for (int i = 0; i < kTileWords / 4; ++i) {
        words[u][i] = *reinterpret_cast<const Pack<uint32_t, 4>*>(signs + start / 16 + 4 * i);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int start = tile + u * kRow;
      if (!kWhole && start >= count) break;
      Pack<T, V> pack;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const unsigned positive = words[u][c / 2].value[2 * (c % 2)] >> lane & 1u;
        const unsigned negative = words[u][c / 2].value[2 * (c % 2) + 1] >> lane & 1u;
        pack.value[c] = positive ? plus : negative ? minus : zero;
      }
      store<kWhole, V>(gradient, start + lane * V, count, aligned, pack);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    l1_backward_kernel(const __grid_constant__ LaunchArgs args, DeviceScalar upstream) {
  const Chunk chunk = find_chunk(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[chunk.tensor];
  T* gradient = static_cast<T*>(tensor.data[0]) + chunk.begin;
  const uint32_t* signs = tensor.signs + chunk.begin / 16;
  const double coefficient = read(upstream) * tensor.factor;
  if (chunk.whole) {
    expand_chunk<true>(gradient, signs, coefficient, chunk.count, true);
  } else {
    expand_chunk<false>(gradient, signs, coefficient, chunk.count, chunk.aligned);
  }
}

// Partial sums that a thread loads at once: a block reads those of 33 M elements in one round trip to the memory.
constexpr int kSumsAtOnce = 16;

// Block b adds the partial sums of row b. Thread t adds the elements t, t + kThreads, ...; then the block adds the sums
// of its threads in a fixed order.
__global__ void __launch_bounds__(kThreads)
    finish_sum_kernel(const double* partial, int64_t count, double initial, DeviceScalar loss) {
  wait_for_previous_kernel();
  double sum = 0.0;
  const double* row = partial + blockIdx.x * count;
  for (int64_t first = threadIdx.x; first < count; first += kSumsAtOnce * kThreads) {
    double value[kSumsAtOnce];
#pragma unroll
    for (int k = 0; k < kSumsAtOnce; ++k) {
      const int64_t i = first + k * kThreads;
      value[k] = i < count ? row[i] : 0.0;
    }
#pragma unroll
    for (int k = 0; k < kSumsAtOnce; ++k) sum += value[k];
  }
  const double total = block_sum(sum) + initial;
  if (threadIdx.x == 0) {
    if (loss.is_float64) {
      static_cast<double*>(loss.data)[blockIdx.x] = total;
    } else {
      static_cast<float*>(loss.data)[blockIdx.x] = static_cast<float>(total);
    }
  }
}

}  // namespace

int l1_forward(const Launch& launch, double* partial, Stream stream) {
  return with_type(launch.type[0], [&](auto a) {
    return with_type(launch.type[1], [&](auto b) {
      using A = decltype(a);
      using B = decltype(b);
      const bool signs = launch.args.tensor[0].signs != nullptr;
      const auto kernel = signs ? l1_forward_kernel<A, B, true> : l1_forward_kernel<A, B, false>;
      return launch_kernel(kernel, block_count(launch), stream, launch.args, partial);
    });
  });
}

int l1_backward(const Launch& launch, DeviceScalar upstream, Stream stream) {
  return with_type(launch.type[0], [&](auto t) {
    return launch_kernel(l1_backward_kernel<decltype(t)>, block_count(launch), stream, launch.args, upstream);
  });
}

int finish_sum(const double* partial, int64_t count, double initial, DeviceScalar loss, Stream stream, int rows) {
  return launch_overlapping(count, finish_sum_kernel, rows, stream, partial, count, initial, loss);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace pix2pixhd::cuda
