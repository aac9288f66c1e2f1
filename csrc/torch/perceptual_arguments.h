// What the CPU and the CUDA side of the perceptual loss's operators check alike.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "stable_tensor.h"

namespace pix2pixhd {

constexpr int32_t kInt = static_cast<int32_t>(ScalarType::Int);

inline uint32_t* words_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<uint32_t*>(tensor.mutable_data_ptr()) : nullptr;
}

using OptionalTensor = std::optional<Tensor>;

// A call with tensors on two devices is dispatched to one of them.
inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  const Device a(tensor);
  const Device b(other);
  STD_TORCH_CHECK(a.type == b.type && a.index == b.index, "pix2pixhd: ", name, " must be on the device of ", other_name,
                  "; move one to the other's with .to()");
}

inline void check_words(const Tensor& words, int64_t expected, const char* name, const Tensor& grad) {
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int && words.is_contiguous() && words.numel() == expected,
                  "pix2pixhd: ", name, " must be the contiguous int32 tensor of ", expected,
                  " words that the forward returned");
  check_same_device(words, name, grad, "grad");
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
  int64_t pixels() const { return height * width; }
  int64_t elements() const { return pixels() * channels; }  // of one of the batch
  int64_t numel() const { return batch * elements(); }
  int64_t mask_words() const { return numel() / 32; }
  Picture pooled() const { return {batch, channels, height / 2, width / 2}; }
  // The picture before pooling to this one.
  Picture unpooled(int64_t full_height, int64_t full_width) const {
    STD_TORCH_CHECK(full_height / 2 == height && full_width / 2 == width,
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

// Returns the type of both.
inline DType check_pair(const Tensor& input, const Tensor& target) {
  check_same_device(target, "target", input, "input");
  const Shape x(input);
  const Shape y(target);
  const DType type = dtype_of(input, "input", 0);
  STD_TORCH_CHECK(x.same_sizes(y) && x.same_layout(y) && type == dtype_of(target, "target", 0),
                  "pix2pixhd: input and target must have the same shape, strides and type, got ", x.str(), " and ",
                  y.str());
  return type;
}

// The numbers, or null where there are none.
inline const void* data_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline void check_contiguous(const Tensor& tensor, const char* name, int64_t numel, DType type, const Tensor& map) {
  constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16"};
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == numel && dtype_of(tensor, name, 0) == type,
                  "pix2pixhd: ", name, " must be contiguous, of ", numel, " numbers and ",
                  kNames[static_cast<int32_t>(type)], ", got ", Shape(tensor).str());
  check_same_device(tensor, name, map, "the map");
}

// One number per channel, in the map's type.
inline void check_bias(const OptionalTensor& bias, const Picture& picture, DType type, const Tensor& map) {
  if (bias.has_value()) check_contiguous(*bias, "bias", picture.channels, type, map);
}

// One number per pixel, in the type of the arithmetic.
inline void check_weight(const OptionalTensor& weight, const Picture& picture, DType type, const Tensor& map) {
  const DType wide = type == DType::kFloat64 ? type : DType::kFloat32;
  if (weight.has_value()) check_contiguous(*weight, "weight", picture.batch * picture.pixels(), wide, map);
}

// What the distance keeps for its backward: 2 bits an element, or the differences.
inline Tensor empty_kept(const Picture& picture, Distance distance, bool pack, DType type, Device device) {
  if (distance == Distance::kAbsolute) return empty_1d(pack ? 2 * picture.mask_words() : 0, kInt, device);
  return empty_1d(pack ? picture.numel() : 0, scalar_type_of(type), device);
}

inline void check_kept(const Tensor& kept, const Picture& picture, Distance distance, DType type, const Tensor& grad) {
  if (distance == Distance::kAbsolute) return check_words(kept, 2 * picture.mask_words(), "kept", grad);
  STD_TORCH_CHECK(kept.is_contiguous() && kept.numel() == picture.numel() && dtype_of(kept, "kept", 0) == type,
                  "pix2pixhd: kept must be the differences that the forward returned");
  check_same_device(kept, "kept", grad, "grad");
}

}  // namespace pix2pixhd
