// The tap of LPIPS against its formula in long double. Tolerances are bounds of the rounding errors: of the arithmetic,
// float for every dtype but double, and of the one rounding of the derivative to the dtype of the feature map.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "perceptual_reference.h"

namespace harness {
namespace {

using cuda::kLpipsPixels;
using cuda::lpips_blocks;
using Long = long double;

struct Options {
  bool bias;
  bool weight;
  bool activated;
  double kept_scale;
};

struct Offsets {
  int64_t x;
  int64_t y;
  int64_t kept;
};

// The largest relative error of one rounding.
double roundoff(DType type) {
  switch (type) {
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
    default:
      return 0x1p-53;
  }
}

// The largest error of rounding to a subnormal number.
double least_roundoff(DType type) {
  return type == DType::kFloat16 ? 0x1p-25 : type == DType::kFloat64 ? 0.0 : 0x1p-133;
}

double largest_kept(DType type) { return type == DType::kFloat16 ? 65504.0 : HUGE_VAL; }

// Replaces pixels of two feature maps: vectors that ReLU makes zero, in one map or both, and equal vectors; for
// kSpecial also NaN, infinities, huge and tiny numbers. Two of ten pixels are not changed.
void set_pixels(Buffer& x, Buffer& y, DType type, int64_t channels, bool activated, Values values) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double below_zero = activated ? 0.0 : -100.0;
  for (int64_t pixel = 0; pixel < x.numel() / channels; ++pixel) {
    const auto fill = [&](Buffer& map, double value) {
      for (int64_t c = 0; c < channels; ++c) map.set(type, pixel * channels + c, value);
    };
    const int64_t one = pixel * channels + 7 * pixel % channels;
    if (values != Values::kSpecial) {
      const int64_t kind = pixel % 10;
      if (kind == 1 || kind == 3) fill(x, -100.0);
      if (kind == 2 || kind == 3) fill(y, below_zero);
      if (kind == 4) {
        for (int64_t c = 0; c < channels; ++c) y.set(type, pixel * channels + c, x.get(type, pixel * channels + c));
      }
      continue;
    }
    switch (pixel % 10) {
      case 0:
        x.set(type, one, NAN);
        break;
      case 1:
        x.set(type, one, kInfinity);
        break;
      case 2:
        y.set(type, one, kInfinity);
        break;
      case 3:
        x.set(type, one, -kInfinity);
        break;
      case 4:
        x.set(type, one, 1e30);
        break;
      case 5:
        fill(x, 1e-12);
        break;
      case 6:
        fill(x, 6e-8);
        break;
      case 7:
        fill(x, -0.0);
        y.set(type, one, NAN);
        break;
      default:
        break;
    }
  }
}

struct Maps {
  Buffer x;
  Buffer y;
};

Maps maps_of(DType type, const View& view, bool activated, Values values) {
  const int64_t n = view.numel();
  // set_pixels adds the special values, because every pixel would contain NaN otherwise.
  const Values drawn = values == Values::kSpecial ? Values::kRandom : values;
  Buffer x = filled(type, n, 0, drawn, static_cast<uint64_t>(n) + 1);
  Buffer y = filled(type, n, 0, drawn, static_cast<uint64_t>(n) + 2, &x);
  set_pixels(x, y, type, view.channels, activated, values);
  return {std::move(x), std::move(y)};
}

// Of one pixel, with the sums of the absolute values of all terms for the tolerance.
struct Tap {
  Long norm = 0, scale_x = 0, scale_y = 0, distance = 0, along = 0, distance_size = 0, along_size = 0;
};

struct LpipsCase {
  DType type;
  View view;
  Options options;
  Offsets offsets;
  int64_t n;
  Maps maps;
  Buffer bias, weight, linear, before, relu_x, relu_y;
  std::vector<Tap> taps;

  LpipsCase(DType type_, const View& view_, Options options_, Offsets offsets_, Values values)
      : type(type_),
        view(view_),
        options(options_),
        offsets(offsets_),
        n(view_.numel()),
        maps(maps_of(type, view, options.activated, values)),
        bias(filled(type, view.channels, 0, Values::kRandom, 7)),
        weight(filled(arithmetic(type), view.batch * view.pixels, 0, Values::kEighths, 8)),
        linear(filled(arithmetic(type), view.channels, 0, Values::kRandom, 9)),
        before(biased(maps.x, type, view.channels, own_bias())),
        relu_x(relu_of(before, type)),
        relu_y(options.activated ? copy_of(maps.y, type, 0)
                                 : relu_of(biased(maps.y, type, view.channels, own_bias()), type)) {
    for (int64_t pixel = 0; pixel < view.batch * view.pixels; ++pixel) taps.push_back(tap_of(pixel));
  }

  const Buffer* own_bias() const { return options.bias ? &bias : nullptr; }
  const Buffer* own_weight() const { return options.weight ? &weight : nullptr; }
  double weight_at(int64_t pixel) const { return options.weight ? weight.get(arithmetic(type), pixel) : 1.0; }

  // Bounds the error of sums over the channels and of the operations before and after: a lane adds at most 1/8 of the
  // channels, but not fewer than 8.
  double relative_error() const {
    return (static_cast<double>(view.channels) / 8.0 + 32.0) * roundoff(arithmetic(type));
  }

  Long norm_of(const Buffer& map, int64_t pixel) const {
    Long sum = 0;
    for (int64_t i = pixel * view.channels; i < (pixel + 1) * view.channels; ++i) {
      sum += Long(map.get(type, i)) * map.get(type, i);
    }
    // Squares overflow in float, as in PyTorch.
    return std::isinf(rounded(arithmetic(type), static_cast<double>(sum))) ? Long(HUGE_VAL) : std::sqrt(sum);
  }

  Tap tap_of(int64_t pixel) const {
    Tap result;
    result.norm = norm_of(relu_x, pixel);
    result.scale_x = 1 / (result.norm + Long(kLpipsEps));
    result.scale_y = 1 / (norm_of(relu_y, pixel) + Long(kLpipsEps));
    for (int64_t c = 0; c < view.channels; ++c) {
      const int64_t i = pixel * view.channels + c;
      const Long u = relu_x.get(type, i) * result.scale_x;
      const Long v = relu_y.get(type, i) * result.scale_y;
      const Long factor = linear.get(arithmetic(type), c);
      const Long size = std::fabs(u) + std::fabs(v);
      result.distance += factor * (u - v) * (u - v);
      result.along += factor * (u - v) * u;
      result.distance_size += std::fabs(factor) * size * size;
      result.along_size += std::fabs(factor) * size * std::fabs(u);
    }
    return result;
  }

  void check_partial(const Buffer& partial) const {
    const int64_t per_image = lpips_blocks(view.pixels);
    for (int64_t block = 0; block < partial.numel(); ++block) {
      const int64_t within = block % per_image * kLpipsPixels;
      const int64_t begin = block / per_image * view.pixels;
      Long sum = 0, size = 0;
      for (int64_t p = begin + within; p < begin + std::min(within + kLpipsPixels, view.pixels); ++p) {
        const Tap& one = taps[static_cast<size_t>(p)];
        sum += weight_at(p) * one.distance;
        size += std::fabs(weight_at(p)) * one.distance_size;
      }
      const double wanted = static_cast<double>(sum / view.pixels);
      const double got = partial.get(DType::kFloat64, block);
      check(close(got, wanted, 2 * relative_error() * static_cast<double>(size / view.pixels)),
            "partial sum %ld is %.17g, not %.17g", static_cast<long>(block), got, wanted);
    }
    partial.check_guards("partial sums");
  }

  void check_kept(const Buffer& kept) const {
    const double largest = largest_kept(type);
    for (int64_t pixel = 0; pixel < view.batch * view.pixels; ++pixel) {
      const Tap& one = taps[static_cast<size_t>(pixel)];
      const Long scale = one.scale_x * options.kept_scale;
      const bool has_direction = one.norm > Long(kLpipsTiny);
      const Long radial = has_direction ? one.along / one.norm * scale : 0;
      const Long radial_size = has_direction ? one.along_size / one.norm * scale : 0;
      for (int64_t c = 0; c < view.channels; ++c) {
        const int64_t i = pixel * view.channels + c;
        const Long factor = linear.get(arithmetic(type), c);
        const Long p = relu_x.get(type, i);
        const Long u = p * one.scale_x;
        const Long v = relu_y.get(type, i) * one.scale_y;
        const auto exact = static_cast<double>(scale * factor * (u - v) - radial * p);
        const Long size = scale * std::fabs(factor) * (std::fabs(u) + std::fabs(v)) + radial_size * std::fabs(p);
        const double wanted = std::isnan(exact) ? exact : std::max(-largest, std::min(exact, largest));
        const double error = 2 * relative_error() * static_cast<double>(size);
        const double tolerance = error + roundoff(type) * (std::fabs(wanted) + error) + least_roundoff(type);
        const double got = kept.get(type, i);
        check(close(got, wanted, tolerance), "derivative [%ld of %ld], pixel %ld, is %.9g, not %.9g",
              static_cast<long>(i), static_cast<long>(n), static_cast<long>(pixel), got, wanted);
      }
    }
    kept.check_guards("derivative");
  }

  std::vector<uint64_t> forward(Buffer* kept, Words* mask) const {
    Buffer a = copy_of(maps.x, type, offsets.x);
    Buffer b = copy_of(maps.y, type, offsets.y);
    Buffer partial(DType::kFloat64, view.batch * lpips_blocks(view.pixels));
    const int error =
        cuda::relu_lpips(a.data(), b.data(), options.activated, type, view.with(own_bias(), own_weight()),
                         linear.data(), options.kept_scale, kept != nullptr ? kept->data() : nullptr,
                         mask != nullptr ? mask->data() : nullptr, static_cast<double*>(partial.data()), nullptr);
    check(error == 0, "relu_lpips returns %d", error);
    check_same(a, relu_x, type, "max(0, input)");
    check_same(b, relu_y, type, "max(0, target)");
    check_partial(partial);
    if (mask != nullptr) mask->check_are(relu_bits(before, type).words, "mask");
    return bits_of(partial);
  }

  void backward(const Buffer& derivative, Words& mask, double coefficient) const {
    const Buffer grad = filled(type, n, 0, Values::kRandom, static_cast<uint64_t>(n) + 3);
    const DType compute = arithmetic(type);
    const Buffer kept = copy_of(derivative, type, 0);
    Buffer wanted(type, n);
    for (int64_t i = 0; i < n; ++i) {
      double factor = rounded(compute, 2.0 * coefficient);
      if (options.weight) factor = rounded(compute, factor * weight_at(i / view.channels));
      const double term = rounded(compute, factor * kept.get(type, i));
      const double g = rounded(type, rounded(compute, grad.get(type, i) + term));
      wanted.set(type, i, passes_relu(before.get(type, i)) ? g : 0.0);
    }
    Buffer in_place = copy_of(grad, type, 0);
    const int error = cuda::relu_distance_backward(in_place.data(), type, view.with(nullptr, own_weight()),
                                                   Distance::kSquared, mask.data(), kept.data(), coefficient, nullptr);
    check(error == 0, "relu_distance_backward returns %d", error);
    check_same(in_place, wanted, type, "gradient of the tap");
  }
};

void run_lpips(DType type, const View& view, Options options, Offsets offsets, Values values) {
  const std::string name = std::string("relu_lpips") + (options.bias ? ", bias" : "") +
                           (options.weight ? ", weight" : "") + (options.activated ? ", activated" : "");
  set_case(describe(name.c_str(), type, view.str(), offsets.x, values));
  const LpipsCase one(type, view, options, offsets, values);
  Buffer kept(type, one.n, offsets.kept);
  Words mask(one.n / 32);
  const std::vector<uint64_t> once = one.forward(&kept, &mask);
  one.check_kept(kept);
  set_order(Order::kReversed);
  Buffer other_kept(type, one.n, offsets.kept);
  Words other_mask(one.n / 32);
  check(one.forward(&other_kept, &other_mask) == once, "partial sums depend on the order of threads and blocks");
  check_same(other_kept, kept, type, "derivative in the reversed order");
  set_order(Order::kForward);
  check(one.forward(nullptr, nullptr) == once, "partial sums depend on whether a gradient is required");
  one.backward(kept, mask, 0.3);
}

}  // namespace

void test_lpips() {
  constexpr Options kPlain{false, false, false, 1.0};
  constexpr Options kBoth{true, true, false, 256.0};
  // Channels for every size of a group of lanes, and more than the registers of a group hold; pixels that end at a
  // block's border, before it or beyond it; empty feature maps.
  std::vector<View> views = {{2, 5, 32}, {1, 11, 64}, {2, 11, 96}, {1, 2, 2080}};
  if (!uses_fewer_sizes()) {
    const View more[] = {{2, kLpipsPixels + 1, 32},
                         {1, kLpipsPixels, 64},
                         {1, kLpipsPixels - 1, 128},
                         {3, 3, 512},
                         {0, 4, 32},
                         {2, 0, 32}};
    views.insert(views.end(), std::begin(more), std::end(more));
  }
  const View small = views[2];
  for (const DType type : kTypes) {
    for (const View& view : views) {
      run_lpips(type, view, kPlain, {0, 0, 0}, Values::kRandom);
      run_lpips(type, view, kBoth, {0, 0, 0}, Values::kEighths);
    }
    run_lpips(type, small, {false, false, true, 1.0}, {1, 0, 0}, Values::kRandom);
    run_lpips(type, small, {true, false, true, 1.0}, {0, 3, 0}, Values::kEighths);
    run_lpips(type, small, {false, true, false, 1.0}, {0, 0, 1}, Values::kEighths);
    run_lpips(type, small, kPlain, {0, 0, 0}, Values::kSpecial);
    run_lpips(type, small, kBoth, {3, 1, 0}, Values::kSpecial);
  }
}

}  // namespace harness
