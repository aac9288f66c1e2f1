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
static_assert(kSignTile % kTile == 0 && kBlockChunk % kSignTile == 0, "a sign tile belongs to one block");

// Tiles in flight per warp: enough independent loads to cover the latency of memory.
constexpr int kUnroll = 4;

template <typename A, typename B, bool kSigns>
__global__ void __launch_bounds__(kThreads)
    l1_forward_kernel(const __grid_constant__ LaunchArgs args, double* __restrict__ partial) {
  using C = typename Wider<A, B>::type;
  const int k = find_tensor(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[k];
  const A* input = static_cast<const A*>(tensor.data[0]);
  const B* target = static_cast<const B*>(tensor.data[1]);
  const bool aligned = tensor.aligned != 0;
  const int64_t begin = (blockIdx.x - args.block_begin[k]) * kBlockChunk;
  const int64_t end = begin + kBlockChunk < tensor.numel ? begin + kBlockChunk : tensor.numel;
  // Signs are written for whole sign tiles: beyond the end both sides load as zero, and the padding becomes zero, not
  // garbage.
  const int64_t stop = kSigns ? (end + kSignTile - 1) / kSignTile * kSignTile : end;
  const int lane = threadIdx.x % 32;

  double sum = 0.0;
  // The bounds are the same for all lanes of a warp, so that every ballot has all of them.
  for (int64_t tile = begin + static_cast<int64_t>(threadIdx.x / 32) * kTile; tile < stop;
       tile += static_cast<int64_t>(kUnroll) * kWarps * kTile) {
    Pack<A, V> x[kUnroll];
    Pack<B, V> y[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = tile + static_cast<int64_t>(u) * kWarps * kTile + lane * V;
      x[u] = load<A, V>(input, at, end, aligned);
      y[u] = load<B, V>(target, at, end, aligned);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t start = tile + static_cast<int64_t>(u) * kWarps * kTile;
      if (start >= stop) break;
      C part = 0;  // four terms before double
      unsigned word = 0;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const C difference = C(widen(x[u].value[c])) - C(widen(y[u].value[c]));
        part += difference < 0 ? -difference : difference;
        if (kSigns) {
          const unsigned positive = __ballot_sync(kFullWarp, difference > 0);
          const unsigned negative = __ballot_sync(kFullWarp, difference < 0);
          word = lane == 2 * c ? positive : lane == 2 * c + 1 ? negative : word;
        }
      }
      sum += part;
      if (kSigns && lane < 2 * V) tensor.signs[start / 16 + lane] = word;
    }
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[args.first_partial + blockIdx.x] = total * tensor.factor;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    l1_backward_kernel(const __grid_constant__ LaunchArgs args, DeviceScalar upstream) {
  const int k = find_tensor(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[k];
  T* gradient = static_cast<T*>(tensor.data[0]);
  const bool aligned = tensor.aligned != 0;
  const int64_t begin = (blockIdx.x - args.block_begin[k]) * kBlockChunk;
  const int64_t end = begin + kBlockChunk < tensor.numel ? begin + kBlockChunk : tensor.numel;
  const int lane = threadIdx.x % 32;

  const double coefficient = read(upstream) * tensor.factor;
  const T plus = narrow<T>(coefficient);
  const T minus = narrow<T>(-coefficient);
  const T zero = narrow<T>(0.0 * coefficient);  // NaN or Inf upstream shows at ties, as in PyTorch
  for (int64_t tile = begin + static_cast<int64_t>(threadIdx.x / 32) * kTile; tile < end;
       tile += static_cast<int64_t>(kUnroll) * kWarps * kTile) {
    Pack<uint32_t, 4> words[kUnroll][V / 2];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t start = tile + static_cast<int64_t>(u) * kWarps * kTile;
      if (start >= end) break;
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        words[u][i] = *reinterpret_cast<const Pack<uint32_t, 4>*>(tensor.signs + start / 16 + 4 * i);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t start = tile + static_cast<int64_t>(u) * kWarps * kTile;
      if (start >= end) break;
      Pack<T, V> pack;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const unsigned positive = words[u][c / 2].value[2 * (c % 2)] >> lane & 1u;
        const unsigned negative = words[u][c / 2].value[2 * (c % 2) + 1] >> lane & 1u;
        pack.value[c] = positive ? plus : negative ? minus : zero;
      }
      store<T, V>(gradient, start + lane * V, end, aligned, pack);
    }
  }
}

// Sums the partial sums: thread t takes t, t + kThreads, ..., then the block adds the threads' sums in order.
__global__ void __launch_bounds__(kThreads)
    finish_sum_kernel(const double* __restrict__ partial, int64_t count, double initial, DeviceScalar loss) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  const double total = block_sum(sum) + initial;
  if (threadIdx.x == 0) {
    if (loss.wide) {
      *static_cast<double*>(loss.data) = total;
    } else {
      *static_cast<float*>(loss.data) = static_cast<float>(total);
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

int finish_sum(const double* partial, int64_t count, double initial, DeviceScalar loss, Stream stream) {
  return launch_kernel(finish_sum_kernel, 1, stream, partial, count, initial, loss);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace pix2pixhd::cuda
