// Parameters of both directions of norm_act, and the gradients of weight and bias: a few numbers per channel.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

__device__ inline double read(const NormParameterVector& vector, int64_t i, double otherwise) {
  if (vector.data == nullptr) return otherwise;
  switch (vector.type) {
    case DType::kFloat64:
      return static_cast<const double*>(vector.data)[i];
    case DType::kFloat16:
      return widen(static_cast<const __half*>(vector.data)[i]);
    case DType::kBFloat16:
      return widen(static_cast<const __nv_bfloat16*>(vector.data)[i]);
    default:
      return static_cast<const float*>(vector.data)[i];
  }
}

__device__ inline void write(const NormParameterVector& vector, int64_t i, double value) {
  void* data = const_cast<void*>(vector.data);
  switch (vector.type) {
    case DType::kFloat64:
      static_cast<double*>(data)[i] = value;
      break;
    case DType::kFloat16:
      static_cast<__half*>(data)[i] = narrow<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[i] = narrow<__nv_bfloat16>(value);
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

// The factor between z - kOffset and the normalised x. i: index into the statistics.
template <typename C>
__device__ inline double to_normalised(const NormInputs& inputs, bool is_output, int64_t i, int64_t c) {
  if (is_output) return 1.0 / read(inputs.weight, c, 1.0);
  return inputs.rstd == nullptr ? 1.0 : static_cast<const C*>(inputs.rstd)[i];
}

// One thread per image and channel.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    norm_parameters_kernel(NormTensor tensor, NormInputs inputs, bool is_output, const double* __restrict__ sums,
                           Divisor by_channels, C* __restrict__ parameters) {
  const int64_t channels = tensor.channels;
  const int64_t total = tensor.batch * channels;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const Division<int64_t> image = by_channels.divide(i);
  const int64_t n = image.quotient;
  const int64_t c = image.remainder;
  const bool per_image = inputs.statistics == tensor.batch;
  const int64_t at = (per_image ? n : 0) * channels + c;
  const double mean = inputs.mean == nullptr ? 0.0 : static_cast<const C*>(inputs.mean)[at];
  const double rstd = inputs.rstd == nullptr ? 1.0 : static_cast<const C*>(inputs.rstd)[at];
  const double scale = rstd * read(inputs.weight, c, 1.0);
  const double shift = read(inputs.bias, c, 0.0);
  const int64_t depth = tensor.map.channels;
  C* own = parameters + (tensor.channels_last ? n * kNormParameters * depth + c : i * kNormParameters);
  own[kOffset * depth] = static_cast<C>(is_output ? shift : mean);
  own[kScale * depth] = static_cast<C>(scale);
  own[kShift * depth] = static_cast<C>(shift);
  if (sums == nullptr) return;
  double gradient = 0.0;
  double product = 0.0;
  for (int64_t k = per_image ? n : 0; k < (per_image ? n + 1 : tensor.batch); ++k) {
    gradient += sums[k * channels + c];
    product += sums[total + k * channels + c];
  }
  const auto count = static_cast<double>(tensor.map.height * tensor.map.width * (per_image ? 1 : tensor.batch));
  const double normalise = to_normalised<C>(inputs, is_output, at, c);
  own[kCentred * depth] = static_cast<C>(-normalise * normalise * product / count);
  own[kConstant * depth] = static_cast<C>(-gradient / count);
}

// One thread per channel.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    norm_affine_kernel(NormTensor tensor, NormInputs inputs, bool is_output, const double* __restrict__ sums,
                       NormParameterVector grad_weight, NormParameterVector grad_bias) {
  const int64_t channels = tensor.channels;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= channels) return;
  // The statistics of empty images are NaN, but their gradient is zero.
  const int64_t images = tensor.map.height * tensor.map.width > 0 ? tensor.batch : 0;
  double gradient = 0.0;
  double product = 0.0;
  for (int64_t n = 0; n < images; ++n) {
    const int64_t at = (inputs.statistics == tensor.batch ? n : 0) * channels + c;
    gradient += sums[n * channels + c];
    product += sums[(tensor.batch + n) * channels + c] * to_normalised<C>(inputs, is_output, at, c);
  }
  if (grad_weight.data != nullptr) write(grad_weight, c, product);
  if (grad_bias.data != nullptr) write(grad_bias, c, gradient);
}

int64_t blocks_of(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

template <typename F>
int with_arithmetic(DType type, F&& f) {
  return type == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace

int norm_parameters(const NormTensor& tensor, const NormInputs& inputs, const NormSource& source, const double* sums,
                    void* parameters, Stream stream) {
  return with_arithmetic(tensor.type, [&](auto t) {
    using C = decltype(t);
    return launch_blocks(norm_parameters_kernel<C>, blocks_of(tensor.batch * tensor.channels), stream, tensor, inputs,
                         source.is_output, sums, Divisor(tensor.channels), static_cast<C*>(parameters));
  });
}

int norm_affine(const NormTensor& tensor, const NormInputs& inputs, const NormSource& source, const double* sums,
                const NormParameterVector& grad_weight, const NormParameterVector& grad_bias, Stream stream) {
  return with_arithmetic(tensor.type, [&](auto t) {
    return launch_blocks(norm_affine_kernel<decltype(t)>, blocks_of(tensor.channels), stream, tensor, inputs,
                         source.is_output, sums, grad_weight, grad_bias);
  });
}

}  // namespace pix2pixhd::cuda
