// Multi-tensor weighted L1: one launch for all layers and scales, forward and backward.
//
// Limit: the forward reads both sides once and writes 2 bits an element, the backward reads 2 bits and writes one
// element.
//
// Signs: a warp handles a tile of 32 * V consecutive elements, V to a thread. Ballot c collects component c of all
// lanes, so a tile's 2 * V words are (positive, negative) for c = 0 .. V - 1. V is the same for all types: under
// autocast input and target differ in type, and the gradient of either is read from the same signs.
#include "device.cuh"

namespace pix2pixhd::cuda {
namespace {

constexpr int V = 4;
constexpr int kTile = 32 * V;
constexpr int kTileWords = kTile / 16;
constexpr int kRow = kWarps * kTile;  // one tile for every warp
// Tiles in flight per warp: enough independent loads to cover the latency of memory.
constexpr int kUnroll = 4;
static_assert(kSignTile % kTile == 0 && kBlockChunk % kSignTile == 0, "a sign tile belongs to one block");
static_assert(kBlockChunk % (kUnroll * kRow) == 0, "a whole chunk has whole rows of tiles");

// This thread's part of the sum over x[0 .. count) and y[0 .. count).
template <bool kWhole, bool kSigns, typename A, typename B>
__device__ inline double l1_chunk(const A* x, const B* y, uint32_t* signs, int count, bool aligned) {
  using C = typename Wider<A, B>::type;
  const int lane = threadIdx.x % 32;
  // Whole sign tiles: beyond the end both sides load as zero, and the signs' padding becomes zero, not garbage.
  const int stop = kSigns ? static_cast<int>((count + kSignTile - 1) / kSignTile * kSignTile) : count;
  double sum = 0.0;
  // The bounds are the same for all lanes of a warp, so that every ballot has all of them.
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
      C part = 0;  // four terms before double
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

// Blocks that a multiprocessor is to hold, by which the compiler shares out the registers; what is in flight in one
// thread with float64 takes more of them.
template <typename A, typename B>
constexpr int kResidentBlocks = sizeof(A) == 8 || sizeof(B) == 8 ? 2 : 4;

template <typename A, typename B, bool kSigns>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<A, B>)
    l1_forward_kernel(const __grid_constant__ LaunchArgs args, double* __restrict__ partial) {
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

// gradient[0 .. count) of a coefficient times the signs.
template <bool kWhole, typename T>
__device__ inline void expand_chunk(T* gradient, const uint32_t* signs, double coefficient, int count, bool aligned) {
  const int lane = threadIdx.x % 32;
  const T plus = narrow<T>(coefficient);
  const T minus = narrow<T>(-coefficient);
  const T zero = narrow<T>(0.0 * coefficient);  // NaN or Inf upstream shows at ties, as in PyTorch
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

// Block b sums the partial sums of row b: thread t takes t, t + kThreads, ..., then the block adds the threads' sums in
// order.
__global__ void __launch_bounds__(kThreads)
    finish_sum_kernel(const double* __restrict__ partial, int64_t count, double initial, DeviceScalar loss) {
  double sum = 0.0;
  const double* row = partial + blockIdx.x * count;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += row[i];
  const double total = block_sum(sum) + initial;
  if (threadIdx.x == 0) {
    if (loss.wide) {
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
  return launch_kernel(finish_sum_kernel, rows, stream, partial, count, initial, loss);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace pix2pixhd::cuda
