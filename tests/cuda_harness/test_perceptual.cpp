// The kernels for bias, ReLU and distance against the formulas in double, and the bits that the forward saves for
// backward.
#include <algorithm>
#include <cmath>

#include "perceptual_reference.h"

namespace harness {
namespace {

using cuda::kMapChunk;
using cuda::map_blocks;

void run_relu(DType type, const View& view, int64_t offset, Values values, bool with_bias) {
  set_case(describe(with_bias ? "bias and relu" : "relu", type, view.str(), offset, values));
  const int64_t n = view.numel();
  const Buffer x = filled(type, n, offset, values, static_cast<uint64_t>(n));
  const Buffer bias = filled(type, view.channels, offset, values, 7);
  const Buffer before = biased(x, type, view.channels, with_bias ? &bias : nullptr);
  const Buffer wanted = relu_of(before, type);
  const Planes bits = relu_bits(before, type);
  const Buffer grad = filled(type, n, offset, values, 11);
  Buffer wanted_grad(type, n);
  for (int64_t i = 0; i < n; ++i) wanted_grad.set(type, i, passes_relu(before.get(type, i)) ? grad.get(type, i) : 0.0);
  for (const Order order : {Order::kForward, Order::kReversed}) {
    set_order(order);
    for (const bool pack : {true, false}) {
      Buffer in_place = copy_of(x, type, offset);
      Words mask(n / 32);
      const cuda::MapView map = view.with(with_bias ? &bias : nullptr, nullptr);
      const int error = cuda::relu(in_place.data(), type, map, pack ? mask.data() : nullptr, nullptr);
      check(error == 0, "relu returns %d", error);
      check_same(in_place, wanted, type, "max(0, x)");
      if (!pack) continue;
      mask.check_are(bits.words, "mask");
      Buffer masked = copy_of(grad, type, offset);
      check(cuda::relu_backward(masked.data(), type, map, mask.data(), nullptr) == 0, "relu_backward");
      check_same(masked, wanted_grad, type, "masked gradient");
    }
  }
  set_order(Order::kForward);
}

struct Options {
  Distance distance;
  bool bias;
  bool weight;
  bool activated;
};

struct DistanceCase {
  DType type;
  View view;
  Options options;
  int64_t n;
  int64_t offset[2];
  Values values;
  Buffer x, y, bias, weight, before, relu_x, relu_y;

  DistanceCase(DType type_, const View& view_, Options options_, int64_t offset_x, int64_t offset_y, Values values_)
      : type(type_),
        view(view_),
        options(options_),
        n(view_.numel()),
        offset{offset_x, offset_y},
        values(values_),
        x(filled(type, n, offset_x, values, static_cast<uint64_t>(n) + 1)),
        y(filled(type, n, offset_y, values, static_cast<uint64_t>(n) + 2, &x)),
        bias(filled(type, view.channels, 0, values, 7)),
        weight(filled(arithmetic(type), view.batch * view.pixels, 0, Values::kEighths, 8)),
        before(biased(x, type, view.channels, own_bias())),
        relu_x(relu_of(before, type)),
        relu_y(options.activated ? copy_of(y, type, 0) : relu_of(biased(y, type, view.channels, own_bias()), type)) {}

  const Buffer* own_bias() const { return options.bias ? &bias : nullptr; }
  const Buffer* own_weight() const { return options.weight ? &weight : nullptr; }
  double weight_at(int64_t i) const { return options.weight ? weight.get(arithmetic(type), i / view.channels) : 1.0; }
  bool squared() const { return options.distance == Distance::kSquared; }
  double difference(int64_t i) const { return rounded(arithmetic(type), relu_x.get(type, i) - relu_y.get(type, i)); }
  double distance(int64_t i) const { return squared() ? difference(i) * difference(i) : std::fabs(difference(i)); }

  Planes signs() const {
    Planes planes(n, 2);
    for (int64_t i = 0; i < n; ++i) {
      planes.set(i, 0, difference(i) > 0);
      planes.set(i, 1, difference(i) < 0);
    }
    return planes;
  }

  void check_partial(const Buffer& partial) const {
    const int64_t per_image = map_blocks(view.elements());
    for (int64_t block = 0; block < view.blocks(); ++block) {
      double sum = 0.0;
      double size = 0.0;
      const int64_t within = block % per_image * kMapChunk;
      const int64_t begin = block / per_image * view.elements();
      for (int64_t i = within; i < std::min(within + kMapChunk, view.elements()); ++i) {
        sum += weight_at(begin + i) * distance(begin + i);
        size += std::fabs(weight_at(begin + i)) * distance(begin + i);
      }
      const double scale = static_cast<double>(view.elements());
      const double relative = type == DType::kFloat64 ? 1e-13 : 1e-6;
      const double tolerance = values == Values::kEighths ? 0.0 : relative * size / scale;
      const double got = partial.get(DType::kFloat64, block);
      check(close(got, sum / scale, tolerance), "partial sum %ld is %.17g, not %.17g", static_cast<long>(block), got,
            sum / scale);
    }
    partial.check_guards("partial sums");
  }

  void check_kept(const Buffer& differences, const Words& sign_words) const {
    if (squared()) {
      Buffer wanted(type, n);
      for (int64_t i = 0; i < n; ++i) wanted.set(type, i, difference(i));
      check_same(differences, wanted, type, "differences");
    } else {
      sign_words.check_are(signs().words, "signs");
    }
  }

  std::vector<uint64_t> forward(Buffer* differences, Words* sign_words, Words* mask) const {
    Buffer a = copy_of(x, type, offset[0]);
    Buffer b = copy_of(y, type, offset[1]);
    Buffer partial(DType::kFloat64, view.blocks());
    void* kept = nullptr;
    if (mask != nullptr) kept = squared() ? differences->data() : sign_words->data();
    const int error = cuda::relu_distance(
        a.data(), b.data(), options.activated, type, view.with(own_bias(), own_weight()), options.distance, kept,
        mask != nullptr ? mask->data() : nullptr, static_cast<double*>(partial.data()), nullptr);
    check(error == 0, "relu_distance returns %d", error);
    check_same(a, relu_x, type, "max(0, input)");
    check_same(b, relu_y, type, "max(0, target)");
    check_partial(partial);
    if (mask != nullptr) {
      mask->check_are(relu_bits(before, type).words, "mask");
      check_kept(*differences, *sign_words);
    }
    return bits_of(partial);
  }

  void backward(Buffer& differences, Words& sign_words, Words& mask, double coefficient, int64_t grad_offset) const {
    const Buffer grad = filled(type, n, grad_offset, values, static_cast<uint64_t>(n) + 3);
    Buffer wanted(type, n);
    const DType compute = arithmetic(type);
    for (int64_t i = 0; i < n; ++i) {
      double factor = rounded(compute, squared() ? 2.0 * coefficient : coefficient);
      if (options.weight) factor = rounded(compute, factor * weight_at(i));
      const double sign = sign_of(difference(i));
      double term = sign * factor;  // of a tie 0, or NaN if the factor is not finite, as in PyTorch
      if (squared()) term = rounded(compute, factor * rounded(type, difference(i)));
      const double g = rounded(type, rounded(compute, grad.get(type, i) + term));
      wanted.set(type, i, passes_relu(before.get(type, i)) ? g : 0.0);
    }
    Buffer in_place = copy_of(grad, type, grad_offset);
    const int error = cuda::relu_distance_backward(
        in_place.data(), type, view.with(nullptr, own_weight()), options.distance, mask.data(),
        squared() ? static_cast<const void*>(differences.data()) : sign_words.data(), coefficient, nullptr);
    check(error == 0, "relu_distance_backward returns %d", error);
    check_same(in_place, wanted, type, "gradient of a distance");
    mask.check_are(relu_bits(before, type).words, "mask");
    check_kept(differences, sign_words);
  }
};

void run_distance(DType type, const View& view, Options options, int64_t offset_x, int64_t offset_y, Values values) {
  const std::string name = std::string(options.distance == Distance::kSquared ? "squared" : "absolute") +
                           (options.bias ? ", bias" : "") + (options.weight ? ", weight" : "") +
                           (options.activated ? ", activated" : "");
  set_case(describe(("relu_distance " + name).c_str(), type, view.str(), offset_x, values));
  const DistanceCase one(type, view, options, offset_x, offset_y, values);
  const int64_t kept = options.distance == Distance::kSquared ? one.n : 0;
  Buffer differences(type, kept);
  Words signs(one.n / 16);
  Words mask(one.n / 32);
  const std::vector<uint64_t> once = one.forward(&differences, &signs, &mask);
  set_order(Order::kReversed);
  Buffer other_differences(type, kept);
  Words other_signs(one.n / 16);
  Words other_mask(one.n / 32);
  check(one.forward(&other_differences, &other_signs, &other_mask) == once,
        "partial sums depend on the order of threads and blocks");
  check(one.forward(nullptr, nullptr, nullptr) == once, "partial sums depend on whether bits are packed");
  one.backward(differences, signs, mask, 0.3, offset_x);
  set_order(Order::kForward);
  one.backward(differences, signs, mask, 0.25, offset_y);
  if (values == Values::kSpecial) one.backward(differences, signs, mask, NAN, offset_x);
}

// The means that the operator returns: finish_sum over the partial sums of relu_distance, one row per image.
void run_means(DType type, const View& view) {
  set_case(describe("means of relu_distance", type, view.str(), 0, Values::kEighths));
  const DistanceCase one(type, view, {Distance::kAbsolute, false, false, false}, 0, 0, Values::kEighths);
  Buffer a = copy_of(one.x, type, 0);
  Buffer b = copy_of(one.y, type, 0);
  Buffer partial(DType::kFloat64, view.blocks());
  auto* sums = static_cast<double*>(partial.data());
  set_postponing(true);  // finish_sum starts first
  check(cuda::relu_distance(a.data(), b.data(), false, type, view.with(nullptr, nullptr), Distance::kAbsolute, nullptr,
                            nullptr, sums, nullptr) == 0,
        "relu_distance");
  Buffer means(DType::kFloat64, view.batch);
  check(cuda::finish_sum(sums, map_blocks(view.elements()), 0.0, {means.data(), true}, nullptr,
                         static_cast<int>(view.batch)) == 0,
        "finish_sum");
  set_postponing(false);
  for (int64_t image = 0; image < view.batch; ++image) {
    double wanted = 0.0;
    for (int64_t i = 0; i < view.elements(); ++i) {
      wanted += one.distance(image * view.elements() + i) / static_cast<double>(view.elements());
    }
    const double got = means.get(DType::kFloat64, image);
    check(close(got, wanted, 1e-12 * wanted), "mean %ld is %.17g, not %.17g", static_cast<long>(image), got, wanted);
  }
  means.check_guards("means");
}

}  // namespace

void test_perceptual() {
  // Images that end at a chunk's border, before it or beyond it; pixels that cross chunks; empty feature maps.
  std::vector<View> views = {{2, 3, 96}, {2, 43, 96}, {1, 128, 32}, {2, 129, 32}};
  const View small = views[0], two_chunks = views[1], one_chunk = views[2];
  if (!uses_fewer_sizes()) {
    const View more[] = {{1, 1, 32},   {3, 1, 160},     {1, 127, 32}, {1, 64, 64},
                         {1, 2, 2080}, {1, 3 * 43, 96}, {0, 4, 32},   {2, 0, 32}};
    views.insert(views.end(), std::begin(more), std::end(more));
  }
  for (const DType type : kTypes) {
    for (const View& view : views) {
      for (const bool option : {false, true}) {
        run_relu(type, view, 0, Values::kEighths, option);
        for (const Distance distance : {Distance::kAbsolute, Distance::kSquared}) {
          run_distance(type, view, {distance, option, option, false}, 0, 0, Values::kEighths);
        }
      }
    }
    for (const View& view : {small, two_chunks}) {
      run_relu(type, view, 1, Values::kSpecial, true);
      for (const Distance distance : {Distance::kAbsolute, Distance::kSquared}) {
        run_distance(type, view, {distance, true, false, false}, 1, 1, Values::kRandom);
        run_distance(type, view, {distance, false, true, false}, 0, 3, Values::kSpecial);
        run_distance(type, view, {distance, false, false, true}, 0, 0, Values::kRandom);
        run_distance(type, view, {distance, false, true, true}, 3, 0, Values::kEighths);
      }
      run_means(type, view);
    }
    run_relu(type, one_chunk, 3, Values::kRandom, false);
    run_distance(type, one_chunk, {Distance::kAbsolute, false, false, false}, 0, 0, Values::kSpecial);
    run_distance(type, {1, 256, 32}, {Distance::kAbsolute, true, true, false}, 0, 0, Values::kRandom);
  }
}

}  // namespace harness
