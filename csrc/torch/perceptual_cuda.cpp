// The CUDA side of the perceptual loss's operators: allocation and the current stream. The schemas stand in
// torch/perceptual_cpu.cpp.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../cuda/perceptual.h"
#include "stable_cuda.h"
#include "perceptual_arguments.h"

namespace pix2pixhd {
namespace {

cuda::MapShape shape_of(const Picture& map) { return {map.batch, map.channels, map.height, map.width}; }

cuda::MapView view_of(const Picture& map, const OptionalTensor& bias, const OptionalTensor& weight) {
  return {map.batch, map.elements(), map.channels, data_of(bias), data_of(weight)};
}

Tensor relu_mask_(Tensor x, OptionalTensor bias, bool pack) {
  const Picture map(x, "x");
  const DType type = dtype_of(x, "x", 0);
  check_bias(bias, map, type, x);
  const Device device(x);
  const DeviceGuard guard(device.index);
  Tensor mask = empty_1d(pack ? map.mask_words() : 0, kInt, device);
  check_launch(
      cuda::relu(x.mutable_data_ptr(), type, view_of(map, bias, std::nullopt), words_of(mask), current_stream(device)));
  return mask;
}

void relu_backward_(Tensor grad, Tensor mask) {
  const Picture map(grad, "grad");
  const DType type = dtype_of(grad, "grad", 0);
  check_words(mask, map.mask_words(), "mask", grad);
  const Device device(grad);
  const DeviceGuard guard(device.index);
  check_launch(cuda::relu_backward(grad.mutable_data_ptr(), type, view_of(map, std::nullopt, std::nullopt),
                                   words_of(mask), current_stream(device)));
}

std::tuple<Tensor, Tensor, Tensor> relu_distance_(Tensor input, Tensor target, OptionalTensor bias,
                                                  OptionalTensor weight, bool squared, bool target_is_activated,
                                                  bool pack) {
  const DType type = check_pair(input, target);
  const Picture map(input, "input");
  check_bias(bias, map, type, input);
  check_weight(weight, map, type, input);
  const Distance distance = squared ? Distance::kSquared : Distance::kAbsolute;
  const Device device(input);
  const DeviceGuard guard(device.index);
  const cuda::Stream stream = current_stream(device);
  const int32_t wide = scalar_type_of(DType::kFloat64);
  const int64_t blocks = cuda::map_blocks(map.elements());
  Tensor mask = empty_1d(pack ? map.mask_words() : 0, kInt, device);
  Tensor kept = empty_kept(map, distance, pack, type, device);
  Tensor partial = empty_1d(map.batch * blocks, wide, device);
  Tensor loss = empty_1d(map.batch, wide, device);
  if (map.batch == 0) return {loss, mask, kept};
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  void* to_keep = kept.numel() > 0 ? kept.mutable_data_ptr() : nullptr;
  check_launch(cuda::relu_distance(input.mutable_data_ptr(), target.mutable_data_ptr(), target_is_activated, type,
                                   view_of(map, bias, weight), distance, to_keep, words_of(mask), sums, stream));
  // An empty map's mean is 0/0 = NaN, as in PyTorch.
  const double initial = blocks == 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  check_launch(
      cuda::finish_sum(sums, blocks, initial, {loss.mutable_data_ptr(), true}, stream, static_cast<int>(map.batch)));
  return {loss, mask, kept};
}

void relu_distance_backward_(Tensor grad, Tensor mask, Tensor kept, OptionalTensor weight, bool squared,
                             double coefficient) {
  const Picture map(grad, "grad");
  const DType type = dtype_of(grad, "grad", 0);
  const Distance distance = squared ? Distance::kSquared : Distance::kAbsolute;
  check_words(mask, map.mask_words(), "mask", grad);
  check_kept(kept, map, distance, type, grad);
  check_weight(weight, map, type, grad);
  const Device device(grad);
  const DeviceGuard guard(device.index);
  check_launch(cuda::relu_distance_backward(grad.mutable_data_ptr(), type, view_of(map, std::nullopt, weight), distance,
                                            words_of(mask), kept.const_data_ptr(), coefficient,
                                            current_stream(device)));
}

std::tuple<Tensor, Tensor> relu_pool(Tensor x, OptionalTensor bias, bool pack) {
  const Picture from(x, "x");
  const DType type = dtype_of(x, "x", 0);
  check_bias(bias, from, type, x);
  const Device device(x);
  const DeviceGuard guard(device.index);
  Tensor out = from.pooled().empty(type, device);
  Tensor codes = empty_1d(pack ? out.numel() / 32 * 3 : 0, kInt, device);
  check_launch(cuda::relu_pool(x.const_data_ptr(), out.mutable_data_ptr(), type, shape_of(from), data_of(bias),
                               words_of(codes), current_stream(device)));
  return {out, codes};
}

Tensor relu_pool_backward(Tensor grad, Tensor codes, int64_t height, int64_t width) {
  const Picture from(grad, "grad");
  const DType type = dtype_of(grad, "grad", 0);
  const Picture to = from.unpooled(height, width);
  check_words(codes, grad.numel() / 32 * 3, "codes", grad);
  const Device device(grad);
  const DeviceGuard guard(device.index);
  Tensor out = to.empty(type, device);
  check_launch(cuda::relu_pool_backward(grad.const_data_ptr(), out.mutable_data_ptr(), type, shape_of(to),
                                        words_of(codes), current_stream(device)));
  return out;
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CUDA, m) {
  m.impl("relu_mask_", TORCH_BOX(&pix2pixhd::relu_mask_));
  m.impl("relu_backward_", TORCH_BOX(&pix2pixhd::relu_backward_));
  m.impl("relu_distance_", TORCH_BOX(&pix2pixhd::relu_distance_));
  m.impl("relu_distance_backward_", TORCH_BOX(&pix2pixhd::relu_distance_backward_));
  m.impl("relu_pool", TORCH_BOX(&pix2pixhd::relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&pix2pixhd::relu_pool_backward));
}
