// The norm_act kernels where sums in the type of the arithmetic cancel or overflow: channels whose first pixel is an
// outlier, constant channels, and values whose squares overflow.
#include <cmath>

#include "../../csrc/cuda/norm_act.h"
#include "perceptual_reference.h"

namespace harness {
namespace {

enum class Content { kOrdinary, kOutlier, kHugeOutlier, kLarge, kConstant };
constexpr const char* kNames[] = {"ordinary", "outlier", "huge outlier", "large", "constant"};
constexpr double kEps = 1e-5;

struct Extreme {
  Content content;
  double size;
};

double value(const Extreme& extreme, int64_t pixel, double random) {
  switch (extreme.content) {
    case Content::kOutlier:
      return pixel == 0 ? extreme.size : extreme.size * (0.1 + 1e-3 * random);
    case Content::kHugeOutlier:
      return pixel == 0 ? extreme.size : random;
    case Content::kLarge:
      return extreme.size * random;
    case Content::kConstant:
      return extreme.size;
    default:
      return random;
  }
}

// One image, without padding, weight and activation. Every second channel has the extreme values.
class ExtremeImage {
 public:
  ExtremeImage(DType type, int64_t channels, int64_t pixels, bool channels_last, int64_t offset, const Extreme& extreme)
      : type_(type),
        wide_(arithmetic(type)),
        channels_(channels),
        pixels_(pixels),
        tensor_{1,
                channels,
                {1, pixels, channels_last ? channels : 1, 0, 0, 0, 0, PaddingMode::kZero},
                channels_last,
                type},
        x_(type, channels * pixels, offset),
        grad_(type, channels * pixels, offset) {
    Random random(1);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < pixels; ++p) {
        const double drawn = draw(random, Values::kRandom);
        x_.set(type, at(c, p), value(c % 2 == 1 ? extreme : Extreme{Content::kOrdinary, 1.0}, p, drawn));
        grad_.set(type, at(c, p), draw(random, Values::kRandom));
      }
    }
  }

  void run() {
    Buffer partial(DType::kFloat64, tensor_.partials()), totals(DType::kFloat64, 2 * channels_);
    Buffer mean(wide_, channels_), rstd(wide_, channels_), var(wide_, channels_);
    Buffer parameters(wide_, channels_ * cuda::kNormParameters);
    Buffer y(type_, x_.numel()), grad_x(type_, x_.numel());
    auto* to = static_cast<double*>(partial.data());
    auto* total = static_cast<double*>(totals.data());
    const cuda::NormInputs inputs{mean.data(), rstd.data(), {nullptr, type_}, {nullptr, type_}, 1};
    const cuda::NormActivation none{Activation::kNone, 0.0};
    const cuda::NormSource source{x_.data(), false, true};
    int error = cuda::norm_statistics(x_.data(), tensor_, 1, kEps, to, mean.data(), rstd.data(), var.data(), nullptr);
    error |= cuda::norm_parameters(tensor_, inputs, source, nullptr, parameters.data(), nullptr);
    error |= cuda::norm_act(x_.data(), nullptr, y.data(), tensor_, none, parameters.data(), nullptr);
    error |= cuda::norm_act_sums(grad_.data(), source, tensor_, none, parameters.data(), to, total, nullptr);
    error |= cuda::norm_parameters(tensor_, inputs, source, total, parameters.data(), nullptr);
    error |= cuda::norm_act_backward(grad_.data(), source, grad_x.data(), nullptr, tensor_, none, parameters.data(),
                                     nullptr);
    check(error == 0, "a launcher returns an error");
    for (int64_t c = 0; c < channels_; ++c) check_channel(c, mean, rstd, var, y, grad_x);
    for (const Buffer* buffer : {&partial, &totals, &mean, &rstd, &var, &parameters, &y, &grad_x}) {
      buffer->check_guards("a result");
    }
  }

 private:
  int64_t at(int64_t c, int64_t p) const { return tensor_.channels_last ? p * channels_ + c : c * pixels_ + p; }

  void check_near(const Buffer& got, DType type, int64_t i, double wanted, double tolerance, const char* what) const {
    check(close(got.get(type, i), wanted, tolerance), "%s [%ld of %ld] is %.9g, not %.9g", what, static_cast<long>(i),
          static_cast<long>(got.numel()), got.get(type, i), wanted);
  }

  void check_channel(int64_t c, const Buffer& mean, const Buffer& rstd, const Buffer& var, const Buffer& y,
                     const Buffer& grad_x) const {
    // Deviations from the first pixel, in more precision than double: the mean of equal values is exact.
    long double sum = 0.0, squares = 0.0, gradients = 0.0, products = 0.0;
    const long double origin = x_.get(type_, at(c, 0));
    for (int64_t p = 0; p < pixels_; ++p) sum += x_.get(type_, at(c, p)) - origin;
    const long double exact_mean = origin + sum / pixels_;
    for (int64_t p = 0; p < pixels_; ++p) {
      const long double deviation = x_.get(type_, at(c, p)) - exact_mean;
      squares += deviation * deviation;
      gradients += grad_.get(type_, at(c, p));
      products += grad_.get(type_, at(c, p)) * deviation;
    }
    const auto centre = static_cast<double>(exact_mean);
    const auto variance = static_cast<double>(squares / pixels_);
    const auto gradient = static_cast<double>(gradients / pixels_);
    const auto product = static_cast<double>(products / pixels_);
    const double scale = 1.0 / std::sqrt(variance + kEps);
    const double exact = wide_ == DType::kFloat64 ? 1e-13 : 3e-7;
    check_near(mean, wide_, c, centre, exact * std::max(std::fabs(centre), std::sqrt(variance)), "mean");
    check_near(var, wide_, c, rounded(wide_, variance), 4 * exact * variance, "variance");
    check_near(rstd, wide_, c, scale, 2 * exact * scale, "rstd");

    constexpr double kTolerance[] = {2e-5, 1e-12, 2e-3, 1.6e-2};
    const double tolerance = kTolerance[static_cast<int>(type_)];
    for (int64_t p = 0; p < pixels_; ++p) {
      const auto normalised = static_cast<double>((x_.get(type_, at(c, p)) - exact_mean) * scale);
      check_near(y, type_, at(c, p), normalised, tolerance * (1.0 + std::fabs(normalised)), "result");
      const double wanted = grad_.get(type_, at(c, p)) - gradient - normalised * product * scale;
      check_near(grad_x, type_, at(c, p), wanted * scale, 4.0 * tolerance * scale * (1.0 + std::fabs(wanted)),
                 "gradient of x");
    }
  }

  DType type_;
  DType wide_;
  int64_t channels_;
  int64_t pixels_;
  cuda::NormTensor tensor_;
  Buffer x_, grad_;
};

}  // namespace

void test_norm_act_extremes() {
  const std::vector<Extreme> extremes = {
      {Content::kOutlier, 1.0},    {Content::kHugeOutlier, 1e30}, {Content::kLarge, 1e19},
      {Content::kLarge, 1e30},     {Content::kLarge, 1e200},      {Content::kConstant, 0.1},
      {Content::kConstant, -1e30}, {Content::kLarge, 1e4},        {Content::kHugeOutlier, 6e4}};
  struct Layout {
    int64_t channels;
    int64_t pixels;
    bool channels_last;
    int64_t offset;
  };
  // Two chunks, so that one has an outlier and one has none; whole vectors and others.
  const std::vector<Layout> layouts = {
      {2, cuda::kPlaneChunk + 700, false, 0}, {2, 801, false, 1}, {16, 400, true, 0}, {3, 300, true, 1}};
  for (const DType type : kTypes) {
    const double largest = type == DType::kFloat64 ? 1e300 : type == DType::kFloat16 ? 6.1e4 : 1e38;
    for (const Extreme& extreme : extremes) {
      if (std::fabs(extreme.size) > largest) continue;
      for (const Layout& one : layouts) {
        if (uses_fewer_sizes() && one.pixels > 1000) continue;
        set_case(describe("norm_act", type, kNames[static_cast<int>(extreme.content)], one.offset, Values::kRandom) +
                 " size " + std::to_string(extreme.size) + (one.channels_last ? " channels-last" : " contiguous"));
        ExtremeImage(type, one.channels, one.pixels, one.channels_last, one.offset, extreme).run();
      }
    }
  }
}

}  // namespace harness
