// CUDA side of the norm_act operators: allocation and launches on the current stream. The schemas are in
// torch/norm_act_cpu.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../cuda/norm_act.h"
#include "norm_act_arguments.h"
#include "stable_cuda.h"

namespace pix2pixhd {
namespace {

cuda::NormTensor tensor_of(const NormImages& images) {
  return {images.batch, images.channels, images.map(), images.channels_last, images.type};
}

void check_rows(const NormImages& images) {
  const int64_t row = images.padded.padded_width() * images.map().channels;
  STD_TORCH_CHECK(
      row <= cuda::kLongestRow, "pix2pixhd: on a GPU a padded row of the images must have at most ", cuda::kLongestRow,
      " elements, got ", row,
      images.channels_last ? " (width x channels); call .contiguous() on the images" : "; split the images");
}

cuda::NormParameterVector vector_of(const NormVector& vector) { return {vector.data(), vector.type}; }

cuda::NormInputs inputs_of(const NormArguments& arguments) {
  return {arguments.mean.data(), arguments.rstd.data(), vector_of(arguments.weight), vector_of(arguments.bias),
          arguments.statistics};
}

Tensor scratch(int64_t doubles, Device device) { return empty_1d(doubles, scalar_type_of(DType::kFloat64), device); }

double* doubles_of(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

Tensor empty_parameters(const NormImages& images) {
  const int32_t type = scalar_type_of(statistics_type(images.type));
  return empty_1d(images.batch * images.channels * cuda::kNormParameters, type, images.device);
}

std::tuple<Tensor, Tensor, Tensor> norm_statistics(Tensor x, bool per_image, double eps) {
  const NormImages images(x, "x", {0, 0, 0, 0}, 0);
  const DeviceGuard guard(images.device.index);
  const Tensor dense = images.dense(x, "x", false);
  const cuda::NormTensor tensor = tensor_of(images);
  const int64_t rows = per_image ? images.batch : 1;
  const auto make = [&] {
    return empty_strided({rows, images.channels}, {images.channels, 1}, scalar_type_of(statistics_type(images.type)),
                         images.device);
  };
  const Tensor mean = make();
  const Tensor rstd = make();
  const Tensor var = make();
  const Tensor partial = scratch(tensor.partials(), images.device);
  check_launch(cuda::norm_statistics(dense.const_data_ptr(), tensor, rows, eps, doubles_of(partial),
                                     mean.mutable_data_ptr(), rstd.mutable_data_ptr(), var.mutable_data_ptr(),
                                     current_stream(images.device)));
  return {mean, rstd, var};
}

Tensor norm_act(Tensor x, OptionalTensor mean, OptionalTensor rstd, OptionalTensor weight, OptionalTensor bias,
                OptionalTensor residual, int64_t activation, double slope, std::vector<int64_t> padding,
                int64_t padding_mode) {
  const NormArguments arguments(x, "x", mean, rstd, weight, bias, activation, slope, padding, padding_mode);
  const NormImages& images = arguments.images;
  const DeviceGuard guard(images.device.index);
  const cuda::Stream stream = current_stream(images.device);
  check_rows(images);
  const Tensor dense = images.dense(x, "x", false);
  if (residual.has_value()) residual = images.dense(*residual, "residual", false);
  const Tensor y = images.empty(true);
  const Tensor parameters = empty_parameters(images);
  const cuda::NormTensor tensor = tensor_of(images);
  check_launch(cuda::norm_parameters(tensor, inputs_of(arguments), {nullptr, false, false}, nullptr,
                                     parameters.mutable_data_ptr(), stream));
  check_launch(cuda::norm_act(dense.const_data_ptr(), residual.has_value() ? residual->const_data_ptr() : nullptr,
                              y.mutable_data_ptr(), tensor, {arguments.activation, arguments.slope},
                              parameters.const_data_ptr(), stream));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_backward(
    Tensor grad, Tensor source, bool source_is_output, OptionalTensor mean, OptionalTensor rstd, OptionalTensor weight,
    OptionalTensor bias, int64_t activation, double slope, std::vector<int64_t> padding, int64_t padding_mode,
    bool through_statistics, bool need_input, bool need_affine, bool need_residual) {
  const NormArguments arguments(source, "source", mean, rstd, weight, bias, activation, slope, padding, padding_mode);
  const NormGradients wanted(arguments, source_is_output, through_statistics, need_input, need_affine, need_residual);
  const NormImages& images = arguments.images;
  const DeviceGuard guard(images.device.index);
  const cuda::Stream stream = current_stream(images.device);
  check_rows(images);
  const Tensor g = images.dense(grad, "grad", true);
  const Tensor dense = images.dense(source, "source", false);
  const NormOutputs out(arguments, wanted);

  const cuda::NormTensor tensor = tensor_of(images);
  const cuda::NormInputs inputs = inputs_of(arguments);
  const cuda::NormActivation act{arguments.activation, arguments.slope};
  const cuda::NormSource from{dense.const_data_ptr(), wanted.source_is_output, wanted.through_statistics};
  const Tensor parameters = empty_parameters(images);
  // Of the forward, for the sign of the activation's argument.
  check_launch(cuda::norm_parameters(tensor, inputs, from, nullptr, parameters.mutable_data_ptr(), stream));
  if (wanted.sums()) {
    const Tensor partial = scratch(tensor.partials(), images.device);
    const Tensor sums = scratch(2 * images.batch * images.channels, images.device);
    check_launch(cuda::norm_act_sums(g.const_data_ptr(), from, tensor, act, parameters.const_data_ptr(),
                                     doubles_of(partial), doubles_of(sums), stream));
    if (wanted.affine) {
      const auto gradient = [](const Tensor& to, const NormVector& of) {
        return cuda::NormParameterVector{to.numel() > 0 ? to.mutable_data_ptr() : nullptr, of.type};
      };
      check_launch(cuda::norm_affine(tensor, inputs, from, doubles_of(sums), gradient(out.weight, arguments.weight),
                                     gradient(out.bias, arguments.bias), stream));
    }
    if (wanted.input && wanted.through_statistics) {
      check_launch(
          cuda::norm_parameters(tensor, inputs, from, doubles_of(sums), parameters.mutable_data_ptr(), stream));
    }
  }
  if (wanted.input || wanted.residual) {
    check_launch(cuda::norm_act_backward(g.const_data_ptr(), from, wanted.input ? out.x.mutable_data_ptr() : nullptr,
                                         wanted.residual ? out.residual.mutable_data_ptr() : nullptr, tensor, act,
                                         parameters.const_data_ptr(), stream));
  }
  return out.tuple();
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CUDA, m) {
  m.impl("norm_statistics", TORCH_BOX(&pix2pixhd::norm_statistics));
  m.impl("norm_act", TORCH_BOX(&pix2pixhd::norm_act));
  m.impl("norm_act_backward", TORCH_BOX(&pix2pixhd::norm_act_backward));
}
