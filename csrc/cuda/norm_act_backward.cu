// Backward of norm_act, and the parameters of both directions.
//
// Memory traffic: two passes over grad and source, the sums and the gradient, and one write. The gradient of a pixel is
// the sum over the padded positions that it was copied to, in a fixed order: no atomics.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

// The padded positions that a pixel is copied to along one dimension: its own, and those before and after the image.
struct Copies {
  int64_t begin[3];
  int64_t end[3];

  static __device__ Copies of(int64_t i, int64_t before, int64_t size, int64_t after, PaddingMode mode) {
    const int64_t own = before + i;
    Copies copies{{own, 0, 0}, {own + 1, 0, 0}};
    if (mode == PaddingMode::kReflect) {
      if (i >= 1 && i <= before) copies.set(1, before - i, 1);
      if (i <= size - 2 && i >= size - 1 - after) copies.set(2, before + 2 * (size - 1) - i, 1);
    } else if (mode == PaddingMode::kReplicate) {
      if (i == 0) copies.set(1, 0, before);
      if (i == size - 1) copies.set(2, before + size, after);
    }
    return copies;
  }
  __device__ void set(int range, int64_t first, int64_t count) {
    begin[range] = first;
    end[range] = first + count;
  }
};

// The sum over all copies of a pixel's channel. Not inlined: few pixels need it, and unrolled loops with this inside
// take minutes to compile.
template <typename T>
__device__ __attribute__((noinline)) Compute<T> gather_copies(const T* grad, const PaddedImage& image, int64_t row,
                                                              int64_t column) {
  const int64_t width = image.width + image.left + image.right;
  const Copies rows = Copies::of(row, image.top, image.height, image.bottom, image.mode);
  const Copies columns = Copies::of(column, image.left, image.width, image.right, image.mode);
  Compute<T> sum = 0;
#pragma unroll 1
  for (int i = 0; i < 9; ++i) {
    for (int64_t r = rows.begin[i / 3]; r < rows.end[i / 3]; ++r) {
      for (int64_t k = columns.begin[i % 3]; k < columns.end[i % 3]; ++k) {
        sum = sum + widen(grad[(r * width + k) * image.channels]);
      }
    }
  }
  return sum;
}

// The gradient of a pixel's channel. grad: that of the first padded pixel's channel.
template <typename T>
__device__ inline Compute<T> gather(const T* grad, const PaddedImage& image, int64_t row, int64_t column) {
  const bool inner = row > image.top && row < image.height - 1 - image.bottom && column > image.left &&
                     column < image.width - 1 - image.right;
  if (!inner && image.mode != PaddingMode::kZero) return gather_copies(grad, image, row, column);
  const int64_t width = image.width + image.left + image.right;
  return widen(grad[((row + image.top) * width + column + image.left) * image.channels]);
}

// The gradient after the activation's derivative, and z - kOffset.
template <typename C>
struct Masked {
  C gradient;
  C centred;
};

template <typename C>
__device__ inline Masked<C> mask(C gradient, C source, const C* own, int64_t channels, int64_t c,
                                 const NormActivation& activation, bool is_output) {
  const auto slope = static_cast<C>(activation.slope);
  C z = source;
  if (is_output && activation.kind == Activation::kLeakyRelu && !(source > 0)) z = source * (C(1) / slope);
  const C centred = z - own[kOffset * channels + c];
  const C sign = is_output ? source : centred * own[kScale * channels + c] + own[kShift * channels + c];
  if (activation.kind == Activation::kRelu) {
    gradient = passes_relu(sign) ? gradient : C(0);
  } else if (activation.kind == Activation::kLeakyRelu) {
    gradient = sign > 0 ? gradient : gradient * slope;
  }
  return {gradient, centred};
}

// partial: the sums of g and of g * (z - kOffset) of each chunk and channel. The 2 stops ptxas from spilling registers
// to fit a third block per multiprocessor.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_sums_kernel(const T* __restrict__ grad, const T* __restrict__ source, bool is_output,
                         const __grid_constant__ PaddedImage image, SumGrid grid, NormActivation activation,
                         const void* __restrict__ parameters, double* __restrict__ partial) {
  using C = Compute<T>;
  allow_overlap();
  const SumChunk<kLast> chunk = SumChunk<kLast>::of(grid);
  const C* own = parameters_of<C>(parameters, chunk.map, grid.channels);
  const T* from = source + chunk.map * grid.pixels * grid.channels + chunk.channel;
  const int64_t padded = (image.height + image.top + image.bottom) * (image.width + image.left + image.right);
  const T* map_grad = grad + chunk.map * padded * grid.channels + chunk.channel;
  // The column advances with the pixel.
  int64_t last_pixel = chunk.first;
  const Division<int64_t> first = grid.by_width.divide(chunk.first);
  int64_t row = first.quotient;
  int64_t column = first.remainder;
  TwoSums sums = sum_pixels<C, kLast>(grid, chunk, [&](int64_t pixel, C* sum, C* product) {
    column += pixel - last_pixel;
    last_pixel = pixel;
    if (column >= image.width) {
      const Division<uint32_t> rows = grid.by_width.divide(static_cast<uint32_t>(column));
      row += rows.quotient;
      column = rows.remainder;
    }
    const C g = gather(map_grad, image, row, column);
    const C value = widen(from[pixel * grid.channels]);
    const Masked<C> masked = mask(g, value, own, grid.channels, chunk.channel, activation, is_output);
    *sum += masked.gradient;
    *product += masked.gradient * masked.centred;
  });
  if (block_sums<kLast>(sums)) put_sums(partial, grid, chunk.index, chunk.channel, sums);
}

// sums: [2, batch, channels]. One block per image and channel.
__global__ void __launch_bounds__(kThreads)
    finish_gradient_sums_kernel(const double* partial, NormTensor tensor, int64_t chunks, Divisor by_channels,
                                double* sums) {
  wait_for_previous_kernel();
  const Division<uint32_t> row = by_channels.divide(blockIdx.x);
  const int64_t n = row.quotient;
  const int64_t c = row.remainder;
  TwoSums own{0.0, 0.0};
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    const int64_t at = partial_at(tensor, chunks, n, c, i);
    own.first += partial[at];
    own.second += partial[at + tensor.map.channels];
  }
  if (!block_sums<false>(own)) return;
  sums[blockIdx.x] = own.first;
  sums[tensor.batch * tensor.channels + blockIdx.x] = own.second;
}

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
  own[kGradient * depth] = static_cast<C>(scale);
  if (sums == nullptr) return;
  double gradient = 0.0;
  double product = 0.0;
  for (int64_t k = per_image ? n : 0; k < (per_image ? n + 1 : tensor.batch); ++k) {
    gradient += sums[k * channels + c];
    product += sums[total + k * channels + c];
  }
  const auto count = static_cast<double>(tensor.map.height * tensor.map.width * (per_image ? 1 : tensor.batch));
  const double normalise = to_normalised<C>(inputs, is_output, at, c);
  own[kCentred * depth] = static_cast<C>(-scale * normalise * normalise * product / count);
  own[kConstant * depth] = static_cast<C>(-scale * gradient / count);
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

template <typename T>
struct GradientOutput {
  T* __restrict__ x;         // or null
  T* __restrict__ residual;  // or null
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    norm_act_backward_kernel(const T* __restrict__ grad, const T* __restrict__ source, bool is_output,
                             bool through_statistics, GradientOutput<T> out, const __grid_constant__ PaddedImage image,
                             RowGrid grid, NormActivation activation, const void* __restrict__ parameters) {
  using C = Compute<T>;
  const int64_t map = map_of(grid);
  const C* own = parameters_of<C>(parameters, map, image.channels);
  const int64_t padded = (image.height + image.top + image.bottom) * (image.width + image.left + image.right);
  const T* map_grad = grad + map * padded * image.channels;
  const int64_t first = map * grid.rows * grid.length;
  for_each_element(grid, [&](int64_t row, int64_t column, int64_t c) {
    const int64_t at = first + row * grid.length + column * image.channels + c;
    const C g = gather(map_grad + c, image, row, column);
    if (out.residual != nullptr) out.residual[at] = narrow<T>(g);
    if (out.x == nullptr) return;
    const C value = widen(source[at]);
    const Masked<C> masked = mask(g, value, own, image.channels, c, activation, is_output);
    C result = own[kGradient * image.channels + c] * masked.gradient;
    if (through_statistics) {
      const C mean = own[kCentred * image.channels + c] * masked.centred + own[kConstant * image.channels + c];
      result = result + mean;
    }
    out.x[at] = narrow<T>(result);
  });
}

// Without padding all pixels are read in place, as with zero padding.
PaddedImage image_of(const NormTensor& tensor) {
  PaddedImage image = tensor.map;
  if (!image.is_padded()) image.mode = PaddingMode::kZero;
  return image;
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

int norm_act_sums(const void* grad, const NormSource& source, const NormTensor& tensor,
                  const NormActivation& activation, const void* parameters, double* partial, double* sums,
                  Stream stream) {
  if (tensor.map.width * tensor.map.channels > kLongestRow) return cudaErrorInvalidValue;
  const SumGrid grid(tensor);
  const int error = with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = tensor.channels_last ? norm_act_sums_kernel<T, true> : norm_act_sums_kernel<T, false>;
    return launch_blocks(kernel, grid.blocks, stream, static_cast<const T*>(grad), static_cast<const T*>(source.data),
                         source.is_output, image_of(tensor), grid, activation, parameters, partial);
  });
  if (error != cudaSuccess) return error;
  return launch_overlapping_blocks(grid.blocks, finish_gradient_sums_kernel, tensor.batch * tensor.channels, stream,
                                   static_cast<const double*>(partial), tensor, tensor.chunks(),
                                   Divisor(tensor.channels), sums);
}

int norm_affine(const NormTensor& tensor, const NormInputs& inputs, const NormSource& source, const double* sums,
                const NormParameterVector& grad_weight, const NormParameterVector& grad_bias, Stream stream) {
  return with_arithmetic(tensor.type, [&](auto t) {
    return launch_blocks(norm_affine_kernel<decltype(t)>, blocks_of(tensor.channels), stream, tensor, inputs,
                         source.is_output, sums, grad_weight, grad_bias);
  });
}

int norm_act_backward(const void* grad, const NormSource& source, void* grad_x, void* grad_residual,
                      const NormTensor& tensor, const NormActivation& activation, const void* parameters,
                      Stream stream) {
  const PaddedImage& map = tensor.map;
  if (tensor.maps() * map.channels * map.pixels() == 0) return cudaSuccess;
  if (map.width * map.channels > kLongestRow) return cudaErrorInvalidValue;
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    const RowGrid grid(map.height, map.width, map.channels);
    const GradientOutput<T> out{static_cast<T*>(grad_x), static_cast<T*>(grad_residual)};
    return launch_blocks(norm_act_backward_kernel<T>, tensor.maps() * grid.blocks_per_map, stream,
                         static_cast<const T*>(grad), static_cast<const T*>(source.data), source.is_output,
                         source.through_statistics, out, image_of(tensor), grid, activation, parameters);
  });
}

}  // namespace pix2pixhd::cuda
