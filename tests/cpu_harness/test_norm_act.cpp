// norm_act on rows of one image. Values are multiples of 1/8, for which most results are exact.
#include <algorithm>
#include <cmath>
#include <utility>

#include "cases.h"

namespace harness {
namespace {

constexpr double kSlope = 0.25;

class Norm {
 public:
  Norm(Run& run, DType type)
      : run_(run),
        type_(type),
        wide_(arithmetic(type)),
        image_(random_image(run.random)),
        parameters_(wide_, cpu::kNormParameters * image_.channels) {
    static constexpr Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kLeakyRelu};
    activation_ = kActivations[run.random.below(3)];
    for (int64_t i = 0; i < parameters_.numel(); ++i) {
      const int64_t row = i / image_.channels;
      const double scale = static_cast<double>(run.random.below(4) + 1) / 2.0;
      parameters_.set(wide_, i, row == cpu::kScale ? scale : static_cast<double>(run.random.below(9) - 4) / 8.0);
    }
    set_case(std::string(run.kernels.name) + " norm_act " + name(type) + " " + std::to_string(image_.height) + "x" +
             std::to_string(image_.width) + "x" + std::to_string(image_.channels) + " padding " +
             std::to_string(image_.left) + "," + std::to_string(image_.right) + "," + std::to_string(image_.top) + "," +
             std::to_string(image_.bottom) + " mode " + std::to_string(static_cast<int>(image_.mode)) + " activation " +
             std::to_string(static_cast<int>(activation_)));
  }

  void test() {
    statistics();
    forward(run_.random.below(2) == 0);
    for (const bool is_output : {false, true}) {
      for (const bool through_statistics : {false, true}) backward(is_output, through_statistics);
    }
  }

 private:
  static PaddedImage random_image(Random& random) {
    constexpr int64_t kChannels[] = {1, 2, 3, 5, 16, 31, 63, 64, 65, 80, 130};
    PaddedImage image{};
    image.height = 1 + random.below(7);
    image.width = 1 + random.below(40);
    image.channels = kChannels[random.below(11)];
    image.mode = static_cast<PaddingMode>(random.below(3));
    if (random.below(3) == 0) return image;
    const int64_t most[2] = {image.mode == PaddingMode::kReflect ? std::min<int64_t>(image.width - 1, 3) : 3,
                             image.mode == PaddingMode::kReflect ? std::min<int64_t>(image.height - 1, 3) : 3};
    image.left = random.below(most[0] + 1);
    image.right = random.below(most[0] + 1);
    image.top = random.below(most[1] + 1);
    image.bottom = random.below(most[1] + 1);
    return image;
  }

  int64_t numel() const { return image_.pixels() * image_.channels; }
  int64_t padded_numel() const { return image_.padded_height() * image_.padded_width() * image_.channels; }
  double parameter(int row, int64_t i) const {
    return parameters_.get(wide_, row * image_.channels + i % image_.channels);
  }
  double normalised(double x, int64_t i) const {
    return (x - parameter(cpu::kOffset, i)) * parameter(cpu::kScale, i) + parameter(cpu::kShift, i);
  }
  double activated(double z) const {
    if (activation_ == Activation::kNone || z > 0) return z;
    return activation_ == Activation::kRelu ? 0.0 : z * kSlope;
  }
  int64_t source(int64_t i, int64_t size) const {
    if (i >= 0 && i < size) return i;
    if (image_.mode == PaddingMode::kZero) return -1;
    if (image_.mode == PaddingMode::kReplicate) return std::clamp<int64_t>(i, 0, size - 1);
    return i < 0 ? -i : 2 * size - 2 - i;
  }
  // The element of the image that is copied to padded element i; -1 for zero padding.
  int64_t source_of(int64_t i) const {
    const int64_t column = i / image_.channels % image_.padded_width();
    const int64_t row = i / image_.channels / image_.padded_width();
    const int64_t from_row = source(row - image_.top, image_.height);
    const int64_t from_column = source(column - image_.left, image_.width);
    if (from_row < 0 || from_column < 0) return -1;
    return (from_row * image_.width + from_column) * image_.channels + i % image_.channels;
  }
  NormRows rows(int64_t count) {
    NormRows rows{image_, activation_, kSlope, run_.random.below(count), 0, false, false, parameters_.data()};
    rows.last = rows.first + 1 + run_.random.below(count - rows.first);
    return rows;
  }
  Buffer image_of(int64_t n) { return filled(type_, n, run_.random.below(5), Values::kEighths, run_.random); }

  void statistics() {
    const Buffer x = image_of(numel());
    std::vector<double> sums(static_cast<size_t>(2 * image_.channels), NAN);
    run_.kernels.norm_statistics(x.data(), type_, image_.pixels(), image_.channels, sums.data());
    for (int64_t c = 0; c < image_.channels; ++c) {
      double sum = 0.0;
      double squares = 0.0;
      for (int64_t i = c; i < numel(); i += image_.channels) sum += x.get(type_, i);
      for (int64_t i = c; i < numel(); i += image_.channels) {
        const double deviation = x.get(type_, i) - sum / static_cast<double>(image_.pixels());
        squares += deviation * deviation;
      }
      check(close(sums[static_cast<size_t>(c)], sum, 1e-9), "sum [%ld] is %.12g, not %.12g", static_cast<long>(c),
            sums[static_cast<size_t>(c)], sum);
      const double got = sums[static_cast<size_t>(image_.channels + c)];
      const double allowed = tolerance(wide_, 64.0 * static_cast<double>(image_.pixels()));
      check(close(got, squares, allowed), "squared deviations [%ld] are %.12g, not %.12g", static_cast<long>(c), got,
            squares);
    }
  }

  void forward(bool has_residual) {
    const Buffer x = image_of(numel());
    const Buffer residual = image_of(numel());
    Buffer y(type_, padded_numel(), run_.random.below(5));
    const double garbage = padded_numel() > 0 ? y.get(type_, 0) : 0.0;
    const NormRows part = rows(image_.padded_height());
    run_.kernels.norm_act(x.data(), has_residual ? residual.data() : nullptr, y.data(), type_, part);
    const int64_t row = image_.padded_width() * image_.channels;
    for (int64_t i = 0; i < padded_numel(); ++i) {
      if (i / row < part.first || i / row >= part.last) {
        check(same(y.get(type_, i), garbage), "y [%ld] of another row was written", static_cast<long>(i));
        continue;
      }
      const int64_t from = source_of(i);
      double wanted = 0.0;
      if (from >= 0) wanted = activated(normalised(x.get(type_, from), from));
      if (from >= 0 && has_residual) wanted += residual.get(type_, from);
      check_near(y, type_, i, wanted, 0.0, "y");
    }
    for (const Buffer* buffer : {&x, &residual, &std::as_const(y)}) buffer->check_guards("forward");
  }

  void backward(bool is_output, bool through_statistics) {
    // ReLU cannot be inverted, so its output is a source only if the statistics are constants.
    if (is_output && through_statistics && activation_ == Activation::kRelu) return;
    const Buffer grad = image_of(padded_numel());
    const Buffer origin = image_of(numel());
    NormRows part = rows(image_.height);
    part.source_is_output = is_output;
    part.through_statistics = through_statistics;
    std::vector<double> gathered(static_cast<size_t>(numel()), 0.0);
    for (int64_t i = 0; i < padded_numel(); ++i) {
      if (source_of(i) >= 0) gathered[static_cast<size_t>(source_of(i))] += grad.get(type_, i);
    }
    std::vector<double> sums(static_cast<size_t>(2 * image_.channels), NAN);
    run_.kernels.norm_act_sums(grad.data(), origin.data(), type_, part, sums.data());
    Buffer grad_x(type_, numel(), run_.random.below(5));
    Buffer grad_residual(type_, numel(), run_.random.below(5));
    run_.kernels.norm_act_backward(grad.data(), origin.data(), grad_x.data(), grad_residual.data(), type_, part);

    std::vector<double> wanted(static_cast<size_t>(2 * image_.channels), 0.0);
    const int64_t row = image_.width * image_.channels;
    for (int64_t i = part.first * row; i < part.last * row; ++i) {
      const double s = origin.get(type_, i);
      const double upstream = gathered[static_cast<size_t>(i)];
      double z = s;
      if (is_output && activation_ == Activation::kLeakyRelu && !(s > 0)) z = s / kSlope;
      const double centred = z - parameter(cpu::kOffset, i);
      const double sign = is_output ? s : normalised(s, i);
      double g = upstream;
      if (activation_ == Activation::kRelu && !passes_relu(sign)) g = 0.0;
      if (activation_ == Activation::kLeakyRelu && !(sign > 0)) g = upstream * kSlope;
      wanted[static_cast<size_t>(i % image_.channels)] += g;
      wanted[static_cast<size_t>(image_.channels + i % image_.channels)] += g * centred;
      double result = g;
      double scale = std::fabs(g);
      if (through_statistics) {
        result += parameter(cpu::kCentred, i) * centred + parameter(cpu::kConstant, i);
        scale += std::fabs(parameter(cpu::kCentred, i) * centred) + std::fabs(parameter(cpu::kConstant, i));
      }
      result *= parameter(cpu::kGradient, i);
      scale *= std::fabs(parameter(cpu::kGradient, i));
      check_near(grad_x, type_, i, result, scale, "grad_x");
      check_near(grad_residual, type_, i, upstream, 0.0, "grad_residual");
    }
    for (size_t c = 0; c < wanted.size(); ++c) {
      const double allowed = tolerance(wide_, 64.0 * static_cast<double>(image_.pixels()));
      check(close(sums[c], wanted[c], allowed), "sum [%ld] of the gradient is %.12g, not %.12g", static_cast<long>(c),
            sums[c], wanted[c]);
    }
    for (const Buffer* buffer : {&grad, &origin, &std::as_const(grad_x), &std::as_const(grad_residual)}) {
      buffer->check_guards("backward");
    }
  }

  Run& run_;
  DType type_;
  DType wide_;
  PaddedImage image_;
  Buffer parameters_;
  Activation activation_;
};

}  // namespace

void test_norm_act(Run& run) {
  for (const DType type : kTypes) {
    for (int64_t k = 0; k < 2 * run.shapes; ++k) Norm(run, type).test();
  }
}

}  // namespace harness
