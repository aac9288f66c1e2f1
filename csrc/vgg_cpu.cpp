// The CPU side of the perceptual loss's operators: the elementwise parts of VGG, in place where there is a place.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "stable_tensor.h"
#include "vgg_common.h"

namespace pix2pixhd {
namespace {

// Calls f(begin, size, chunk) for the chunks of n elements, shared between threads.
template <typename F>
void for_each_chunk(int64_t n, const F& f) {
  const int64_t chunks = (n + cpu::kChunk - 1) / cpu::kChunk;
  torch::stable::parallel_for(0, chunks, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) f(i * cpu::kChunk, std::min(cpu::kChunk, n - i * cpu::kChunk), i);
  });
}

char* at(const Tensor& tensor, int64_t element, DType type) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + element * element_size(type);
}

Tensor relu_mask_(Tensor x, bool pack) {
  check_dense(x, "x");
  const int64_t n = x.numel();
  const DType type = dtype_of(x, "x", 0);
  Tensor mask = empty_1d(pack ? mask_words(n) : 0, kInt, Device(x));
  uint32_t* words = words_of(mask);
  for_each_chunk(n, [&](int64_t begin, int64_t size, int64_t) {
    cpu::kernels().relu(at(x, begin, type), type, size, words == nullptr ? nullptr : words + begin / 32);
  });
  return mask;
}

std::tuple<Tensor, Tensor, Tensor> relu_l1_(Tensor input, Tensor target, bool pack) {
  const DType type = check_pair(input, target);
  const int64_t n = input.numel();
  Tensor signs = empty_1d(pack ? 2 * mask_words(n) : 0, kInt, Device(input));
  Tensor mask = empty_1d(pack ? mask_words(n) : 0, kInt, Device(input));
  uint32_t* sign_words = words_of(signs);
  uint32_t* alive_words = words_of(mask);
  std::vector<double> partial((n + cpu::kChunk - 1) / cpu::kChunk);
  for_each_chunk(n, [&](int64_t begin, int64_t size, int64_t chunk) {
    partial[chunk] =
        cpu::kernels().relu_l1(at(input, begin, type), at(target, begin, type), type, size,
                               pack ? sign_words + begin / 16 : nullptr, pack ? alive_words + begin / 32 : nullptr);
  });
  double sum = 0.0;
  for (const double part : partial) sum += part;
  Tensor loss = empty_scalar(scalar_type_of(DType::kFloat64), Device(input));
  *static_cast<double*>(loss.mutable_data_ptr()) = sum / static_cast<double>(n);
  return {loss, signs, mask};
}

void relu_l1_backward_(Tensor grad, Tensor mask, Tensor signs, double coefficient) {
  check_dense(grad, "grad");
  const int64_t n = grad.numel();
  const DType type = dtype_of(grad, "grad", 0);
  check_words(mask, mask_words(n), "mask", grad);
  if (signs.numel() > 0) check_words(signs, 2 * mask_words(n), "signs", grad);
  const uint32_t* alive_words = words_of(mask);
  const uint32_t* sign_words = words_of(signs);
  for_each_chunk(n, [&](int64_t begin, int64_t size, int64_t) {
    cpu::kernels().relu_l1_backward(at(grad, begin, type), type, size, alive_words + begin / 32,
                                    sign_words == nullptr ? nullptr : sign_words + begin / 16, coefficient);
  });
}

// Calls f(picture in the batch, pooled row) for all pooled rows, shared between threads.
template <typename F>
void for_each_row(const Picture& pooled, const F& f) {
  torch::stable::parallel_for(0, pooled.batch * pooled.height, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) f(row / pooled.height, row % pooled.height);
  });
}

std::tuple<Tensor, Tensor> relu_pool(Tensor x, bool pack) {
  const Picture from(x, "x");
  const DType type = dtype_of(x, "x", 0);
  const Picture to = from.pooled();
  Tensor out = to.empty(type, Device(x));
  Tensor codes = empty_1d(pack ? out.numel() / 32 * 3 : 0, kInt, Device(x));
  uint32_t* words = words_of(codes);
  for_each_row(to, [&](int64_t n, int64_t row) {
    const int64_t upper = (n * from.height + 2 * row) * from.width * from.channels;
    const int64_t result = (n * to.height + row) * to.width * to.channels;
    cpu::kernels().relu_pool(at(x, upper, type), at(x, upper + from.width * from.channels, type), at(out, result, type),
                             type, to.width, to.channels, words == nullptr ? nullptr : words + result / 32 * 3);
  });
  return {out, codes};
}

Tensor relu_pool_backward(Tensor grad, Tensor codes, int64_t height, int64_t width) {
  const Picture from(grad, "grad");
  const DType type = dtype_of(grad, "grad", 0);
  const Picture to = from.unpooled(height, width);
  check_words(codes, grad.numel() / 32 * 3, "codes", grad);
  Tensor out = to.empty(type, Device(grad));
  const uint32_t* words = words_of(codes);
  const int64_t row_bytes = to.width * to.channels * element_size(type);
  for_each_row(from, [&](int64_t n, int64_t row) {
    const int64_t source = (n * from.height + row) * from.width * from.channels;
    char* upper = at(out, (n * to.height + 2 * row) * to.width * to.channels, type);
    char* lower = upper + row_bytes;
    cpu::kernels().relu_pool_backward(at(grad, source, type), upper, lower, type, from.width, from.channels,
                                      words + source / 32 * 3);
    // Pooling leaves an odd last column, and an odd last row, out.
    const int64_t pooled_bytes = 2 * from.width * to.channels * element_size(type);
    std::fill(upper + pooled_bytes, upper + row_bytes, char{0});
    std::fill(lower + pooled_bytes, lower + row_bytes, char{0});
    if (row == from.height - 1 && to.height % 2 != 0) std::fill(lower + row_bytes, lower + 2 * row_bytes, char{0});
  });
  if (to.height == 1) std::fill(at(out, 0, type), at(out, out.numel(), type), char{0});  // there was no row to pool
  return out;
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_FRAGMENT(pix2pixhd, m) {
  m.def("relu_mask_(Tensor(a!) x, bool pack) -> Tensor");
  m.def("relu_l1_(Tensor(a!) input, Tensor(b!) target, bool pack) -> (Tensor, Tensor, Tensor)");
  m.def("relu_l1_backward_(Tensor(a!) grad, Tensor mask, Tensor signs, float coefficient) -> ()");
  m.def("relu_pool(Tensor x, bool pack) -> (Tensor, Tensor)");
  m.def("relu_pool_backward(Tensor grad, Tensor codes, SymInt height, SymInt width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CPU, m) {
  m.impl("relu_mask_", TORCH_BOX(&pix2pixhd::relu_mask_));
  m.impl("relu_l1_", TORCH_BOX(&pix2pixhd::relu_l1_));
  m.impl("relu_l1_backward_", TORCH_BOX(&pix2pixhd::relu_l1_backward_));
  m.impl("relu_pool", TORCH_BOX(&pix2pixhd::relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&pix2pixhd::relu_pool_backward));
}
