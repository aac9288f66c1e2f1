// Arguments of the perceptual loss's operators: the checks and the buffers that the CPU and the CUDA side share.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "stable_tensor.h"
#include "tensor_memory.h"

namespace pix2pixhd {

constexpr int32_t kInt = static_cast<int32_t>(ScalarType::Int);

using OptionalTensor = std::optional<Tensor>;

// The data pointer, or null for an empty tensor.
inline uint32_t* words_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<uint32_t*>(tensor.mutable_data_ptr()) : nullptr;
}

// The data pointer, or null for None.
inline const void* data_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// The dispatcher chooses one device even when the tensors are on several.
inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  const Device a(tensor);
  const Device b(other);
  STD_TORCH_CHECK(a.type == b.type && a.index == b.index, "pix2pixhd: ", name, " must be on the device of ", other_name,
                  "; move one to the other's with .to()");
}

inline void check_words(const Tensor& words, int64_t expected, const char* name, const Tensor& grad) {
  check_defined(words, name);
  STD_TORCH_CHECK(is_int32(words) && words.is_contiguous() && words.numel() == expected, "pix2pixhd: ", name,
                  " must be the contiguous int32 tensor of ", expected, " words that the forward returned");
  check_memory(words, name);
  check_same_device(words, name, grad, "grad");
}

inline void check_contiguous(const Tensor& tensor, const char* name, int64_t numel, DType type, const Tensor& map) {
  const DType own = dtype_of(tensor, name);
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == numel && own == type, "pix2pixhd: ", name,
                  " must be a contiguous ", name_of(type), " tensor of ", numel, " elements, got ", name_of(own),
                  " of shape ", Shape(tensor).str(), "; convert it with .to(), or call .contiguous()");
  check_same_device(tensor, name, map, "the feature map");
}

// A feature map [N, C, H, W] in channels-last memory format. C is a multiple of 32.
struct FeatureMap {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;

  explicit FeatureMap(const Tensor& tensor, const char* name) {
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
  FeatureMap(int64_t n, int64_t c, int64_t h, int64_t w) : batch(n), channels(c), height(h), width(w) {}

  int64_t pixels() const { return height * width; }         // per image
  int64_t elements() const { return pixels() * channels; }  // per image
  int64_t numel() const { return batch * elements(); }      // of the whole batch
  int64_t mask_words() const { return numel() / 32; }
  int64_t code_words() const { return 3 * mask_words(); }  // of the pooled map
  FeatureMap pooled() const { return {batch, channels, height / 2, width / 2}; }
  // The map whose pooling gives this one. Height and width are arguments because pooling drops an odd row or column.
  FeatureMap unpooled(int64_t full_height, int64_t full_width) const {
    STD_TORCH_CHECK(full_height >= 0 && full_width >= 0 && full_height / 2 == height && full_width / 2 == width,
                    "pix2pixhd: height and width must be those before pooling to ", height, "x", width, ", got ",
                    full_height, "x", full_width);
    return {batch, channels, full_height, full_width};
  }
  std::vector<int64_t> sizes() const { return {batch, channels, height, width}; }
  std::vector<int64_t> channels_last_strides() const {
    return {height * width * channels, 1, width * channels, channels};
  }
  Tensor empty(DType type, Device device) const {
    return empty_strided(sizes(), channels_last_strides(), scalar_type_of(type), device);
  }
};

// The dtype of the arithmetic on a map.
inline DType compute_type(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }

// The checked arguments of one operator call. Each static function checks the arguments of the operator that it is
// named after.
struct PerceptualArguments {
  FeatureMap map;  // of the tensor that the operator reads or overwrites
  DType type;
  Device device;
  const void* bias = nullptr;    // [C] in the map's dtype, or null
  const void* weight = nullptr;  // [N, H, W], float64 for a float64 map, otherwise float32; or null
  Distance distance = Distance::kAbsolute;

  static PerceptualArguments relu(const Tensor& x, const OptionalTensor& bias) {
    PerceptualArguments arguments = relu_pool(x, bias);
    if (bias.has_value()) check_apart(x, "x", *bias, "bias");
    return arguments;
  }

  static PerceptualArguments relu_backward(const Tensor& grad, const Tensor& mask) {
    PerceptualArguments arguments(grad, "grad");
    check_words(mask, arguments.map.mask_words(), "mask", grad);
    check_apart(grad, "grad", mask, "mask");
    return arguments;
  }

  static PerceptualArguments relu_distance(const Tensor& input, const Tensor& target, const OptionalTensor& bias,
                                           const OptionalTensor& weight, bool squared) {
    check_same_device(target, "target", input, "input");
    const Shape x(input);
    const Shape y(target);
    STD_TORCH_CHECK(x.same_sizes(y) && x.same_layout(y) && dtype_of(input, "input") == dtype_of(target, "target"),
                    "pix2pixhd: input and target must have the same shape, strides and dtype, got ", x.str(), " and ",
                    y.str());
    PerceptualArguments arguments(input, "input");
    arguments.set_bias(bias, input);
    arguments.set_distance(squared, weight, input);
    check_apart(input, "input", target, "target");
    for (const auto& [written, name] : {std::pair(&input, "input"), std::pair(&target, "target")}) {
      if (bias.has_value()) check_apart(*written, name, *bias, "bias");
      if (weight.has_value()) check_apart(*written, name, *weight, "weight");
    }
    return arguments;
  }

  static PerceptualArguments relu_lpips(const Tensor& input, const Tensor& target, const OptionalTensor& bias,
                                        const Tensor& linear, const OptionalTensor& weight) {
    PerceptualArguments arguments = relu_distance(input, target, bias, weight, true);
    STD_TORCH_CHECK(arguments.map.channels > 0, "pix2pixhd: input must have channels, got ", Shape(input).str());
    check_contiguous(linear, "linear", arguments.map.channels, compute_type(arguments.type), input);
    check_apart(input, "input", linear, "linear");
    check_apart(target, "target", linear, "linear");
    return arguments;
  }

  static PerceptualArguments relu_distance_backward(const Tensor& grad, const Tensor& mask, const Tensor& kept,
                                                    const OptionalTensor& weight, bool squared) {
    PerceptualArguments arguments = relu_backward(grad, mask);
    arguments.set_distance(squared, weight, grad);
    arguments.check_kept(kept, grad);
    check_apart(grad, "grad", kept, "kept");
    if (weight.has_value()) check_apart(grad, "grad", *weight, "weight");
    return arguments;
  }

  static PerceptualArguments relu_pool(const Tensor& x, const OptionalTensor& bias) {
    PerceptualArguments arguments(x, "x");
    arguments.set_bias(bias, x);
    return arguments;
  }

  static PerceptualArguments relu_pool_backward(const Tensor& grad, const Tensor& codes) {
    PerceptualArguments arguments(grad, "grad");
    check_words(codes, arguments.map.code_words(), "codes", grad);
    return arguments;
  }

  // Tensors that the forward saves for backward. They are empty without `pack`, when no gradient is required.
  // The elements that ReLU passes: 1 bit per element.
  Tensor empty_mask(bool pack) const { return empty_1d(pack ? map.mask_words() : 0, kInt, device); }
  // The signs of the differences, 2 bits per element, or the differences themselves.
  Tensor empty_kept(bool pack) const {
    if (distance == Distance::kAbsolute) return empty_1d(pack ? 2 * map.mask_words() : 0, kInt, device);
    return empty_1d(pack ? map.numel() : 0, scalar_type_of(type), device);
  }
  // The position of each maximum, and whether ReLU passes it: 3 bits per pooled element.
  Tensor empty_codes(bool pack) const { return empty_1d(pack ? map.pooled().code_words() : 0, kInt, device); }

 private:
  PerceptualArguments(const Tensor& tensor, const char* name)
      : map(tensor, name), type(dtype_of(tensor, name)), device(tensor) {}

  void set_bias(const OptionalTensor& tensor, const Tensor& data) {
    if (tensor.has_value()) check_contiguous(*tensor, "bias", map.channels, type, data);
    bias = data_of(tensor);
  }

  void set_distance(bool squared, const OptionalTensor& weight_tensor, const Tensor& data) {
    distance = squared ? Distance::kSquared : Distance::kAbsolute;
    if (weight_tensor.has_value()) {
      check_contiguous(*weight_tensor, "weight", map.batch * map.pixels(), compute_type(type), data);
    }
    weight = data_of(weight_tensor);
  }

  void check_kept(const Tensor& kept, const Tensor& grad) const {
    if (distance == Distance::kAbsolute) return check_words(kept, 2 * map.mask_words(), "kept", grad);
    check_defined(kept, "kept");
    STD_TORCH_CHECK(kept.is_contiguous() && kept.numel() == map.numel() && dtype_of(kept, "kept") == type,
                    "pix2pixhd: kept must be the differences that the forward returned");
    check_same_device(kept, "kept", grad, "grad");
  }
};

}  // namespace pix2pixhd
