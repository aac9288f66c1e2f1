// The CPU side of the perceptual loss's operators: the elementwise parts of VGG, in place where there is a place.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "stable_tensor.h"

namespace pix2pixhd {
namespace {

constexpr int32_t kInt = static_cast<int32_t>(ScalarType::Int);

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

uint32_t* words_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<uint32_t*>(tensor.mutable_data_ptr()) : nullptr;
}

void check_dense(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(Shape(tensor).is_dense(), "pix2pixhd: ", name, " is written in place and must be dense in memory");
}

int64_t mask_words(int64_t numel) { return (numel + 31) / 32; }

void check_words(const Tensor& words, int64_t expected, const char* name) {
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int && words.is_contiguous() && words.numel() == expected,
                  "pix2pixhd: ", name, " must be the contiguous int32 tensor of ", expected,
                  " words that the forward returned");
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
  check_dense(input, "input");
  const Shape x(input);
  const Shape y(target);
  const DType type = dtype_of(input, "input", 0);
  STD_TORCH_CHECK(x.same_sizes(y) && x.same_layout(y) && type == dtype_of(target, "target", 0),
                  "pix2pixhd: input and target must have the same shape, strides and type, got ", x.str(), " and ",
                  y.str());
  const int64_t n = x.numel();
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
  check_words(mask, mask_words(n), "mask");
  if (signs.numel() > 0) check_words(signs, 2 * mask_words(n), "signs");
  const uint32_t* alive_words = words_of(mask);
  const uint32_t* sign_words = words_of(signs);
  for_each_chunk(n, [&](int64_t begin, int64_t size, int64_t) {
    cpu::kernels().relu_l1_backward(at(grad, begin, type), type, size, alive_words + begin / 32,
                                    sign_words == nullptr ? nullptr : sign_words + begin / 16, coefficient);
  });
}

// [N, C, H, W], channels last.
struct Picture {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;

  explicit Picture(const Tensor& tensor, const char* name) {
    const Shape shape(tensor);
    STD_TORCH_CHECK(shape.ndim == 4 && shape.sizes[1] % 32 == 0, "pix2pixhd: ", name,
                    " must be [N, C, H, W] with C a multiple of 32, got ", shape.str());
    batch = shape.sizes[0];
    channels = shape.sizes[1];
    height = shape.sizes[2];
    width = shape.sizes[3];
    const std::vector<int64_t> strides = channels_last_strides();
    STD_TORCH_CHECK(shape.same_layout(Shape(shape.sizes, strides.data(), 4)), "pix2pixhd: ", name,
                    " must be in channels_last memory format");
  }
  Picture(int64_t n, int64_t c, int64_t h, int64_t w) : batch(n), channels(c), height(h), width(w) {}
  std::vector<int64_t> sizes() const { return {batch, channels, height, width}; }
  std::vector<int64_t> channels_last_strides() const {
    return {height * width * channels, 1, width * channels, channels};
  }
};

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
  const Picture to(from.batch, from.channels, from.height / 2, from.width / 2);
  Tensor out = empty_strided(to.sizes(), to.channels_last_strides(), scalar_type_of(type), Device(x));
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
  STD_TORCH_CHECK(height / 2 == from.height && width / 2 == from.width, "pix2pixhd: height and width must be those ",
                  "before pooling to ", from.height, "x", from.width, ", got ", height, "x", width);
  check_words(codes, grad.numel() / 32 * 3, "codes");
  const Picture to(from.batch, from.channels, height, width);
  Tensor out = empty_strided(to.sizes(), to.channels_last_strides(), scalar_type_of(type), Device(grad));
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
