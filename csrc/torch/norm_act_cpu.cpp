// CPU side of the norm_act operators, and the schemas of both sides. Sums are in double, in chunks of fixed size and
// fixed order, so that they do not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "norm_act_arguments.h"

namespace pix2pixhd {
namespace {

// Elements of a chunk of a map. With many channels a chunk's sums take more memory than one chunk of few pixels is
// worth, hence a least number of pixels.
constexpr int64_t kNormChunk = int64_t{1} << 16;
constexpr int64_t kLeastPixels = 128;

int64_t chunk_pixels(int64_t channels) { return std::max(kLeastPixels, kNormChunk / std::max<int64_t>(channels, 1)); }

// The split of every map into chunks of whole rows.
struct RowChunks {
  int64_t maps;
  int64_t height;
  int64_t rows;     // of a chunk
  int64_t per_map;  // chunks

  RowChunks(int64_t maps_, int64_t height_, int64_t width, int64_t channels)
      : maps(maps_),
        height(height_),
        rows(std::max<int64_t>(1, chunk_pixels(channels) / std::max<int64_t>(width, 1))),
        per_map((height + rows - 1) / rows) {}

  // Calls f(map, first row, end, chunk) in parallel.
  template <typename F>
  void for_each(const F& f) const {
    const int64_t total = maps * per_map;
    const int64_t grain = per_map > 1 ? 1 : 4;  // small feature maps have little work
    torch::stable::parallel_for(0, total, grain, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t row = chunk % per_map * rows;
        f(chunk / per_map, row, std::min(row + rows, height), chunk);
      }
    });
  }
};

const char* bytes_at(const Tensor& tensor, int64_t element, DType type) {
  return static_cast<const char*>(tensor.const_data_ptr()) + element * element_size(type);
}

char* mutable_bytes_at(const Tensor& tensor, int64_t element, DType type) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + element * element_size(type);
}

double read(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kFloat64:
      return static_cast<const double*>(data)[i];
    case DType::kFloat16:
      return static_cast<double>(static_cast<const torch::headeronly::Half*>(data)[i]);
    case DType::kBFloat16:
      return static_cast<double>(static_cast<const torch::headeronly::BFloat16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

double read(const NormVector& vector, int64_t i, double otherwise) {
  return vector.tensor.has_value() ? read(vector.data(), vector.type, i) : otherwise;
}

void write(const Tensor& tensor, DType type, int64_t i, double value) {
  void* data = tensor.mutable_data_ptr();
  switch (type) {
    case DType::kFloat64:
      static_cast<double*>(data)[i] = value;
      break;
    case DType::kFloat16:
      static_cast<torch::headeronly::Half*>(data)[i] = torch::headeronly::Half(static_cast<float>(value));
      break;
    case DType::kBFloat16:
      static_cast<torch::headeronly::BFloat16*>(data)[i] = torch::headeronly::BFloat16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

std::tuple<Tensor, Tensor, Tensor> norm_statistics(Tensor x, bool per_image, double eps) {
  const NormImages images(x, "x", {0, 0, 0, 0}, 0);
  const Tensor dense = images.dense(x, "x", false);
  const int64_t depth = images.map().channels;
  const int64_t pixels = images.padded.pixels();
  const RowChunks chunks(images.maps(), pixels, 1, depth);
  std::vector<double> sums(chunks.maps * chunks.per_map * 2 * depth);
  chunks.for_each([&](int64_t map, int64_t first, int64_t last, int64_t chunk) {
    cpu::kernels().norm_statistics(bytes_at(dense, (map * pixels + first) * depth, images.type), images.type,
                                   last - first, depth, sums.data() + chunk * 2 * depth);
  });

  const int64_t rows = per_image ? images.batch : 1;
  const DType type = statistics_type(images.type);
  const auto make = [&] {
    return empty_strided({rows, images.channels}, {images.channels, 1}, scalar_type_of(type), images.device);
  };
  const Tensor mean = make();
  const Tensor rstd = make();
  const Tensor var = make();
  const int64_t per_row = per_image ? 1 : images.batch;  // images
  const double count = static_cast<double>(per_row * pixels);
  for (int64_t i = 0; i < rows * images.channels; ++i) {
    // Calls f(sum, squared deviations, pixels) for the chunks of this row and channel.
    const auto for_chunks = [&](const auto& f) {
      if (pixels == 0) return;  // maybe of many images
      const int64_t c = i % images.channels;
      for (int64_t n = i / images.channels * per_row; n < (i / images.channels + 1) * per_row; ++n) {
        const int64_t map = images.channels_last ? n : n * images.channels + c;
        const double* at = sums.data() + map * chunks.per_map * 2 * depth + (images.channels_last ? c : 0);
        for (int64_t k = 0; k < chunks.per_map; ++k, at += 2 * depth) {
          f(at[0], at[depth], static_cast<double>(std::min(chunks.rows, pixels - k * chunks.rows)));
        }
      }
    };
    double total = 0.0;
    for_chunks([&](double sum, double, double) { total += sum; });
    const double centre = total / count;
    double squares = 0.0;
    for_chunks([&](double sum, double deviation, double size) {
      const double difference = sum / size - centre;
      squares += deviation + size * difference * difference;
    });
    write(mean, type, i, centre);
    write(var, type, i, squares / count);
    write(rstd, type, i, 1.0 / std::sqrt(squares / count + eps));
  }
  return {mean, rstd, var};
}

// The parameters of every map: [feature maps, kNormParameters, channels of a map] in the arithmetic's dtype.
class Parameters {
 public:
  explicit Parameters(const NormArguments& arguments)
      : arguments_(arguments),
        depth_(arguments.images.map().channels),
        double_(arguments.images.type == DType::kFloat64),
        values_(arguments.images.maps() * cpu::kNormParameters * depth_ * (double_ ? 2 : 1)) {}

  // Calls f(map, channel of the map, channel, row of the statistics).
  template <typename F>
  void for_each(const F& f) const {
    for (int64_t map = 0; map < arguments_.images.maps(); ++map) {
      for (int64_t c = 0; c < depth_; ++c) {
        const NormImages& images = arguments_.images;
        const int64_t n = images.channels_last ? map : map / images.channels;
        f(map, c, images.channels_last ? c : map % images.channels, arguments_.per_image() ? n : 0);
      }
    }
  }

  void set(int64_t map, cpu::NormParameter which, int64_t c, double value) {
    const int64_t at = (map * cpu::kNormParameters + which) * depth_ + c;
    if (double_) {
      reinterpret_cast<double*>(values_.data())[at] = value;
    } else {
      values_[at] = static_cast<float>(value);
    }
  }
  const void* of(int64_t map) const { return values_.data() + map * cpu::kNormParameters * depth_ * (double_ ? 2 : 1); }

 private:
  const NormArguments& arguments_;
  int64_t depth_;
  bool double_;
  std::vector<float> values_;
};

// What the forward computes, which the backward needs for the sign of the activation's argument.
void set_forward(Parameters& parameters, const NormArguments& arguments) {
  const int64_t channels = arguments.images.channels;
  parameters.for_each([&](int64_t map, int64_t at, int64_t c, int64_t row) {
    parameters.set(map, cpu::kOffset, at, read(arguments.mean, row * channels + c, 0.0));
    parameters.set(map, cpu::kScale, at,
                   read(arguments.rstd, row * channels + c, 1.0) * read(arguments.weight, c, 1.0));
    parameters.set(map, cpu::kShift, at, read(arguments.bias, c, 0.0));
  });
}

cpu::NormRows rows_of(const NormArguments& arguments, const Parameters& parameters, int64_t map, int64_t first,
                      int64_t last) {
  return {arguments.images.map(), arguments.activation, arguments.slope, first, last, false, false, parameters.of(map)};
}

Tensor norm_act(Tensor x, OptionalTensor mean, OptionalTensor rstd, OptionalTensor weight, OptionalTensor bias,
                OptionalTensor residual, int64_t activation, double slope, std::vector<int64_t> padding,
                int64_t padding_mode) {
  const NormArguments arguments(x, "x", mean, rstd, weight, bias, activation, slope, padding, padding_mode);
  const NormImages& images = arguments.images;
  const Tensor dense = images.dense(x, "x", false);
  if (residual.has_value()) residual = images.dense(*residual, "residual", false);
  const Tensor y = images.empty(true);
  if (images.padded_numel() == 0) return y;
  Parameters parameters(arguments);
  set_forward(parameters, arguments);
  const PaddedImage map_image = images.map();
  const int64_t map_elements = map_image.pixels() * map_image.channels;
  const int64_t padded_elements = map_image.padded_height() * map_image.padded_width() * map_image.channels;
  const RowChunks chunks(images.maps(), map_image.padded_height(), map_image.padded_width(), map_image.channels);
  chunks.for_each([&](int64_t map, int64_t first, int64_t last, int64_t) {
    const char* own_residual = residual.has_value() ? bytes_at(*residual, map * map_elements, images.type) : nullptr;
    cpu::kernels().norm_act(bytes_at(dense, map * map_elements, images.type), own_residual,
                            mutable_bytes_at(y, map * padded_elements, images.type), images.type,
                            rows_of(arguments, parameters, map, first, last));
  });
  return y;
}

// The sums of the gradient g and of g * (z - kOffset) of each image and channel, [N, C] each.
struct GradientSums {
  std::vector<double> gradient;
  std::vector<double> product;
};

GradientSums add_chunks(const std::vector<double>& sums, const RowChunks& chunks, const NormImages& images) {
  const int64_t depth = images.map().channels;
  GradientSums result{std::vector<double>(images.batch * images.channels),
                      std::vector<double>(images.batch * images.channels)};
  for (int64_t chunk = 0; chunk < chunks.maps * chunks.per_map; ++chunk) {
    const double* at = sums.data() + chunk * 2 * depth;
    double* gradient = result.gradient.data() + chunk / chunks.per_map * depth;
    double* product = result.product.data() + chunk / chunks.per_map * depth;
    for (int64_t c = 0; c < depth; ++c) {
      gradient[c] += at[c];
      product[c] += at[depth + c];
    }
  }
  return result;
}

// The factor between z - kOffset and the normalised x.
double to_normalised(const NormArguments& arguments, const NormGradients& wanted, int64_t row, int64_t c) {
  return wanted.source_is_output ? 1.0 / read(arguments.weight, c, 1.0)
                                 : read(arguments.rstd, row * arguments.images.channels + c, 1.0);
}

// Adds the sums of the images that share statistics, unless each has its own.
GradientSums share(GradientSums sums, const NormArguments& arguments) {
  const NormImages& images = arguments.images;
  if (arguments.per_image()) return sums;
  for (int64_t i = images.channels; i < images.batch * images.channels; ++i) {
    sums.gradient[i % images.channels] += sums.gradient[i];
    sums.product[i % images.channels] += sums.product[i];
  }
  return sums;
}

void set_backward(Parameters& parameters, const NormArguments& arguments, const NormGradients& wanted,
                  const GradientSums& shared) {
  const NormImages& images = arguments.images;
  const double count = static_cast<double>(images.padded.pixels() * (arguments.per_image() ? 1 : images.batch));
  parameters.for_each([&](int64_t map, int64_t at, int64_t c, int64_t row) {
    const int64_t i = row * images.channels + c;
    const double factor = read(arguments.rstd, i, 1.0) * read(arguments.weight, c, 1.0);
    parameters.set(map, cpu::kGradient, at, factor);
    if (!wanted.through_statistics) return;
    const double normalise = to_normalised(arguments, wanted, row, c);
    parameters.set(map, cpu::kCentred, at, -normalise * normalise * shared.product[i] / count);
    parameters.set(map, cpu::kConstant, at, -shared.gradient[i] / count);
  });
}

void write_affine(const NormArguments& arguments, const NormGradients& wanted, const GradientSums& sums,
                  const Tensor& grad_weight, const Tensor& grad_bias) {
  const NormImages& images = arguments.images;
  for (int64_t c = 0; c < images.channels; ++c) {
    double gradient = 0.0;
    double product = 0.0;
    // The statistics of empty images are NaN, but their gradient is zero.
    for (int64_t n = 0; n < (images.numel() > 0 ? images.batch : 0); ++n) {
      const int64_t i = n * images.channels + c;
      gradient += sums.gradient[i];
      product += sums.product[i] * to_normalised(arguments, wanted, arguments.per_image() ? n : 0, c);
    }
    if (grad_weight.numel() > 0) write(grad_weight, arguments.weight.type, c, product);
    if (grad_bias.numel() > 0) write(grad_bias, arguments.bias.type, c, gradient);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_backward(
    Tensor grad, Tensor source, bool source_is_output, OptionalTensor mean, OptionalTensor rstd, OptionalTensor weight,
    OptionalTensor bias, int64_t activation, double slope, std::vector<int64_t> padding, int64_t padding_mode,
    bool through_statistics, bool need_input, bool need_affine, bool need_residual) {
  const NormArguments arguments(source, "source", mean, rstd, weight, bias, activation, slope, padding, padding_mode);
  const NormGradients wanted(arguments, source_is_output, through_statistics, need_input, need_affine, need_residual);
  const NormImages& images = arguments.images;
  const DType type = images.type;
  const Tensor g = images.dense(grad, "grad", true);
  const Tensor dense = images.dense(source, "source", false);
  const NormOutputs out(arguments, wanted);
  if (images.numel() == 0) {  // maybe of many channels, so that even their parameters would not fit into memory
    if (wanted.affine) write_affine(arguments, wanted, {}, out.weight, out.bias);
    return out.tuple();
  }

  Parameters parameters(arguments);
  set_forward(parameters, arguments);
  if (source_is_output) {
    parameters.for_each([&](int64_t map, int64_t at, int64_t c, int64_t) {
      parameters.set(map, cpu::kOffset, at, read(arguments.bias, c, 0.0));
    });
  }
  const PaddedImage image = images.map();
  const int64_t elements = image.pixels() * image.channels;
  const int64_t padded = image.padded_height() * image.padded_width() * image.channels;
  const RowChunks chunks(images.maps(), image.height, image.width, image.channels);
  const auto rows_at = [&](int64_t map, int64_t first, int64_t last) {
    cpu::NormRows rows = rows_of(arguments, parameters, map, first, last);
    rows.source_is_output = wanted.source_is_output;
    rows.through_statistics = wanted.through_statistics;
    return rows;
  };
  if (wanted.sums()) {
    std::vector<double> partial(chunks.maps * chunks.per_map * 2 * image.channels);
    chunks.for_each([&](int64_t map, int64_t first, int64_t last, int64_t chunk) {
      cpu::kernels().norm_act_sums(bytes_at(g, map * padded, type), bytes_at(dense, map * elements, type), type,
                                   rows_at(map, first, last), partial.data() + chunk * 2 * image.channels);
    });
    const GradientSums sums = add_chunks(partial, chunks, images);
    if (wanted.affine) write_affine(arguments, wanted, sums, out.weight, out.bias);
    if (wanted.input) set_backward(parameters, arguments, wanted, share(sums, arguments));
  } else if (wanted.input) {
    set_backward(parameters, arguments, wanted, {});
  }
  if (!wanted.input && !wanted.residual) return out.tuple();
  chunks.for_each([&](int64_t map, int64_t first, int64_t last, int64_t) {
    cpu::kernels().norm_act_backward(bytes_at(g, map * padded, type), bytes_at(dense, map * elements, type),
                                     wanted.input ? mutable_bytes_at(out.x, map * elements, type) : nullptr,
                                     wanted.residual ? mutable_bytes_at(out.residual, map * elements, type) : nullptr,
                                     type, rows_at(map, first, last));
  });
  return out.tuple();
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_FRAGMENT(pix2pixhd, m) {
  m.def("norm_statistics(Tensor x, bool per_image, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act(Tensor x, Tensor? mean, Tensor? rstd, Tensor? weight, Tensor? bias, Tensor? residual, int activation, "
      "float slope, int[4] padding, int padding_mode) -> Tensor");
  m.def(
      "norm_act_backward(Tensor grad, Tensor source, bool source_is_output, Tensor? mean, Tensor? rstd, "
      "Tensor? weight, Tensor? bias, int activation, float slope, int[4] padding, int padding_mode, "
      "bool through_statistics, bool need_input, bool need_affine, bool need_residual) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CPU, m) {
  m.impl("norm_statistics", TORCH_BOX(&pix2pixhd::norm_statistics));
  m.impl("norm_act", TORCH_BOX(&pix2pixhd::norm_act));
  m.impl("norm_act_backward", TORCH_BOX(&pix2pixhd::norm_act_backward));
}
