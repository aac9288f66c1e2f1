// Statistics and forward of norm_act.
//
// Memory traffic: the statistics read x once; the forward reads x and the residual once and writes y once.
#include "norm_act.cuh"

namespace pix2pixhd::cuda {
namespace {

// partial: the sum of each chunk and channel, and the sum of squared deviations from the chunk's mean.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads)
    norm_statistics_kernel(const T* __restrict__ x, SumGrid grid, double* __restrict__ partial) {
  using C = Compute<T>;
  allow_overlap();
  const SumChunk<kLast> chunk = SumChunk<kLast>::of(grid);
  const T* own = x + chunk.map * grid.pixels * grid.channels + chunk.channel;
  C origin = 0;
  if (chunk.channel < grid.channels) {
    // Deviations from the first pixel: a large mean does not cancel. Inf - Inf would be NaN where the mean is Inf.
    const C value = widen(own[chunk.first * grid.channels]);
    origin = value - value == 0 ? value : C(0);
  }
  TwoSums sums = sum_pixels<C, kLast>(grid, chunk, [&](int64_t pixel, C* sum, C* square) {
    const C deviation = widen(own[pixel * grid.channels]) - origin;
    *sum += deviation;
    *square += deviation * deviation;
  });
  if (!block_sums<kLast>(sums)) return;
  const auto count = static_cast<double>(chunk.end - chunk.first);
  const double squares = sums.second - sums.first * sums.first / count;
  put_sums(partial, grid, chunk.index, chunk.channel,
           {sums.first + static_cast<double>(origin) * count, squares < 0.0 ? 0.0 : squares});
}

template <typename C>
struct StatisticsOutput {
  C* mean;
  C* rstd;
  C* var;
};

// One block per row and channel of the statistics.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    finish_statistics_kernel(const double* partial, NormTensor tensor, int64_t images, double eps, int64_t chunks,
                             Divisor by_channels, Divisor by_chunks, StatisticsOutput<C> out) {
  wait_for_previous_kernel();
  __shared__ double shared_mean;
  const Division<uint32_t> row = by_channels.divide(blockIdx.x);
  const int64_t channel = row.remainder;
  const int64_t first = row.quotient * images;
  const int64_t pixels = tensor.map.height * tensor.map.width;
  const int64_t chunk_pixels = tensor.channels_last ? kDeepChunk : kPlaneChunk;
  const auto count = static_cast<double>(images * pixels);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < images * chunks; i += kThreads) {
    const Division<int64_t> chunk = by_chunks.divide(i);
    sum += partial[partial_at(tensor, chunks, first + chunk.quotient, channel, chunk.remainder)];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) shared_mean = sum / count;
  __syncthreads();
  const double mean = shared_mean;
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < images * chunks; i += kThreads) {
    const Division<int64_t> chunk = by_chunks.divide(i);
    const int64_t at = partial_at(tensor, chunks, first + chunk.quotient, channel, chunk.remainder);
    const int64_t left = pixels - chunk.remainder * chunk_pixels;
    const auto size = static_cast<double>(left < chunk_pixels ? left : chunk_pixels);
    const double difference = partial[at] / size - mean;
    squares += partial[at + tensor.map.channels] + size * difference * difference;
  }
  squares = block_sum(squares);
  if (threadIdx.x != 0) return;
  const double var = squares / count;
  out.mean[blockIdx.x] = static_cast<C>(mean);
  out.rstd[blockIdx.x] = static_cast<C>(1.0 / sqrt(var + eps));
  out.var[blockIdx.x] = static_cast<C>(var);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    norm_act_kernel(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                    const __grid_constant__ PaddedImage image, RowGrid grid, NormActivation activation,
                    const void* __restrict__ parameters) {
  using C = Compute<T>;
  const int64_t map = map_of(grid);
  const C* own = parameters_of<C>(parameters, map, image.channels);
  const int64_t source_map = map * image.height;
  T* to = y + map * grid.rows * grid.length;
  const auto slope = static_cast<C>(activation.slope);
  for_each_element(grid, [&](int64_t row, int64_t column, int64_t c) {
    const int64_t source_row = padding_source(row, image.top, image.height, image.mode);
    const int64_t source_column = padding_source(column, image.left, image.width, image.mode);
    C result = 0;
    if (source_row >= 0 && source_column >= 0) {
      const int64_t from = ((source_map + source_row) * image.width + source_column) * image.channels + c;
      const C scale = own[kScale * image.channels + c];
      const C z = (widen(x[from]) - own[kOffset * image.channels + c]) * scale + own[kShift * image.channels + c];
      result = z;
      if (activation.kind == Activation::kRelu) {
        result = passes_relu(z) ? z : C(0);
      } else if (activation.kind == Activation::kLeakyRelu) {
        result = z > 0 ? z : z * slope;
      }
      if (residual != nullptr) result = result + widen(residual[from]);
    }
    to[row * grid.length + column * image.channels + c] = narrow<T>(result);
  });
}

}  // namespace

int norm_statistics(const void* x, const NormTensor& tensor, int64_t rows, double eps, double* partial, void* mean,
                    void* rstd, void* var, Stream stream) {
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const SumGrid grid(tensor);
    const auto kernel = tensor.channels_last ? norm_statistics_kernel<T, true> : norm_statistics_kernel<T, false>;
    const int error = launch_blocks(kernel, grid.blocks, stream, static_cast<const T*>(x), grid, partial);
    if (error != cudaSuccess) return error;
    // The mean of no pixels is 0/0 = NaN, as in PyTorch.
    const StatisticsOutput<C> out{static_cast<C*>(mean), static_cast<C*>(rstd), static_cast<C*>(var)};
    return launch_overlapping_blocks(grid.blocks, finish_statistics_kernel<C>, rows * tensor.channels, stream,
                                     static_cast<const double*>(partial), tensor,
                                     rows == tensor.batch ? 1 : tensor.batch, eps, tensor.chunks(),
                                     Divisor(tensor.channels), Divisor(tensor.chunks()), out);
  });
}

int norm_act(const void* x, const void* residual, void* y, const NormTensor& tensor, const NormActivation& activation,
             const void* parameters, Stream stream) {
  const PaddedImage& map = tensor.map;
  const int64_t height = map.padded_height();
  const int64_t width = map.padded_width();
  if (tensor.maps() * map.channels * height * width == 0) return cudaSuccess;
  if (width * map.channels > kLongestRow) return cudaErrorInvalidValue;
  return with_type(tensor.type, [&](auto t) {
    using T = decltype(t);
    const RowGrid grid(height, width, map.channels);
    return launch_blocks(norm_act_kernel<T>, tensor.maps() * grid.blocks_per_map, stream, static_cast<const T*>(x),
                         static_cast<const T*>(residual), static_cast<T*>(y), map, grid, activation, parameters);
  });
}

}  // namespace pix2pixhd::cuda
