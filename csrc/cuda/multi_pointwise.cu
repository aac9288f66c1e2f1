// Losses of many tensors against constants: LSGAN, hinge, mean, logistic. Predictions are small, so one launch handles
// all scales.
#include "device.cuh"

namespace pix2pixhd::cuda {
namespace {

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float log1p_of(float x) { return log1pf(x); }
__device__ inline double log1p_of(double x) { return log1p(x); }

// (1 - label) * x - min(x, 0) + log1p(exp(-|x|)): binary cross entropy of the logit x, as in PyTorch. The first two
// terms are -label * x for x < 0, so that they do not cancel. x - x makes -Inf NaN, which it is in PyTorch.
template <typename C>
__device__ inline C logistic(C x, C label) {
  const C linear = x < 0 ? (x - x) - label * x : static_cast<C>(1.0 - double(label)) * x;
  return linear + log1p_of(exp_of(x < 0 ? x : -x));
}

// Its derivative, sigmoid(x) - label. For x >= 0, sigmoid(x) is computed as 1 - sigmoid(-x), which avoids cancellation
// at the labels 0 and 1.
template <typename C>
__device__ inline C logistic_slope(C x, C label) {
  const C e = exp_of(x < 0 ? x : -x);
  const C tail = e / (C(1) + e);  // sigmoid(-|x|)
  return x < 0 ? tail - label : static_cast<C>(1.0 - double(label)) - tail;
}

// f(x; constant), rounded to C as in PyTorch.
template <Pointwise kKind, typename C>
__device__ inline C value_of(C x, C constant) {
  if constexpr (kKind == Pointwise::kSquaredError) {
    return (x - constant) * (x - constant);
  } else if constexpr (kKind == Pointwise::kHinge) {
    const C margin = C(1) - constant * x;
    return margin <= 0 ? C(0) : margin;  // NaN propagates
  } else if constexpr (kKind == Pointwise::kLogistic) {
    return logistic(x, constant);
  } else {
    static_assert(kKind == Pointwise::kLinear);
    return constant * x;
  }
}

// This thread's contribution to the sum over x[0 .. count). The terms of a vector are added before the conversion to
// double, whose rate is 1/64 of float's on many GPUs.
template <bool kWhole, Pointwise kKind, typename T, typename C>
__device__ inline double sum_chunk(const T* x, C constant, int count, bool aligned) {
  constexpr int V = kVector<T>;
  double sum = 0.0;
  for (int at = static_cast<int>(threadIdx.x) * V; kWhole ? at < kBlockChunk : at < count; at += kThreads * V) {
    const Pack<T, V> pack = load<kWhole, V>(x, at, count, aligned);
    C part = 0;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      if (!kWhole && at + c >= count) break;
      part += value_of<kKind>(C(widen(pack.value[c])), constant);
    }
    sum += part;
  }
  return sum;
}

template <typename T, Pointwise kKind>
__global__ void __launch_bounds__(kThreads)
    pointwise_forward_kernel(const __grid_constant__ LaunchArgs args, double* __restrict__ partial) {
  using C = typename Wider<T, T>::type;
  allow_overlap();
  const Chunk chunk = find_chunk(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[chunk.tensor];
  const T* x = static_cast<const T*>(tensor.data[0]) + chunk.begin;
  const C constant =
      widen(narrow<T>(tensor.constant));  // the label rounded to the tensor's dtype, as torch.full_like does
  const double sum = chunk.whole ? sum_chunk<true, kKind>(x, constant, chunk.count, true)
                                 : sum_chunk<false, kKind>(x, constant, chunk.count, chunk.aligned);
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[args.first_partial + blockIdx.x] = total * tensor.factor;
}

// A coefficient as two factors, see kSmallestCoefficient.
template <typename C>
struct Coefficient {
  C factor;
  C scale = C(1);

  __device__ explicit Coefficient(double value) : factor(static_cast<C>(value)) {
    if constexpr (sizeof(C) == sizeof(float)) {
      const double size = value < 0 ? -value : value;
      if (size < kSmallestCoefficient) scale = static_cast<C>(1.0 / kCoefficientScale);
      if (size > kLargestCoefficient) scale = static_cast<C>(kCoefficientScale);
      factor = static_cast<C>(value / static_cast<double>(scale));
    }
  }
  __device__ C times(C slope) const {
    if constexpr (sizeof(C) == sizeof(float)) return slope * factor * scale;
    return slope * factor;
  }
};

// gradient[i] = coefficient * f'(x[i]; constant), for the squared error half of f', for i in [0, count).
template <bool kWhole, Pointwise kKind, typename T, typename C>
__device__ inline void slope_chunk(const T* x, T* gradient, C constant, Coefficient<C> coefficient, int count,
                                   bool aligned) {
  constexpr int V = kVector<T>;
  for (int at = static_cast<int>(threadIdx.x) * V; kWhole ? at < kBlockChunk : at < count; at += kThreads * V) {
    const Pack<T, V> pack = load<kWhole, V>(x, at, count, aligned);
    Pack<T, V> result;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const C value = widen(pack.value[c]);
      if constexpr (kKind == Pointwise::kSquaredError) {
        result.value[c] = narrow<T>(coefficient.times(value - constant));
      } else if constexpr (kKind == Pointwise::kHinge) {
        // NaN passes the gradient, as F.relu does.
        result.value[c] = narrow<T>(C(1) - constant * value <= 0 ? C(0) : coefficient.times(-constant));
      } else if constexpr (kKind == Pointwise::kLogistic) {
        result.value[c] = narrow<T>(coefficient.times(logistic_slope(value, constant)));
      } else {
        result.value[c] = narrow<T>(coefficient.times(constant));
      }
    }
    store<kWhole, V>(gradient, at, count, aligned, result);
  }
}

template <typename T, Pointwise kKind>
__global__ void __launch_bounds__(kThreads)
    pointwise_backward_kernel(const __grid_constant__ LaunchArgs args, DeviceScalar upstream) {
  using C = typename Wider<T, T>::type;
  const Chunk chunk = find_chunk(args, blockIdx.x);
  const TensorArgs& tensor = args.tensor[chunk.tensor];
  const T* x = static_cast<const T*>(tensor.data[0]) + chunk.begin;
  T* gradient = static_cast<T*>(tensor.data[1]) + chunk.begin;
  const C constant =
      widen(narrow<T>(tensor.constant));  // the label rounded to the tensor's dtype, as torch.full_like does
  constexpr double kSlope = kKind == Pointwise::kSquaredError ? 2.0 : 1.0;
  const Coefficient<C> coefficient(kSlope * read(upstream) * tensor.factor);
  if (chunk.whole) {
    slope_chunk<true, kKind>(x, gradient, constant, coefficient, chunk.count, true);
  } else {
    slope_chunk<false, kKind>(x, gradient, constant, coefficient, chunk.count, chunk.aligned);
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
      case Pointwise::kLogistic:
        return f.template operator()<decltype(t), Pointwise::kLogistic>();
      case Pointwise::kLinear:
        break;
    }
    return f.template operator()<decltype(t), Pointwise::kLinear>();
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
