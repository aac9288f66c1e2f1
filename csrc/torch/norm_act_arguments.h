// Arguments of the norm_act operators: the checks, layouts and outputs that the CPU and the CUDA side share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "stable_tensor.h"

namespace pix2pixhd {

using OptionalTensor = std::optional<Tensor>;

// Images [N, C, H, W] as the kernels read them, and their padding.
struct NormImages {
  int64_t batch;
  int64_t channels;
  PaddedImage padded;  // of one image with all its channels
  bool channels_last;
  DType type;
  Device device;

  NormImages(const Tensor& tensor, const char* name, const std::vector<int64_t>& padding, int64_t mode)
      : type(dtype_of(tensor, name)), device(tensor) {
    const Shape shape(tensor);
    STD_TORCH_CHECK(shape.ndim == 4, "pix2pixhd: ", name, " must be images [N, C, H, W], got ", shape.str());
    batch = shape.sizes[0];
    channels = shape.sizes[1];
    padded = {shape.sizes[2], shape.sizes[3], channels, 0, 0, 0, 0, PaddingMode::kZero};
    const std::vector<int64_t> strides = strides_of(false, true);
    // Tensors of other strides are copied to the memory format of their innermost dimension.
    channels_last =
        !tensor.is_contiguous() && (shape.same_layout(Shape(shape.sizes, strides.data(), 4)) || shape.strides[1] == 1);
    set_padding(padding, mode);
  }

  int64_t numel() const { return batch * channels * padded.pixels(); }
  int64_t padded_numel() const { return batch * channels * padded.padded_height() * padded.padded_width(); }
  // Feature maps: the whole images of a channels-last tensor, the channels of a contiguous one.
  int64_t maps() const { return channels_last ? batch : batch * channels; }
  PaddedImage map() const {
    PaddedImage image = padded;
    if (!channels_last) image.channels = 1;
    return image;
  }

  std::vector<int64_t> sizes(bool with_padding) const {
    return {batch, channels, with_padding ? padded.padded_height() : padded.height,
            with_padding ? padded.padded_width() : padded.width};
  }
  Tensor empty(bool with_padding) const {
    return empty_strided(sizes(with_padding), strides_of(with_padding, channels_last), scalar_type_of(type), device);
  }
  // The checked tensor in the memory format of the images.
  Tensor dense(const Tensor& tensor, const char* name, bool with_padding) const {
    const Shape shape(tensor);
    const std::vector<int64_t> size = sizes(with_padding);
    const std::vector<int64_t> strides = strides_of(with_padding, channels_last);
    const Shape expected(size.data(), strides.data(), 4);
    STD_TORCH_CHECK(shape.same_sizes(expected), "pix2pixhd: ", name, " must have shape ", expected.str(), ", got ",
                    shape.str());
    const DType own = dtype_of(tensor, name);
    STD_TORCH_CHECK(own == type, "pix2pixhd: ", name, " must have the dtype of the images, got ", name_of(own),
                    " for images in ", name_of(type), "; convert it with .to()");
    check_device(tensor, name);
    return shape.same_layout(expected) ? tensor : copy_into_layout(tensor, expected);
  }
  void check_device(const Tensor& tensor, const char* name) const {
    const Device own(tensor);
    STD_TORCH_CHECK(own.type == device.type && own.index == device.index, "pix2pixhd: ", name,
                    " must be on the device of the images; move it there with .to()");
  }

 private:
  std::vector<int64_t> strides_of(bool with_padding, bool last) const {
    const std::vector<int64_t> size = sizes(with_padding);
    const int64_t height = std::max<int64_t>(size[2], 1);
    const int64_t width = std::max<int64_t>(size[3], 1);
    const int64_t depth = std::max<int64_t>(channels, 1);
    if (last) return {depth * height * width, 1, width * depth, depth};
    return {depth * height * width, height * width, width, 1};
  }

  void set_padding(const std::vector<int64_t>& padding, int64_t mode) {
    STD_TORCH_CHECK(padding.size() == 4 && *std::min_element(padding.begin(), padding.end()) >= 0,
                    "pix2pixhd: padding must be (left, right, top, bottom), each at least 0; crop the result for "
                    "negative padding");
    STD_TORCH_CHECK(mode >= 0 && mode <= 2,
                    "pix2pixhd: padding_mode must be 0 (zero), 1 (reflect) or 2 (replicate), got ", mode);
    STD_TORCH_CHECK(*std::max_element(padding.begin(), padding.end()) <= kMostElements,
                    "pix2pixhd: padding is too large, got [", padding[0], ", ", padding[1], ", ", padding[2], ", ",
                    padding[3], "]; pad by less");
    const int64_t height = padded.height;
    const int64_t width = padded.width;
    const bool reflected =
        mode == 1 && (std::max(padding[0], padding[1]) >= width || std::max(padding[2], padding[3]) >= height);
    const bool replicated = mode == 2 && (height == 0 || width == 0);
    STD_TORCH_CHECK(!reflected && !replicated, "pix2pixhd: ",
                    reflected ? "reflection padding must be smaller than the image" : "padding needs a non-empty image",
                    ", got padding [", padding[0], ", ", padding[1], ", ", padding[2], ", ", padding[3], "] for ",
                    height, "x", width, " pixels; use a larger image, fewer downsampling layers, or padding_mode 0 ",
                    "(zero)");
    padded.left = padding[0];
    padded.right = padding[1];
    padded.top = padding[2];
    padded.bottom = padding[3];
    padded.mode = static_cast<PaddingMode>(mode);
    Shape(sizes(true).data(), nullptr, 4).check_sizes("the padded result");
  }
};

// The dtype of the arithmetic and of the statistics.
inline DType statistics_type(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }

// A vector of statistics or affine parameters: contiguous, in one of two dtypes; or none.
struct NormVector {
  std::optional<Tensor> tensor;
  DType type = DType::kFloat32;

  const void* data() const { return tensor.has_value() ? tensor->const_data_ptr() : nullptr; }
};

// The checked arguments of norm_act and its backward, apart from the images.
struct NormArguments {
  NormImages images;
  int64_t statistics = 0;  // rows of mean and rstd: N, 1, or 0 without them
  NormVector mean;
  NormVector rstd;
  NormVector weight;
  NormVector bias;
  Activation activation;
  double slope;

  NormArguments(const Tensor& x, const char* name, const OptionalTensor& mean_, const OptionalTensor& rstd_,
                const OptionalTensor& weight_, const OptionalTensor& bias_, int64_t activation_, double slope_,
                const std::vector<int64_t>& padding, int64_t mode)
      : images(x, name, padding, mode), slope(slope_) {
    STD_TORCH_CHECK(activation_ >= 0 && activation_ <= 2,
                    "pix2pixhd: activation must be 0 (none), 1 (ReLU) or 2 (leaky ReLU), got ", activation_);
    activation = static_cast<Activation>(activation_);
    STD_TORCH_CHECK(mean_.has_value() == rstd_.has_value(), "pix2pixhd: pass mean and rstd together, or neither");
    mean = statistic(mean_, "mean");
    rstd = statistic(rstd_, "rstd");
    weight = parameter(weight_, "weight");
    bias = parameter(bias_, "bias");
  }

  bool per_image() const { return statistics == images.batch; }

 private:
  NormVector statistic(const OptionalTensor& tensor, const char* name) {
    if (!tensor.has_value()) return {};
    const Shape shape(*tensor);
    STD_TORCH_CHECK(shape.ndim == 2 && (shape.sizes[0] == images.batch || shape.sizes[0] == 1) &&
                        shape.sizes[1] == images.channels && (statistics == 0 || statistics == shape.sizes[0]),
                    "pix2pixhd: ", name, " must be [N, C] or [1, C] with N = ", images.batch, ", C = ", images.channels,
                    ", and as mean, got ", shape.str());
    statistics = shape.sizes[0];
    const DType type = dtype_of(*tensor, name);
    STD_TORCH_CHECK(type == statistics_type(images.type), "pix2pixhd: ", name, " must be ",
                    name_of(statistics_type(images.type)), ", as norm_statistics returns it, got ", name_of(type),
                    "; convert it with .to()");
    return contiguous(*tensor, name, type);
  }

  NormVector parameter(const OptionalTensor& tensor, const char* name) const {
    if (!tensor.has_value()) return {};
    const Shape shape(*tensor);
    STD_TORCH_CHECK(shape.ndim == 1 && shape.sizes[0] == images.channels, "pix2pixhd: ", name, " must be [",
                    images.channels, "], one number per channel, got ", shape.str());
    const DType type = dtype_of(*tensor, name);
    STD_TORCH_CHECK(type == images.type || type == DType::kFloat32, "pix2pixhd: ", name,
                    " must have the dtype of the images or float32, got ", name_of(type), " for images in ",
                    name_of(images.type), "; convert it with .to()");
    return contiguous(*tensor, name, type);
  }

  NormVector contiguous(const Tensor& tensor, const char* name, DType type) const {
    images.check_device(tensor, name);
    return {tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor), type};
  }
};

// What the backward computes.
struct NormGradients {
  bool source_is_output;
  bool through_statistics;
  bool input;
  bool affine;
  bool residual;

  NormGradients(const NormArguments& arguments, bool source_is_output_, bool through_statistics_, bool need_input,
                bool need_affine, bool need_residual)
      : source_is_output(source_is_output_),
        through_statistics(through_statistics_ && arguments.statistics > 0),
        input(need_input),
        affine(need_affine && (arguments.weight.tensor.has_value() || arguments.bias.tensor.has_value())),
        residual(need_residual) {
    const bool leaky = arguments.activation == Activation::kLeakyRelu;
    const bool relu = arguments.activation == Activation::kRelu;
    STD_TORCH_CHECK(!source_is_output || !((leaky && !(arguments.slope > 0)) || (relu && through_statistics)),
                    "pix2pixhd: source_is_output needs no activation, or leaky ReLU with slope > 0, which can be "
                    "inverted; pass x as the source");
  }
  bool sums() const { return affine || (input && through_statistics); }
};

// The outputs of the backward; those that are not needed are empty.
struct NormOutputs {
  Tensor x;
  Tensor weight;
  Tensor bias;
  Tensor residual;

  NormOutputs(const NormArguments& arguments, const NormGradients& wanted)
      : x(image(arguments, wanted.input)),
        weight(vector(arguments, arguments.weight, wanted.affine)),
        bias(vector(arguments, arguments.bias, wanted.affine)),
        residual(image(arguments, wanted.residual)) {}
  std::tuple<Tensor, Tensor, Tensor, Tensor> tuple() const { return {x, weight, bias, residual}; }

 private:
  static Tensor image(const NormArguments& arguments, bool needed) {
    const NormImages& images = arguments.images;
    return needed ? images.empty(false) : empty_1d(0, scalar_type_of(images.type), images.device);
  }
  static Tensor vector(const NormArguments& arguments, const NormVector& parameter, bool needed) {
    const bool given = parameter.tensor.has_value();
    return empty_1d(given && needed ? arguments.images.channels : 0,
                    scalar_type_of(given ? parameter.type : arguments.images.type), arguments.images.device);
  }
};

}  // namespace pix2pixhd
