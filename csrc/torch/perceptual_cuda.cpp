// CUDA side of the perceptual loss's operators: allocation and launches on the current stream. The schemas are in
// torch/perceptual_cpu.cpp.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../cuda/perceptual.h"
#include "perceptual_arguments.h"
#include "stable_cuda.h"

namespace pix2pixhd {
namespace {

cuda::MapShape shape_of(const FeatureMap& map) { return {map.batch, map.channels, map.height, map.width}; }

cuda::MapView view_of(const PerceptualArguments& arguments) {
  const FeatureMap& map = arguments.map;
  return {map.batch, map.elements(), map.channels, arguments.bias, arguments.weight};
}

Tensor relu_mask_(Tensor x, OptionalTensor bias, bool pack) {
  const auto arguments = PerceptualArguments::relu(x, bias);
  const DeviceGuard guard(arguments.device.index);
  Tensor mask = arguments.empty_mask(pack);
  check_launch(cuda::relu(x.mutable_data_ptr(), arguments.type, view_of(arguments), words_of(mask),
                          current_stream(arguments.device)));
  return mask;
}

void relu_backward_(Tensor grad, Tensor mask) {
  const auto arguments = PerceptualArguments::relu_backward(grad, mask);
  const DeviceGuard guard(arguments.device.index);
  check_launch(cuda::relu_backward(grad.mutable_data_ptr(), arguments.type, view_of(arguments), words_of(mask),
                                   current_stream(arguments.device)));
}

void* data_or_null(const Tensor& tensor) { return tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr; }

// The means [batch] of a distance, and the packed mask and what the backward needs. launch(mask, kept, partial, stream)
// writes one sum per block to partial, [batch, blocks], and returns an error code.
template <typename F>
std::tuple<Tensor, Tensor, Tensor> distances(const PerceptualArguments& arguments, int64_t blocks, bool pack,
                                             const F& launch) {
  const Device device = arguments.device;
  const int64_t batch = arguments.map.batch;
  const DeviceGuard guard(device.index);
  const cuda::Stream stream = current_stream(device);
  Tensor mask = arguments.empty_mask(pack);
  Tensor kept = arguments.empty_kept(pack);
  const int32_t float64 = scalar_type_of(DType::kFloat64);
  Tensor partial = empty_1d(batch * blocks, float64, device);
  Tensor loss = empty_1d(batch, float64, device);
  if (batch == 0) return {loss, mask, kept};
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  check_launch(launch(words_of(mask), data_or_null(kept), sums, stream));
  // The mean of an empty map is 0/0 = NaN, as in PyTorch.
  const double initial = blocks == 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  check_launch(
      cuda::finish_sum(sums, blocks, initial, {loss.mutable_data_ptr(), true}, stream, static_cast<int>(batch)));
  return {loss, mask, kept};
}

std::tuple<Tensor, Tensor, Tensor> relu_distance_(Tensor input, Tensor target, OptionalTensor bias,
                                                  OptionalTensor weight, bool squared, bool target_is_activated,
                                                  bool pack) {
  const auto arguments = PerceptualArguments::relu_distance(input, target, bias, weight, squared);
  const int64_t blocks = cuda::map_blocks(arguments.map.elements());
  return distances(arguments, blocks, pack, [&](auto* mask, void* kept, double* partial, cuda::Stream stream) {
    return cuda::relu_distance(input.mutable_data_ptr(), target.mutable_data_ptr(), target_is_activated, arguments.type,
                               view_of(arguments), arguments.distance, kept, mask, partial, stream);
  });
}

std::tuple<Tensor, Tensor, Tensor> relu_lpips_(Tensor input, Tensor target, OptionalTensor bias, Tensor linear,
                                               OptionalTensor weight, bool target_is_activated, double kept_scale,
                                               bool pack) {
  const auto arguments = PerceptualArguments::relu_lpips(input, target, bias, linear, weight);
  const int64_t blocks = cuda::lpips_blocks(arguments.map.pixels());
  return distances(arguments, blocks, pack, [&](auto* mask, void* kept, double* partial, cuda::Stream stream) {
    return cuda::relu_lpips(input.mutable_data_ptr(), target.mutable_data_ptr(), target_is_activated, arguments.type,
                            view_of(arguments), linear.const_data_ptr(), kept_scale, kept, mask, partial, stream);
  });
}

void relu_distance_backward_(Tensor grad, Tensor mask, Tensor kept, OptionalTensor weight, bool squared,
                             double coefficient) {
  const auto arguments = PerceptualArguments::relu_distance_backward(grad, mask, kept, weight, squared);
  const DeviceGuard guard(arguments.device.index);
  check_launch(cuda::relu_distance_backward(grad.mutable_data_ptr(), arguments.type, view_of(arguments),
                                            arguments.distance, words_of(mask), kept.const_data_ptr(), coefficient,
                                            current_stream(arguments.device)));
}

std::tuple<Tensor, Tensor> relu_pool(Tensor x, OptionalTensor bias, bool pack) {
  const auto arguments = PerceptualArguments::relu_pool(x, bias);
  const DeviceGuard guard(arguments.device.index);
  Tensor out = arguments.map.pooled().empty(arguments.type, arguments.device);
  Tensor codes = arguments.empty_codes(pack);
  check_launch(cuda::relu_pool(x.const_data_ptr(), out.mutable_data_ptr(), arguments.type, shape_of(arguments.map),
                               arguments.bias, words_of(codes), current_stream(arguments.device)));
  return {out, codes};
}

Tensor relu_pool_backward(Tensor grad, Tensor codes, int64_t height, int64_t width) {
  const auto arguments = PerceptualArguments::relu_pool_backward(grad, codes);
  const FeatureMap to = arguments.map.unpooled(height, width);
  const DeviceGuard guard(arguments.device.index);
  Tensor out = to.empty(arguments.type, arguments.device);
  check_launch(cuda::relu_pool_backward(grad.const_data_ptr(), out.mutable_data_ptr(), arguments.type, shape_of(to),
                                        words_of(codes), current_stream(arguments.device)));
  return out;
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CUDA, m) {
  m.impl("relu_mask_", TORCH_BOX(&pix2pixhd::relu_mask_));
  m.impl("relu_backward_", TORCH_BOX(&pix2pixhd::relu_backward_));
  m.impl("relu_distance_", TORCH_BOX(&pix2pixhd::relu_distance_));
  m.impl("relu_distance_backward_", TORCH_BOX(&pix2pixhd::relu_distance_backward_));
  m.impl("relu_lpips_", TORCH_BOX(&pix2pixhd::relu_lpips_));
  m.impl("relu_pool", TORCH_BOX(&pix2pixhd::relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&pix2pixhd::relu_pool_backward));
}
