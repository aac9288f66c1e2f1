// The elementwise parts of VGG against the formulas, in double, and the bits that the forward leaves for the backward.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../csrc/cuda/perceptual.h"
#include "tensors.h"

namespace harness {
namespace {

using namespace pix2pixhd;
using cuda::kMapChunk;
using cuda::map_blocks;

// What the kernels must not read before they write it: the words start as garbage, as Buffers do.
class Words {
 public:
  explicit Words(int64_t count) : buffer_(sizeof(uint32_t), count) {}
  uint32_t* data() { return static_cast<uint32_t*>(buffer_.data()); }
  std::vector<uint32_t> get() const {
    std::vector<uint32_t> words(static_cast<size_t>(buffer_.numel()));
    const std::vector<unsigned char> bytes = buffer_.bytes();
    if (!words.empty()) std::memcpy(words.data(), bytes.data(), bytes.size());
    return words;
  }
  void check_are(const std::vector<uint32_t>& wanted, const char* what) const {
    const std::vector<uint32_t> got = get();
    for (size_t w = 0; w < wanted.size(); ++w) {
      check(got[w] == wanted[w], "%s: word %zu of %zu is %08x, not %08x", what, w, wanted.size(), got[w], wanted[w]);
    }
    buffer_.check_guards(what);
  }

 private:
  Buffer buffer_;
};

// Planes of bits as perceptual.h describes them.
class Planes {
 public:
  Planes(int64_t n, int64_t planes) : words(static_cast<size_t>(n / 32 * planes)), planes_(planes) {}
  void set(int64_t i, int64_t plane, bool bit) {
    words[static_cast<size_t>(i / 32 * planes_ + plane)] |= uint32_t{bit} << i % 32;
  }
  std::vector<uint32_t> words;

 private:
  int64_t planes_;
};

DType arithmetic(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }
bool passes_relu(double x) { return !(x <= 0.0); }
double relu_of(double x) { return passes_relu(x) ? x : 0.0; }
double sign_of(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

Buffer filled(DType type, int64_t n, int64_t offset, Values values, uint64_t seed, const Buffer* ties = nullptr) {
  Random random(seed);
  Buffer buffer(type, n, offset);
  for (int64_t i = 0; i < n; ++i) {
    const bool tie = ties != nullptr && random.below(8) == 0;
    buffer.set(type, i, tie ? ties->get(type, i) : draw(random, values));
  }
  return buffer;
}

Buffer copy_of(const Buffer& other, DType type, int64_t offset) {
  Buffer buffer(type, other.numel(), offset);
  for (int64_t i = 0; i < other.numel(); ++i) buffer.set(type, i, other.get(type, i));
  return buffer;
}

void check_same(const Buffer& got, const Buffer& wanted, DType type, const char* what) {
  for (int64_t i = 0; i < wanted.numel(); ++i) {
    const double x = got.get(type, i);
    const double y = wanted.get(type, i);
    check(same(x, y), "%s [%ld of %ld] is %g, not %g", what, static_cast<long>(i), static_cast<long>(wanted.numel()), x,
          y);
  }
  got.check_guards(what);
}

// A map as the elementwise kernels see it.
struct View {
  int64_t batch;
  int64_t pixels;
  int64_t channels;

  int64_t elements() const { return pixels * channels; }
  int64_t numel() const { return batch * elements(); }
  int64_t blocks() const { return batch * map_blocks(elements()); }
  cuda::MapView with(const Buffer* bias, const Buffer* weight) const {
    return {batch, elements(), channels, bias != nullptr ? bias->data() : nullptr,
            weight != nullptr ? weight->data() : nullptr};
  }
  std::string str() const {
    return std::to_string(batch) + "x" + std::to_string(pixels) + "x" + std::to_string(channels);
  }
};

std::string describe(const char* kernel, DType type, const std::string& shape, int64_t offset, Values values) {
  return harness::describe(kernel, shape.c_str(), {{1, {type, type}}}, offset, values);
}

// x + bias, rounded to the map's type.
Buffer biased(const Buffer& x, DType type, const View& view, const Buffer* bias) {
  Buffer sum(type, x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double own = bias != nullptr ? bias->get(type, i % view.channels) : 0.0;
    const double value = x.get(type, i);
    sum.set(type, i, bias != nullptr ? rounded(type, rounded(arithmetic(type), value + own)) : value);
  }
  return sum;
}

Buffer relu_of(const Buffer& x, DType type) {
  Buffer wanted(type, x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) wanted.set(type, i, relu_of(x.get(type, i)));
  return wanted;
}

Planes relu_bits(const Buffer& x, DType type) {
  Planes bits(x.numel(), 1);
  for (int64_t i = 0; i < x.numel(); ++i) bits.set(i, 0, passes_relu(x.get(type, i)));
  return bits;
}

void run_relu(DType type, const View& view, int64_t offset, Values values, bool with_bias) {
  set_case(describe(with_bias ? "bias and relu" : "relu", type, view.str(), offset, values));
  const int64_t n = view.numel();
  const Buffer x = filled(type, n, offset, values, static_cast<uint64_t>(n));
  const Buffer bias = filled(type, view.channels, offset, values, 7);
  const Buffer before = biased(x, type, view, with_bias ? &bias : nullptr);
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

// The sums bit for bit, but for the sign of a NaN, which C++ leaves to the compiler.
std::vector<uint64_t> bits_of(const Buffer& sums) {
  std::vector<uint64_t> bits;
  for (int64_t i = 0; i < sums.numel(); ++i) {
    const double sum = sums.get(DType::kFloat64, i);
    const double one_nan = std::isnan(sum) ? NAN : sum;
    uint64_t word = 0;
    std::memcpy(&word, &one_nan, sizeof(word));
    bits.push_back(word);
  }
  return bits;
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
        before(biased(x, type, view, own_bias())),
        relu_x(relu_of(before, type)),
        relu_y(options.activated ? copy_of(y, type, 0) : relu_of(biased(y, type, view, own_bias()), type)) {}

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
    const DType wide = arithmetic(type);
    for (int64_t i = 0; i < n; ++i) {
      double factor = rounded(wide, squared() ? 2.0 * coefficient : coefficient);
      if (options.weight) factor = rounded(wide, factor * weight_at(i));
      const double sign = sign_of(difference(i));
      double term = sign == 0.0 ? 0.0 : sign * factor;
      if (squared()) term = rounded(wide, factor * rounded(type, difference(i)));
      const double g = rounded(type, rounded(wide, grad.get(type, i) + term));
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

// The means that the operator returns: what relu_distance leaves goes into finish_sum, a row per image.
void run_means(DType type, const View& view) {
  set_case(describe("means of relu_distance", type, view.str(), 0, Values::kEighths));
  const DistanceCase one(type, view, {Distance::kAbsolute, false, false, false}, 0, 0, Values::kEighths);
  Buffer a = copy_of(one.x, type, 0);
  Buffer b = copy_of(one.y, type, 0);
  Buffer partial(DType::kFloat64, view.blocks());
  auto* sums = static_cast<double*>(partial.data());
  check(cuda::relu_distance(a.data(), b.data(), false, type, view.with(nullptr, nullptr), Distance::kAbsolute, nullptr,
                            nullptr, sums, nullptr) == 0,
        "relu_distance");
  Buffer means(DType::kFloat64, view.batch);
  check(cuda::finish_sum(sums, map_blocks(view.elements()), 0.0, {means.data(), true}, nullptr,
                         static_cast<int>(view.batch)) == 0,
        "finish_sum");
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

struct Map {
  cuda::MapShape shape;

  int64_t numel() const { return shape.batch * shape.height * shape.width * shape.channels; }
  Map pooled() const { return {{shape.batch, shape.channels, shape.height / 2, shape.width / 2}}; }
  int64_t index(int64_t n, int64_t row, int64_t column, int64_t c) const {
    return ((n * shape.height + row) * shape.width + column) * shape.channels + c;
  }
  std::string str() const {
    return std::to_string(shape.batch) + "x" + std::to_string(shape.channels) + "x" + std::to_string(shape.height) +
           "x" + std::to_string(shape.width);
  }
  template <typename F>
  void for_each(const F& f) const {
    for (int64_t n = 0; n < shape.batch; ++n) {
      for (int64_t row = 0; row < shape.height; ++row) {
        for (int64_t column = 0; column < shape.width; ++column) {
          for (int64_t c = 0; c < shape.channels; ++c) f(n, row, column, c);
        }
      }
    }
  }
};

struct PoolCase {
  DType type;
  Map map;
  Map pooled;
  int64_t offset;
  Values values;
  bool with_bias;
  Buffer x, bias, before, wanted, grad, wanted_grad;
  Planes codes;

  PoolCase(DType type_, const Map& map_, int64_t offset_, Values values_, bool with_bias_)
      : type(type_),
        map(map_),
        pooled(map_.pooled()),
        offset(offset_),
        values(values_),
        with_bias(with_bias_),
        x(filled(type, map.numel(), offset, values, static_cast<uint64_t>(map.numel()))),
        bias(filled(type, map.shape.channels, offset, values, 6)),
        before(biased(x, type, {1, 1, map.shape.channels}, with_bias ? &bias : nullptr)),
        wanted(type, pooled.numel()),
        grad(filled(type, pooled.numel(), offset, values, 5)),
        wanted_grad(type, map.numel()),
        codes(pooled.numel(), 3) {
    for (int64_t i = 0; i < map.numel(); ++i) wanted_grad.set(type, i, 0.0);
    pooled.for_each([&](int64_t n, int64_t row, int64_t column, int64_t c) {
      int64_t position = 0;
      double best = at(n, row, column, c, 0);
      for (int64_t k = 1; k < 4; ++k) {
        const double value = at(n, row, column, c, k);
        if (std::isnan(value) || value > best) {
          best = value;
          position = k;
        }
      }
      const int64_t i = pooled.index(n, row, column, c);
      wanted.set(type, i, relu_of(best));
      codes.set(i, 0, position % 2 == 1);
      codes.set(i, 1, position >= 2);
      codes.set(i, 2, passes_relu(best));
      const double g = passes_relu(best) ? grad.get(type, i) : 0.0;
      wanted_grad.set(type, map.index(n, 2 * row + position / 2, 2 * column + position % 2, c), g);
    });
  }

  double at(int64_t n, int64_t row, int64_t column, int64_t c, int64_t k) const {
    return before.get(type, map.index(n, 2 * row + k / 2, 2 * column + k % 2, c));
  }

  void run(int64_t out_offset) {
    Words words(3 * (pooled.numel() / 32));
    for (const bool pack : {false, true}) {
      Buffer out(type, pooled.numel(), out_offset);
      const int error = cuda::relu_pool(x.data(), out.data(), type, map.shape, with_bias ? bias.data() : nullptr,
                                        pack ? words.data() : nullptr, nullptr);
      check(error == 0, "relu_pool returns %d", error);
      check_same(out, wanted, type, "pooled");
      x.check_guards("x");
    }
    words.check_are(codes.words, "codes");
    Buffer spread(type, map.numel(), out_offset);
    const int error = cuda::relu_pool_backward(grad.data(), spread.data(), type, map.shape, words.data(), nullptr);
    check(error == 0, "relu_pool_backward returns %d", error);
    check_same(spread, wanted_grad, type, "gradient");
    words.check_are(codes.words, "codes");
    grad.check_guards("incoming gradient");
  }
};

void run_pool(DType type, const cuda::MapShape& shape, int64_t offset, Values values, bool with_bias) {
  PoolCase one(type, {shape}, offset, values, with_bias);
  set_case(describe(with_bias ? "bias and relu_pool" : "relu_pool", type, one.map.str(), offset, values));
  one.run(offset);
  set_order(Order::kReversed);
  one.run(1);
  set_order(Order::kForward);
}

}  // namespace

void test_perceptual() {
  // Rows of a few elements, of more than a block's, and ones that end within a warp; maps that pooling leaves nothing
  // of.
  const std::vector<cuda::MapShape> shapes = {{1, 32, 2, 2},  {2, 32, 5, 7},   {1, 64, 4, 6},  {2, 96, 3, 11},
                                              {2, 64, 2, 50}, {1, 160, 7, 17}, {3, 32, 1, 5},  {2, 64, 5, 1},
                                              {2, 32, 1, 1},  {0, 32, 4, 4},   {1, 2080, 3, 2}};
  // Chunks that end with a image, before one or within one; pixels across the border of two; nothing at all.
  const std::vector<View> views = {{1, 1, 32},  {2, 3, 96},  {3, 1, 160},  {1, 127, 32},    {1, 128, 32}, {2, 129, 32},
                                   {1, 64, 64}, {2, 43, 96}, {1, 2, 2080}, {1, 3 * 43, 96}, {0, 4, 32},   {2, 0, 32}};
  for (const DType type : kTypes) {
    for (const View& view : views) {
      for (const bool option : {false, true}) {
        run_relu(type, view, 0, Values::kEighths, option);
        for (const Distance distance : {Distance::kAbsolute, Distance::kSquared}) {
          run_distance(type, view, {distance, option, option, false}, 0, 0, Values::kEighths);
        }
      }
    }
    for (const View& view : {views[1], views[7]}) {
      run_relu(type, view, 1, Values::kSpecial, true);
      for (const Distance distance : {Distance::kAbsolute, Distance::kSquared}) {
        run_distance(type, view, {distance, true, false, false}, 1, 1, Values::kRandom);
        run_distance(type, view, {distance, false, true, false}, 0, 3, Values::kSpecial);
        run_distance(type, view, {distance, false, false, true}, 0, 0, Values::kRandom);
        run_distance(type, view, {distance, false, true, true}, 3, 0, Values::kEighths);
      }
      run_means(type, view);
    }
    run_relu(type, views[4], 3, Values::kRandom, false);
    run_distance(type, views[4], {Distance::kAbsolute, false, false, false}, 0, 0, Values::kSpecial);
    run_distance(type, {1, 256, 32}, {Distance::kAbsolute, true, true, false}, 0, 0, Values::kRandom);
    for (const cuda::MapShape& shape : shapes) {
      run_pool(type, shape, 0, Values::kEighths, false);
      run_pool(type, shape, 0, Values::kSpecial, true);
    }
    run_pool(type, shapes[1], 1, Values::kSpecial, false);
    run_pool(type, shapes[3], 3, Values::kRandom, true);
  }
}

}  // namespace harness
