// CPU side of the perceptual loss's operators: the elementwise stages between the convolutions, in place where
// possible.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "perceptual_arguments.h"
#include "stable_tensor.h"

namespace pix2pixhd {
namespace {

int64_t chunks_of(const FeatureMap& map) { return (map.elements() + cpu::kChunk - 1) / cpu::kChunk; }

// Calls f(first element, chunk, index of the chunk) for the chunks of all images, in parallel.
template <typename F>
void for_each_chunk(const PerceptualArguments& arguments, const F& f) {
  const FeatureMap& map = arguments.map;
  const int64_t chunks = chunks_of(map);
  const int64_t weight_size = element_size(compute_type(arguments.type));
  const auto* weight = static_cast<const char*>(arguments.weight);
  torch::stable::parallel_for(0, map.batch * chunks, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t within = i % chunks * cpu::kChunk;
      const int64_t begin = i / chunks * map.elements() + within;
      const int64_t pixel = begin / map.channels;
      f(begin,
        cpu::MapChunk{std::min(cpu::kChunk, map.elements() - within), map.channels, begin % map.channels,
                      arguments.bias, weight == nullptr ? nullptr : weight + pixel * weight_size},
        i);
    }
  });
}

char* at(const Tensor& tensor, int64_t element, DType type) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + element * element_size(type);
}

Tensor relu_mask_(Tensor x, OptionalTensor bias, bool pack) {
  const auto arguments = PerceptualArguments::relu(x, bias);
  const DType type = arguments.type;
  Tensor mask = arguments.empty_mask(pack);
  uint32_t* words = words_of(mask);
  for_each_chunk(arguments, [&](int64_t begin, const cpu::MapChunk& chunk, int64_t) {
    cpu::kernels().relu(at(x, begin, type), type, chunk, words == nullptr ? nullptr : words + begin / 32);
  });
  return mask;
}

void relu_backward_(Tensor grad, Tensor mask) {
  const auto arguments = PerceptualArguments::relu_backward(grad, mask);
  const DType type = arguments.type;
  const uint32_t* words = words_of(mask);
  for_each_chunk(arguments, [&](int64_t begin, const cpu::MapChunk& chunk, int64_t) {
    cpu::kernels().relu_backward(at(grad, begin, type), type, chunk.size, words + begin / 32);
  });
}

// The saved signs or difference of this element, or null without any.
char* kept_at(const Tensor& kept, int64_t element, Distance distance, DType type) {
  if (kept.numel() == 0) return nullptr;
  return distance == Distance::kAbsolute ? reinterpret_cast<char*>(words_of(kept) + element / 16)
                                         : at(kept, element, type);
}

// The means [batch] of `count` terms per image, from the sums of chunks. The mean of no terms is NaN, as in PyTorch.
Tensor image_means(const std::vector<double>& partial, int64_t batch, int64_t count, Device device) {
  Tensor loss = empty_1d(batch, scalar_type_of(DType::kFloat64), device);
  auto* means = static_cast<double*>(loss.mutable_data_ptr());
  const auto chunks = static_cast<int64_t>(partial.size()) / std::max<int64_t>(batch, 1);
  for (int64_t n = 0; n < batch; ++n) {
    double sum = 0.0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[n * chunks + i];
    means[n] = sum / static_cast<double>(count);
  }
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> relu_distance_(Tensor input, Tensor target, OptionalTensor bias,
                                                  OptionalTensor weight, bool squared, bool target_is_activated,
                                                  bool pack) {
  const auto arguments = PerceptualArguments::relu_distance(input, target, bias, weight, squared);
  const FeatureMap& map = arguments.map;
  const DType type = arguments.type;
  const Distance distance = arguments.distance;
  Tensor mask = arguments.empty_mask(pack);
  Tensor kept = arguments.empty_kept(pack);
  uint32_t* words = words_of(mask);
  std::vector<double> partial(map.batch * chunks_of(map));
  for_each_chunk(arguments, [&](int64_t begin, const cpu::MapChunk& chunk, int64_t i) {
    partial[i] = cpu::kernels().relu_distance(at(input, begin, type), at(target, begin, type), target_is_activated,
                                              type, chunk, distance, kept_at(kept, begin, distance, type),
                                              words == nullptr ? nullptr : words + begin / 32);
  });
  return {image_means(partial, map.batch, map.elements(), arguments.device), mask, kept};
}

void relu_distance_backward_(Tensor grad, Tensor mask, Tensor kept, OptionalTensor weight, bool squared,
                             double coefficient) {
  const auto arguments = PerceptualArguments::relu_distance_backward(grad, mask, kept, weight, squared);
  const DType type = arguments.type;
  const Distance distance = arguments.distance;
  const uint32_t* words = words_of(mask);
  for_each_chunk(arguments, [&](int64_t begin, const cpu::MapChunk& chunk, int64_t) {
    cpu::kernels().relu_distance_backward(at(grad, begin, type), type, chunk, distance, words + begin / 32,
                                          kept_at(kept, begin, distance, type), coefficient);
  });
}

std::tuple<Tensor, Tensor, Tensor> relu_lpips_(Tensor input, Tensor target, OptionalTensor bias, Tensor linear,
                                               OptionalTensor weight, bool target_is_activated, double kept_scale,
                                               bool pack) {
  const auto arguments = PerceptualArguments::relu_lpips(input, target, bias, linear, weight);
  const FeatureMap& map = arguments.map;
  const DType type = arguments.type;
  Tensor mask = arguments.empty_mask(pack);
  Tensor kept = arguments.empty_kept(pack);
  uint32_t* words = words_of(mask);
  // Whole pixels, of about as many elements as the chunks of the other kernels.
  const int64_t size = std::max<int64_t>(cpu::kChunk / std::max<int64_t>(map.channels, 1), 1);
  const int64_t chunks = (map.pixels() + size - 1) / size;
  const int64_t weight_size = element_size(compute_type(type));
  std::vector<double> partial(map.batch * chunks);
  torch::stable::parallel_for(0, map.batch * chunks, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t within = i % chunks * size;
      const int64_t pixel = i / chunks * map.pixels() + within;
      const int64_t begin = pixel * map.channels;
      const auto* weights = static_cast<const char*>(arguments.weight);
      const cpu::LpipsPixels pixels{std::min(size, map.pixels() - within), map.channels, arguments.bias,
                                    linear.const_data_ptr(),
                                    weights == nullptr ? nullptr : weights + pixel * weight_size};
      partial[i] = cpu::kernels().relu_lpips(at(input, begin, type), at(target, begin, type), target_is_activated, type,
                                             pixels, kept_scale, pack ? at(kept, begin, type) : nullptr,
                                             words == nullptr ? nullptr : words + begin / 32);
    }
  });
  return {image_means(partial, map.batch, map.pixels(), arguments.device), mask, kept};
}

// Calls f(image in the batch, pooled row) for all pooled rows, in parallel.
template <typename F>
void for_each_row(const FeatureMap& pooled, const F& f) {
  torch::stable::parallel_for(0, pooled.batch * pooled.height, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) f(row / pooled.height, row % pooled.height);
  });
}

std::tuple<Tensor, Tensor> relu_pool(Tensor x, OptionalTensor bias, bool pack) {
  const auto arguments = PerceptualArguments::relu_pool(x, bias);
  const FeatureMap& from = arguments.map;
  const FeatureMap to = from.pooled();
  const DType type = arguments.type;
  Tensor out = to.empty(type, arguments.device);
  Tensor codes = arguments.empty_codes(pack);
  if (to.numel() == 0) return {out, codes};  // maybe of many rows
  uint32_t* words = words_of(codes);
  for_each_row(to, [&](int64_t n, int64_t row) {
    const int64_t upper = (n * from.height + 2 * row) * from.width * from.channels;
    const int64_t result = (n * to.height + row) * to.width * to.channels;
    cpu::kernels().relu_pool(at(x, upper, type), at(x, upper + from.width * from.channels, type), at(out, result, type),
                             type, to.width, to.channels, arguments.bias,
                             words == nullptr ? nullptr : words + result / 32 * 3);
  });
  return {out, codes};
}

Tensor relu_pool_backward(Tensor grad, Tensor codes, int64_t height, int64_t width) {
  const auto arguments = PerceptualArguments::relu_pool_backward(grad, codes);
  const FeatureMap& from = arguments.map;
  const FeatureMap to = from.unpooled(height, width);
  const DType type = arguments.type;
  Tensor out = to.empty(type, arguments.device);
  if (to.numel() == 0) return out;  // maybe of many rows
  const uint32_t* words = words_of(codes);
  const int64_t row_bytes = to.width * to.channels * element_size(type);
  for_each_row(from, [&](int64_t n, int64_t row) {
    const int64_t source = (n * from.height + row) * from.width * from.channels;
    char* upper = at(out, (n * to.height + 2 * row) * to.width * to.channels, type);
    char* lower = upper + row_bytes;
    cpu::kernels().relu_pool_backward(at(grad, source, type), upper, lower, type, from.width, from.channels,
                                      words + source / 32 * 3);
    // Pooling drops an odd last column and an odd last row: their gradient is zero.
    const int64_t pooled_bytes = 2 * from.width * to.channels * element_size(type);
    std::fill(upper + pooled_bytes, upper + row_bytes, char{0});
    std::fill(lower + pooled_bytes, lower + row_bytes, char{0});
    if (row == from.height - 1 && to.height % 2 != 0) std::fill(lower + row_bytes, lower + 2 * row_bytes, char{0});
  });
  if (to.height == 1) std::fill(at(out, 0, type), at(out, out.numel(), type), char{0});  // no row was pooled
  return out;
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_FRAGMENT(pix2pixhd, m) {
  m.def("relu_mask_(Tensor(a!) x, Tensor? bias, bool pack) -> Tensor");
  m.def("relu_backward_(Tensor(a!) grad, Tensor mask) -> ()");
  m.def(
      "relu_distance_(Tensor(a!) input, Tensor(b!) target, Tensor? bias, Tensor? weight, bool squared, "
      "bool target_is_activated, bool pack) -> (Tensor, Tensor, Tensor)");
  m.def(
      "relu_distance_backward_(Tensor(a!) grad, Tensor mask, Tensor kept, Tensor? weight, bool squared, "
      "float coefficient) -> ()");
  m.def(
      "relu_lpips_(Tensor(a!) input, Tensor(b!) target, Tensor? bias, Tensor linear, Tensor? weight, "
      "bool target_is_activated, float kept_scale, bool pack) -> (Tensor, Tensor, Tensor)");
  m.def("relu_pool(Tensor x, Tensor? bias, bool pack) -> (Tensor, Tensor)");
  m.def("relu_pool_backward(Tensor grad, Tensor codes, SymInt height, SymInt width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CPU, m) {
  m.impl("relu_mask_", TORCH_BOX(&pix2pixhd::relu_mask_));
  m.impl("relu_backward_", TORCH_BOX(&pix2pixhd::relu_backward_));
  m.impl("relu_distance_", TORCH_BOX(&pix2pixhd::relu_distance_));
  m.impl("relu_distance_backward_", TORCH_BOX(&pix2pixhd::relu_distance_backward_));
  m.impl("relu_lpips_", TORCH_BOX(&pix2pixhd::relu_lpips_));
  m.impl("relu_pool", TORCH_BOX(&pix2pixhd::relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&pix2pixhd::relu_pool_backward));
}
