// The norm_act kernels against the formulas in double. Values are multiples of 1/8, for which most results are exact.
#include <algorithm>
#include <cmath>

#include "../../csrc/cuda/norm_act.h"
#include "perceptual_reference.h"

namespace harness {
namespace {

// Elements between a 64-byte boundary and the start of each buffer.
struct Offsets {
  int64_t x;
  int64_t residual;
  int64_t grad;
  int64_t out;  // the results, and the parameters
};
constexpr Offsets kAligned{0, 0, 0, 0};
constexpr Offsets kUnaligned{1, 1, 1, 1};

struct NormCase {
  int64_t batch;
  int64_t channels;
  PaddedImage image;  // channels is set by the layout
  Activation activation;
  bool channels_last;
  bool per_image;
  bool is_output;
  bool through_statistics;
  bool affine;
  Offsets offset = kUnaligned;
};

// All buffers of one case, and the expected results.
class Norm {
 public:
  Norm(DType type, const NormCase& one)
      : type_(type),
        wide_(arithmetic(type)),
        one_(one),
        image_(one.image),
        tensor_{one.batch, one.channels, one.image, one.channels_last, type},
        rows_(one.per_image ? one.batch : 1),
        x_(filled(type, numel(), one.offset.x, Values::kEighths, 1)),
        residual_(filled(type, numel(), one.offset.residual, Values::kEighths, 2)),
        grad_(filled(type, padded_numel(), one.offset.grad, Values::kEighths, 3)),
        mean_(wide_, rows_ * one.channels),
        rstd_(wide_, rows_ * one.channels),
        weight_(type, one.channels),
        bias_(DType::kFloat32, one.channels) {
    tensor_.map.channels = one.channels_last ? one.channels : 1;
    for (int64_t i = 0; i < rows_ * one.channels; ++i) {
      mean_.set(wide_, i, static_cast<double>(i % 9 - 4) / 8.0);
      rstd_.set(wide_, i, static_cast<double>(i % 4 + 1) / 2.0);
    }
    for (int64_t c = 0; c < one.channels; ++c) {
      weight_.set(type, c, (c % 2 == 0 ? 1.0 : -1.0) * (c % 3 == 0 ? 0.5 : 1.0));
      bias_.set(DType::kFloat32, c, static_cast<double>(c % 5 - 2) / 4.0);
    }
  }

  void run() {
    test_statistics();
    Buffer parameters(wide_, one_.batch * one_.channels * cuda::kNormParameters, one_.offset.out);
    test_forward(parameters);
    test_backward(parameters);
    for (const Buffer* buffer : {&x_, &residual_, &grad_, &mean_, &rstd_, &weight_, &bias_}) {
      buffer->check_guards("an input");
    }
  }

 private:
  int64_t pixels() const { return image_.height * image_.width; }
  int64_t numel() const { return one_.batch * one_.channels * pixels(); }
  int64_t padded_numel() const { return one_.batch * one_.channels * image_.padded_height() * image_.padded_width(); }
  int64_t index(int64_t n, int64_t c, int64_t row, int64_t column, int64_t height, int64_t width) const {
    return one_.channels_last ? ((n * height + row) * width + column) * one_.channels + c
                              : ((n * one_.channels + c) * height + row) * width + column;
  }
  int64_t at(int64_t n, int64_t c, int64_t row, int64_t column) const {
    return index(n, c, row, column, image_.height, image_.width);
  }
  // Calls f(n, c, padded index, index of its source or -1).
  template <typename F>
  void for_padded(const F& f) const {
    const int64_t height = image_.padded_height();
    const int64_t width = image_.padded_width();
    for (int64_t i = 0; i < one_.batch * one_.channels * height * width; ++i) {
      const int64_t column = i % width;
      const int64_t row = i / width % height;
      const int64_t c = i / width / height % one_.channels;
      const int64_t n = i / width / height / one_.channels;
      const int64_t from_row = source(row - image_.top, image_.height);
      const int64_t from_column = source(column - image_.left, image_.width);
      f(n, c, index(n, c, row, column, height, width),
        from_row < 0 || from_column < 0 ? -1 : at(n, c, from_row, from_column));
    }
  }
  int64_t source(int64_t i, int64_t size) const {
    if (i >= 0 && i < size) return i;
    if (image_.mode == PaddingMode::kZero) return -1;
    if (image_.mode == PaddingMode::kReplicate) return std::clamp<int64_t>(i, 0, size - 1);
    return i < 0 ? -i : 2 * size - 2 - i;
  }
  int64_t row_of(int64_t n) const { return one_.per_image ? n : 0; }
  double mean(int64_t n, int64_t c) const { return mean_.get(wide_, row_of(n) * one_.channels + c); }
  double rstd(int64_t n, int64_t c) const { return rstd_.get(wide_, row_of(n) * one_.channels + c); }
  double weight(int64_t c) const { return one_.affine ? weight_.get(type_, c) : 1.0; }
  double bias(int64_t c) const { return one_.affine ? bias_.get(DType::kFloat32, c) : 0.0; }
  double normalised(double x, int64_t n, int64_t c) const {
    return (x - mean(n, c)) * (rstd(n, c) * weight(c)) + bias(c);
  }
  double activated(double z) const {
    if (one_.activation == Activation::kNone || z > 0) return z;
    return one_.activation == Activation::kRelu ? 0.0 : z * kSlope;
  }
  cuda::NormInputs inputs() {
    cuda::NormInputs inputs{mean_.data(), rstd_.data(), {nullptr, type_}, {nullptr, DType::kFloat32}, rows_};
    if (one_.affine) inputs.weight.data = weight_.data();
    if (one_.affine) inputs.bias.data = bias_.data();
    return inputs;
  }
  cuda::NormActivation activation() const { return {one_.activation, kSlope}; }

  void check_near(const Buffer& got, DType type, int64_t i, double wanted, double scale, const char* what) const {
    constexpr double kTolerance[] = {4e-6, 1e-13, 2e-3, 1.6e-2};
    const double tolerance = kTolerance[static_cast<int>(type)] * std::max(scale, std::fabs(wanted));
    check(close(got.get(type, i), wanted, tolerance), "%s [%ld of %ld] is %.9g, not %.9g", what, static_cast<long>(i),
          static_cast<long>(got.numel()), got.get(type, i), wanted);
  }

  // x plus a large mean, whose squares would cancel.
  void test_statistics() {
    const double large = type_ == DType::kFloat32 || type_ == DType::kFloat64 ? 4096.0 : 0.0;
    Buffer x = copy_of(x_, type_, one_.offset.x);
    for (int64_t i = 0; i < x.numel(); ++i) x.set(type_, i, x_.get(type_, i) + large);
    const int64_t count = rows_ * one_.channels;
    Buffer partial(DType::kFloat64, tensor_.partials());
    Buffer mean(wide_, count), rstd(wide_, count), var(wide_, count);
    set_postponing(true);  // the kernel that adds the partial sums starts first
    const int error = cuda::norm_statistics(x.data(), tensor_, rows_, 0.25, static_cast<double*>(partial.data()),
                                            mean.data(), rstd.data(), var.data(), nullptr);
    set_postponing(false);
    check(error == 0, "norm_statistics returns %d", error);
    const int64_t images = one_.per_image ? 1 : one_.batch;
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0.0, square = 0.0;
      for (int64_t n = i / one_.channels * images; n < (i / one_.channels + 1) * images; ++n) {
        for (int64_t p = 0; p < pixels(); ++p) {
          const double value = x_.get(type_, at(n, i % one_.channels, p / image_.width, p % image_.width));
          sum += value;
          square += value * value;
        }
      }
      const auto size = static_cast<double>(images * pixels());
      const double expected = square / size - sum / size * (sum / size);
      check_near(mean, wide_, i, sum / size + large, 1.0, "mean");
      check_near(var, wide_, i, expected, 1.0, "variance");
      check_near(rstd, wide_, i, 1.0 / std::sqrt(expected + 0.25), 1.0, "rstd");
    }
    for (const Buffer* buffer : {&partial, &mean, &rstd, &var}) buffer->check_guards("statistics");
  }

  void test_forward(Buffer& parameters) {
    int error = cuda::norm_parameters(tensor_, inputs(), {nullptr, false, false}, nullptr, parameters.data(), nullptr);
    check(error == 0, "norm_parameters returns %d", error);
    for (const bool add : {false, true}) {
      Buffer y(type_, padded_numel(), one_.offset.out);
      error = cuda::norm_act(x_.data(), add ? residual_.data() : nullptr, y.data(), tensor_, activation(),
                             parameters.data(), nullptr);
      check(error == 0, "norm_act returns %d", error);
      for_padded([&](int64_t n, int64_t c, int64_t i, int64_t from) {
        double wanted = 0.0;
        if (from >= 0) {
          wanted = activated(normalised(x_.get(type_, from), n, c)) + (add ? residual_.get(type_, from) : 0.0);
        }
        check_near(y, type_, i, wanted, 1.0, "result");
      });
      y.check_guards("result");
    }
    parameters.check_guards("parameters");
  }

  void test_backward(Buffer& parameters) {
    // The source: x, or the activated output, exact in double only.
    const DType type = type_;
    Buffer output(type, numel(), one_.offset.x);
    std::vector<double> gathered(static_cast<size_t>(numel())), masked(gathered), centred(gathered);
    std::vector<double> sums(static_cast<size_t>(one_.batch * one_.channels)), products(sums);
    std::vector<double> shared(sums), shared_products(sums);
    for_padded([&](int64_t, int64_t, int64_t i, int64_t from) {
      if (from >= 0) gathered[static_cast<size_t>(from)] += grad_.get(type, i);
    });
    const auto for_pixels = [&](const auto& f) {
      for (int64_t i = 0; i < numel(); ++i) {
        const int64_t c = one_.channels_last ? i % one_.channels : i / pixels() % one_.channels;
        f(i, i / pixels() / one_.channels, c, static_cast<size_t>(i));
      }
    };
    for_pixels([&](int64_t i, int64_t n, int64_t c, size_t k) {
      const double x = x_.get(type, i);
      output.set(type, i, activated(normalised(x, n, c)));
      const double out = output.get(type, i);
      const double sign = one_.is_output ? out : normalised(x, n, c);
      const double z = one_.activation == Activation::kLeakyRelu && out <= 0 ? out / kSlope : out;
      centred[k] = one_.is_output ? z - bias(c) : x - mean(n, c);
      masked[k] = one_.activation == Activation::kNone || sign > 0 ? gathered[k]
                  : one_.activation == Activation::kRelu           ? 0.0
                                                                   : gathered[k] * kSlope;
      const auto map = static_cast<size_t>(n * one_.channels + c);
      sums[map] += masked[k];
      products[map] += masked[k] * centred[k];
      const auto row = static_cast<size_t>(row_of(n) * one_.channels + c);
      shared[row] += masked[k];
      shared_products[row] += masked[k] * centred[k];
    });
    const auto normalise = [&](int64_t n, int64_t c) { return one_.is_output ? 1.0 / weight(c) : rstd(n, c); };

    const cuda::NormSource source{one_.is_output ? output.data() : x_.data(), one_.is_output, one_.through_statistics};
    Buffer partial(DType::kFloat64, tensor_.partials());
    Buffer totals(DType::kFloat64, 2 * one_.batch * one_.channels);
    auto* total = static_cast<double*>(totals.data());
    int error = cuda::norm_parameters(tensor_, inputs(), source, nullptr, parameters.data(), nullptr);
    check(error == 0, "norm_parameters returns %d", error);
    set_postponing(true);
    error = cuda::norm_act_sums(grad_.data(), source, tensor_, activation(), parameters.data(),
                                static_cast<double*>(partial.data()), total, nullptr);
    set_postponing(false);
    check(error == 0, "norm_act_sums returns %d", error);
    const double scale = static_cast<double>(pixels());
    for (int64_t i = 0; i < one_.batch * one_.channels; ++i) {
      check(close(total[i], sums[static_cast<size_t>(i)], 1e-6 * scale), "sum %ld is %g, not %g", static_cast<long>(i),
            total[i], sums[static_cast<size_t>(i)]);
      const double product = total[one_.batch * one_.channels + i];
      check(close(product, products[static_cast<size_t>(i)], 1e-5 * scale), "product %ld is %g, not %g",
            static_cast<long>(i), product, products[static_cast<size_t>(i)]);
    }

    Buffer grad_weight(type, one_.channels), grad_bias(DType::kFloat32, one_.channels);
    error = cuda::norm_affine(tensor_, inputs(), source, total, {grad_weight.data(), type},
                              {grad_bias.data(), DType::kFloat32}, nullptr);
    check(error == 0, "norm_affine returns %d", error);
    for (int64_t c = 0; c < one_.channels; ++c) {
      double gradient = 0.0, product = 0.0;
      for (int64_t n = 0; n < one_.batch; ++n) {
        gradient += sums[static_cast<size_t>(n * one_.channels + c)];
        product += products[static_cast<size_t>(n * one_.channels + c)] * normalise(n, c);
      }
      check_near(grad_weight, type, c, product, scale, "gradient of weight");
      check_near(grad_bias, DType::kFloat32, c, gradient, scale, "gradient of bias");
    }

    if (one_.through_statistics) {
      error = cuda::norm_parameters(tensor_, inputs(), source, total, parameters.data(), nullptr);
      check(error == 0, "norm_parameters returns %d", error);
    }
    Buffer grad_x(type, numel(), one_.offset.out), grad_residual(type, numel(), one_.offset.residual);
    error = cuda::norm_act_backward(grad_.data(), source, grad_x.data(), grad_residual.data(), tensor_, activation(),
                                    parameters.data(), nullptr);
    check(error == 0, "norm_act_backward returns %d", error);
    const auto count = static_cast<double>(pixels() * (one_.per_image ? 1 : one_.batch));
    for_pixels([&](int64_t i, int64_t n, int64_t c, size_t k) {
      check_near(grad_residual, type, i, gathered[k], 0.0, "gradient of the residual");
      double wanted = masked[k];
      if (one_.through_statistics) {
        const auto row = static_cast<size_t>(row_of(n) * one_.channels + c);
        const double square = normalise(n, c) * normalise(n, c);
        wanted -= shared[row] / count + centred[k] * square * shared_products[row] / count;
      }
      check_near(grad_x, type, i, wanted * rstd(n, c) * weight(c), 64.0, "gradient of x");
    });
    for (const Buffer* buffer : {&partial, &totals, &grad_weight, &grad_bias, &grad_x, &grad_residual, &parameters}) {
      buffer->check_guards("backward");
    }
  }

  static constexpr double kSlope = 0.25;
  DType type_;
  DType wide_;
  NormCase one_;
  PaddedImage image_;
  cuda::NormTensor tensor_;
  int64_t rows_;
  Buffer x_, residual_, grad_, mean_, rstd_, weight_, bias_;
};

// No launcher may start a kernel, which would read the null pointers.
void test_rows_that_are_too_long() {
  set_case("norm_act, rows of more than 2^31 - 1 elements");
  for (const int64_t width : {cuda::kLongestRow + 1, int64_t{1} << 32}) {
    const cuda::NormTensor tensor{1, 1, {1, width, 1, 0, 0, 0, 0, PaddingMode::kZero}, false, DType::kFloat32};
    const cuda::NormActivation none{Activation::kNone, 0.0};
    const cuda::NormSource source{nullptr, false, true};
    check(cuda::norm_act(nullptr, nullptr, nullptr, tensor, none, nullptr, nullptr) != 0, "norm_act");
    check(cuda::norm_act_sums(nullptr, source, tensor, none, nullptr, nullptr, nullptr, nullptr) != 0, "norm_act_sums");
    check(cuda::norm_act_backward(nullptr, source, nullptr, nullptr, tensor, none, nullptr, nullptr) != 0,
          "norm_act_backward");
  }
}

// Rounded sums show the order of addition. The last case has vectors across the border.
void test_the_order_of_addition_does_not_depend_on_alignment() {
  const NormCase cases[] = {{1, 2, {70, 80, 0, 0, 0, 0, 0, PaddingMode::kZero}, Activation::kNone, false},
                            {1, 24, {20, 30, 0, 0, 0, 0, 0, PaddingMode::kZero}, Activation::kNone, true},
                            {1, 2, {20, 40, 0, 3, 5, 1, 1, PaddingMode::kReflect}, Activation::kRelu, false}};
  for (const DType type : kTypes) {
    for (const NormCase& one : cases) {
      set_case(describe("norm_act, order", type, std::to_string(one.channels), 0, Values::kRandom));
      cuda::NormTensor tensor{1, one.channels, one.image, one.channels_last, type};
      tensor.map.channels = one.channels_last ? one.channels : 1;
      const int64_t pixels = one.image.padded_height() * one.image.padded_width();
      const DType wide = arithmetic(type);
      Buffer parameters = filled(wide, cuda::kNormParameters * one.channels, 0, Values::kRandom, 4);
      std::vector<unsigned char> sums[2];
      for (const int64_t offset : {0, 1}) {
        Buffer x = filled(type, one.image.pixels() * one.channels, offset, Values::kRandom, 1);
        Buffer grad = filled(type, pixels * one.channels, offset, Values::kRandom, 2);
        Buffer partial(DType::kFloat64, tensor.partials()), total(DType::kFloat64, 2 * one.channels);
        Buffer statistics(wide, 3 * one.channels);
        auto* to = static_cast<double*>(partial.data());
        auto* mean = static_cast<char*>(statistics.data());
        const auto row = static_cast<int64_t>(size_of(wide)) * one.channels;
        check(cuda::norm_statistics(x.data(), tensor, 1, 0.0, to, mean, mean + row, mean + 2 * row, nullptr) == 0,
              "norm_statistics");
        check(cuda::norm_act_sums(grad.data(), {x.data(), false, true}, tensor, {one.activation, 0.0},
                                  parameters.data(), to, static_cast<double*>(total.data()), nullptr) == 0,
              "norm_act_sums");
        sums[offset] = statistics.bytes();
        for (const unsigned char byte : total.bytes()) sums[offset].push_back(byte);
      }
      check(sums[0] == sums[1], "sums depend on the alignment");
    }
  }
}

}  // namespace

void test_norm_act() {
  test_rows_that_are_too_long();
  constexpr auto kReflect = PaddingMode::kReflect;
  constexpr auto kReplicate = PaddingMode::kReplicate;
  constexpr auto kZero = PaddingMode::kZero;
  constexpr auto kNone = Activation::kNone;
  constexpr auto kRelu = Activation::kRelu;
  constexpr auto kLeaky = Activation::kLeakyRelu;
  // Both layouts, not aligned; rows longer than a block, and several rows of a block; more than 32 channels; images
  // smaller than their padding; empty ones.
  const std::vector<NormCase> cases = {
      {2, 3, {5, 7, 0, 1, 2, 2, 1, kReflect}, kRelu, false, true, false, true, true},
      {2, 3, {5, 7, 0, 6, 2, 4, 4, kReflect}, kLeaky, true, true, false, true, false},
      {2, 40, {17, 18, 0, 3, 0, 1, 2, kReplicate}, kLeaky, true, false, true, true, true},
      {1, 1, {9, 1000, 0, 1, 3, 0, 2, kZero}, kNone, false, true, false, true, true},
      {2, 2, {2, 4200, 0, 2, 1, 1, 1, kReflect}, kRelu, false, false, false, false, true},
      {1, 5, {1, 1, 0, 3, 2, 1, 4, kReplicate}, kNone, false, true, true, true, true},
      {2, 35, {3, 40, 0, 0, 0, 0, 0, kReflect}, kRelu, true, false, true, false, false},
      {0, 3, {4, 4, 0, 1, 1, 1, 1, kReflect}, kRelu, true, true, false, true, true},
      {2, 3, {0, 4, 0, 1, 1, 1, 1, kZero}, kRelu, false, true, false, true, true},
      // Planes in whole vectors: two chunks of a plane; padding that keeps the alignment, and that does not; planes of
      // an odd number of pixels, of which every second one is not aligned; one buffer that is not aligned.
      {1, 2, {130, 136, 0, 0, 0, 0, 0, kReflect}, kRelu, false, true, false, true, true, kAligned},
      {2, 2, {12, 48, 0, 8, 16, 3, 2, kReflect}, kLeaky, false, true, true, true, true, kAligned},
      {1, 3, {9, 63, 0, 1, 0, 2, 1, kReplicate}, kNone, false, true, false, true, false, kAligned},
      {1, 3, {7, 51, 0, 0, 0, 0, 0, kZero}, kRelu, false, false, false, false, true, kAligned},
      {1, 2, {3, 64, 0, 8, 8, 1, 0, kZero}, kRelu, false, true, false, true, true, {0, 1, 0, 0}},
      {1, 2, {3, 64, 0, 0, 0, 0, 0, kZero}, kLeaky, false, true, false, true, true, {0, 0, 0, 1}},
      // Channels in whole vectors: more than one group and a chunk of pixels, fewer than a group, of some dtypes only,
      // and one buffer that is not aligned.
      {1, 136, {15, 20, 0, 1, 1, 1, 1, kReflect}, kRelu, true, true, false, true, true, kAligned},
      {2, 24, {9, 40, 0, 2, 1, 0, 3, kReplicate}, kLeaky, true, false, true, true, true, kAligned},
      {1, 8, {40, 33, 0, 0, 0, 0, 0, kZero}, kNone, true, true, false, true, false, kAligned},
      {2, 12, {6, 7, 0, 3, 2, 2, 1, kZero}, kRelu, true, true, false, false, true, kAligned},
      {1, 16, {6, 7, 0, 1, 1, 1, 1, kReflect}, kRelu, true, true, false, true, true, {0, 1, 0, 0}},
      {1, 16, {6, 7, 0, 1, 1, 1, 1, kReflect}, kRelu, true, true, false, true, true, {0, 0, 1, 0}},
      {1, 16, {6, 7, 0, 1, 1, 1, 1, kReflect}, kRelu, true, true, false, true, true, {0, 0, 0, 1}},
  };
  for (const DType type : kTypes) {
    for (size_t k = 0; k < cases.size(); ++k) {
      const NormCase& one = cases[k];
      if (uses_fewer_sizes() && k % 5 != 0) continue;  // leaves both layouts, aligned and not
      const std::string shape = std::to_string(one.batch) + "x" + std::to_string(one.channels) + "x" +
                                std::to_string(one.image.height) + "x" + std::to_string(one.image.width);
      set_case(describe("norm_act", type, shape, one.offset.x, Values::kEighths));
      set_order(k % 2 == 0 ? Order::kForward : Order::kReversed);
      Norm(type, one).run();
    }
  }
  set_order(Order::kForward);
  // Last, because faults are built for float32 only, which the cases above begin with.
  test_the_order_of_addition_does_not_depend_on_alignment();
}

}  // namespace harness
