// Losses of many tensors against a constant: LSGAN, hinge, mean. Predictions are small; one launch serves all scales.
#include "device.cuh"

namespace pix2pixhd::cuda {
namespace {

template <typename T, Pointwise kKind>
__global__ void __launch_bounds__(kThreads)
    pointwise_forward_kernel(const __grid_constant__ LaunchArgs args, double* __restrict__ partial) {
  using C = typename Wider<T, T>::type;
  constexpr int V = kVector<T>;
  const int k = find_tensor(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[k];
  const T* input = static_cast<const T*>(tensor.data[0]);
  const C constant = static_cast<C>(tensor.constant);
  const int64_t begin = (blockIdx.x - args.block_begin[k]) * kBlockChunk;
  const int64_t end = begin + kBlockChunk < tensor.numel ? begin + kBlockChunk : tensor.numel;

  double sum = 0.0;
  for (int64_t at = begin + threadIdx.x * V; at < end; at += kThreads * V) {
    const Pack<T, V> x = load<T, V>(input, at, end, tensor.aligned != 0);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      if (at + c >= end) break;
      const C value = widen(x.value[c]);
      if constexpr (kKind == Pointwise::kSquaredError) {
        const double difference = value - constant;
        sum += difference * difference;
      } else if constexpr (kKind == Pointwise::kHinge) {
        const C margin = C(1) - constant * value;
        sum += margin <= 0 ? 0.0 : double(margin);  // NaN stays
      } else {
        sum += double(constant) * double(value);
      }
    }
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[args.first_partial + blockIdx.x] = total * tensor.factor;
}

template <typename T, Pointwise kKind>
__global__ void __launch_bounds__(kThreads)
    pointwise_backward_kernel(const __grid_constant__ LaunchArgs args, DeviceScalar upstream) {
  using C = typename Wider<T, T>::type;
  constexpr int V = kVector<T>;
  const int k = find_tensor(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[k];
  const T* input = static_cast<const T*>(tensor.data[0]);
  T* gradient = static_cast<T*>(tensor.data[1]);
  const bool aligned = tensor.aligned != 0;
  const C constant = static_cast<C>(tensor.constant);
  const C factor = static_cast<C>(read(upstream) * tensor.factor);
  const int64_t begin = (blockIdx.x - args.block_begin[k]) * kBlockChunk;
  const int64_t end = begin + kBlockChunk < tensor.numel ? begin + kBlockChunk : tensor.numel;

  for (int64_t at = begin + threadIdx.x * V; at < end; at += kThreads * V) {
    const Pack<T, V> x = load<T, V>(input, at, end, aligned);
    Pack<T, V> result;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const C value = widen(x.value[c]);
      if constexpr (kKind == Pointwise::kSquaredError) {
        result.value[c] = narrow<T>(C(2) * factor * (value - constant));
      } else if constexpr (kKind == Pointwise::kHinge) {
        // NaN passes the gradient, as F.relu does.
        result.value[c] = narrow<T>(C(1) - constant * value <= 0 ? C(0) : -constant * factor);
      } else {
        result.value[c] = narrow<T>(constant * factor);
      }
    }
    store<T, V>(gradient, at, end, aligned, result);
  }
}

// Calls f with the element type and the kind as compile-time values.
template <typename F>
int with_type_and_kind(DType type, Pointwise kind, F&& f) {
  return with_type(type, [&](auto t) {
    switch (kind) {
      case Pointwise::kSquaredError:
        return f.template operator()<decltype(t), Pointwise::kSquaredError>();
      case Pointwise::kHinge:
        return f.template operator()<decltype(t), Pointwise::kHinge>();
      default:
        return f.template operator()<decltype(t), Pointwise::kLinear>();
    }
  });
}

struct Forward {
  const Launch& launch;
  double* partial;
  Stream stream;
  template <typename T, Pointwise kKind>
  int operator()() const {
    return launch_kernel(pointwise_forward_kernel<T, kKind>, block_count(launch), stream, launch.args, partial);
  }
};

struct Backward {
  const Launch& launch;
  DeviceScalar upstream;
  Stream stream;
  template <typename T, Pointwise kKind>
  int operator()() const {
    return launch_kernel(pointwise_backward_kernel<T, kKind>, block_count(launch), stream, launch.args, upstream);
  }
};

}  // namespace

int pointwise_forward(const Launch& launch, Pointwise kind, double* partial, Stream stream) {
  return with_type_and_kind(launch.type[0], kind, Forward{launch, partial, stream});
}

int pointwise_backward(const Launch& launch, Pointwise kind, DeviceScalar upstream, Stream stream) {
  return with_type_and_kind(launch.type[0], kind, Backward{launch, upstream, stream});
}

}  // namespace pix2pixhd::cuda
