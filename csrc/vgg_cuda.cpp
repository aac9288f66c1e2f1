// The CUDA side of the perceptual loss's operators: allocation and the current stream. The schemas stand in
// vgg_cpu.cpp.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "cuda/vgg.h"
#include "stable_cuda.h"
#include "vgg_common.h"

namespace pix2pixhd {
namespace {

cuda::MapShape map_of(const Picture& picture) {
  return {picture.batch, picture.channels, picture.height, picture.width};
}

Tensor relu_mask_(Tensor x, bool pack) {
  check_dense(x, "x");
  const DType type = dtype_of(x, "x", 0);
  const Device device(x);
  const DeviceGuard guard(device.index);
  const int64_t n = x.numel();
  Tensor mask = empty_1d(pack ? mask_words(n) : 0, kInt, device);
  check_launch(cuda::relu(x.mutable_data_ptr(), type, n, words_of(mask), current_stream(device)));
  return mask;
}

std::tuple<Tensor, Tensor, Tensor> relu_l1_(Tensor input, Tensor target, bool pack) {
  const DType type = check_pair(input, target);
  const Device device(input);
  const DeviceGuard guard(device.index);
  const cuda::Stream stream = current_stream(device);
  const int64_t n = input.numel();
  const int32_t wide = scalar_type_of(DType::kFloat64);
  Tensor signs = empty_1d(pack ? 2 * mask_words(n) : 0, kInt, device);
  Tensor mask = empty_1d(pack ? mask_words(n) : 0, kInt, device);
  Tensor partial = empty_1d(cuda::map_blocks(n), wide, device);
  Tensor loss = empty_scalar(wide, device);
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  check_launch(cuda::relu_l1(input.mutable_data_ptr(), target.mutable_data_ptr(), type, n, words_of(signs),
                             words_of(mask), sums, stream));
  // An empty tensor's mean is 0/0 = NaN, as in PyTorch.
  const double initial = n == 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  check_launch(cuda::finish_sum(sums, cuda::map_blocks(n), initial, {loss.mutable_data_ptr(), true}, stream));
  return {loss, signs, mask};
}

void relu_l1_backward_(Tensor grad, Tensor mask, Tensor signs, double coefficient) {
  check_dense(grad, "grad");
  const DType type = dtype_of(grad, "grad", 0);
  const Device device(grad);
  const int64_t n = grad.numel();
  check_words(mask, mask_words(n), "mask", grad);
  if (signs.numel() > 0) check_words(signs, 2 * mask_words(n), "signs", grad);
  const DeviceGuard guard(device.index);
  check_launch(cuda::relu_l1_backward(grad.mutable_data_ptr(), type, n, words_of(mask), words_of(signs), coefficient,
                                      current_stream(device)));
}

std::tuple<Tensor, Tensor> relu_pool(Tensor x, bool pack) {
  const Picture from(x, "x");
  const DType type = dtype_of(x, "x", 0);
  const Device device(x);
  const DeviceGuard guard(device.index);
  Tensor out = from.pooled().empty(type, device);
  Tensor codes = empty_1d(pack ? out.numel() / 32 * 3 : 0, kInt, device);
  check_launch(cuda::relu_pool(x.const_data_ptr(), out.mutable_data_ptr(), type, map_of(from), words_of(codes),
                               current_stream(device)));
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
  check_launch(cuda::relu_pool_backward(grad.const_data_ptr(), out.mutable_data_ptr(), type, map_of(to),
                                        words_of(codes), current_stream(device)));
  return out;
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CUDA, m) {
  m.impl("relu_mask_", TORCH_BOX(&pix2pixhd::relu_mask_));
  m.impl("relu_l1_", TORCH_BOX(&pix2pixhd::relu_l1_));
  m.impl("relu_l1_backward_", TORCH_BOX(&pix2pixhd::relu_l1_backward_));
  m.impl("relu_pool", TORCH_BOX(&pix2pixhd::relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&pix2pixhd::relu_pool_backward));
}
