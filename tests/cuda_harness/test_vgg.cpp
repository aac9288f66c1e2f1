// The elementwise parts of VGG against the formulas, in double, and the bits that the forward leaves for the backward.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../csrc/cuda/vgg.h"
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

int64_t words_for(int64_t n) { return (n + 31) / 32; }

// Planes of bits as vgg.h describes them.
class Planes {
 public:
  Planes(int64_t n, int64_t planes) : words(static_cast<size_t>(words_for(n) * planes)), planes_(planes) {}
  void set(int64_t i, int64_t plane, bool bit) {
    words[static_cast<size_t>(i / 32 * planes_ + plane)] |= uint32_t{bit} << i % 32;
  }
  std::vector<uint32_t> words;

 private:
  int64_t planes_;
};

DType arithmetic(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }
bool alive(double x) { return !(x <= 0.0); }
double relu_of(double x) { return alive(x) ? x : 0.0; }
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

std::string describe(const char* kernel, DType type, int64_t n, int64_t offset, Values values) {
  return harness::describe(kernel, std::to_string(n).c_str(), {{n, {type, type}}}, offset, values);
}

Buffer relu_of(const Buffer& x, DType type) {
  Buffer wanted(type, x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) wanted.set(type, i, relu_of(x.get(type, i)));
  return wanted;
}

void run_relu(DType type, int64_t n, int64_t offset, Values values) {
  set_case(describe("relu", type, n, offset, values));
  const Buffer x = filled(type, n, offset, values, static_cast<uint64_t>(n));
  const Buffer wanted = relu_of(x, type);
  Planes bits(n, 1);
  for (int64_t i = 0; i < n; ++i) bits.set(i, 0, alive(x.get(type, i)));
  for (const Order order : {Order::kForward, Order::kReversed}) {
    set_order(order);
    for (const bool pack : {true, false}) {
      Buffer in_place = copy_of(x, type, offset);
      Words mask(words_for(n));
      const int error = cuda::relu(in_place.data(), type, n, pack ? mask.data() : nullptr, nullptr);
      check(error == 0, "relu returns %d", error);
      check_same(in_place, wanted, type, "max(0, x)");
      if (pack) mask.check_are(bits.words, "mask");
    }
  }
  set_order(Order::kForward);
}

struct L1Case {
  DType type;
  int64_t n;
  int64_t offset[2];
  Values values;
  Buffer x, y, relu_x, relu_y;
  Planes alive_x, signs;

  L1Case(DType type_, int64_t n_, int64_t offset_x, int64_t offset_y, Values values_)
      : type(type_),
        n(n_),
        offset{offset_x, offset_y},
        values(values_),
        x(filled(type, n, offset_x, values, static_cast<uint64_t>(n) + 1)),
        y(filled(type, n, offset_y, values, static_cast<uint64_t>(n) + 2, &x)),
        relu_x(relu_of(x, type)),
        relu_y(relu_of(y, type)),
        alive_x(n, 1),
        signs(n, 2) {
    for (int64_t i = 0; i < n; ++i) {
      alive_x.set(i, 0, alive(x.get(type, i)));
      signs.set(i, 0, difference(i) > 0);
      signs.set(i, 1, difference(i) < 0);
    }
  }

  double difference(int64_t i) const { return rounded(arithmetic(type), relu_x.get(type, i) - relu_y.get(type, i)); }

  void check_partial(const Buffer& partial) const {
    for (int64_t block = 0; block < map_blocks(n); ++block) {
      double sum = 0.0;
      for (int64_t i = block * kMapChunk; i < std::min((block + 1) * kMapChunk, n); ++i)
        sum += std::fabs(difference(i));
      const double wanted = sum / static_cast<double>(n);
      const double relative = type == DType::kFloat64 ? 1e-13 : 1e-6;
      const double tolerance = values == Values::kEighths ? 0.0 : relative * std::fabs(wanted);
      const double got = partial.get(DType::kFloat64, block);
      check(close(got, wanted, tolerance), "partial sum %ld is %.17g, not %.17g", static_cast<long>(block), got,
            wanted);
    }
    partial.check_guards("partial sums");
  }

  std::vector<unsigned char> forward(Words* sign_words, Words* mask) const {
    Buffer a = copy_of(x, type, offset[0]);
    Buffer b = copy_of(y, type, offset[1]);
    Buffer partial(DType::kFloat64, map_blocks(n));
    const bool pack = mask != nullptr;
    const int error = cuda::relu_l1(a.data(), b.data(), type, n, pack ? sign_words->data() : nullptr,
                                    pack ? mask->data() : nullptr, static_cast<double*>(partial.data()), nullptr);
    check(error == 0, "relu_l1 returns %d", error);
    check_same(a, relu_x, type, "max(0, input)");
    check_same(b, relu_y, type, "max(0, target)");
    check_partial(partial);
    if (pack) {
      mask->check_are(alive_x.words, "mask");
      sign_words->check_are(signs.words, "signs");
    }
    return partial.bytes();
  }

  void backward(Words* sign_words, Words& mask, double coefficient, int64_t grad_offset) const {
    const Buffer grad = filled(type, n, grad_offset, values, static_cast<uint64_t>(n) + 3);
    Buffer wanted(type, n);
    const double term = rounded(arithmetic(type), coefficient);
    for (int64_t i = 0; i < n; ++i) {
      double g = grad.get(type, i);
      if (sign_words != nullptr) {
        const double sign = sign_of(difference(i));
        g = rounded(type, rounded(arithmetic(type), g + (sign == 0.0 ? 0.0 : sign * term)));
      }
      wanted.set(type, i, alive(x.get(type, i)) ? g : 0.0);
    }
    Buffer in_place = copy_of(grad, type, grad_offset);
    const int error =
        cuda::relu_l1_backward(in_place.data(), type, n, mask.data(),
                               sign_words != nullptr ? sign_words->data() : nullptr, coefficient, nullptr);
    check(error == 0, "relu_l1_backward returns %d", error);
    check_same(in_place, wanted, type, sign_words != nullptr ? "gradient with signs" : "gradient without signs");
    mask.check_are(alive_x.words, "mask");
  }
};

void run_relu_l1(DType type, int64_t n, int64_t offset_x, int64_t offset_y, Values values) {
  set_case(describe("relu_l1", type, n, offset_x, values));
  const L1Case one(type, n, offset_x, offset_y, values);
  Words signs(2 * words_for(n));
  Words mask(words_for(n));
  const std::vector<unsigned char> once = one.forward(&signs, &mask);
  set_order(Order::kReversed);
  Words other_signs(2 * words_for(n));
  Words other_mask(words_for(n));
  check(one.forward(&other_signs, &other_mask) == once, "partial sums depend on the order of threads and blocks");
  check(one.forward(nullptr, nullptr) == once, "partial sums depend on whether bits are packed");
  one.backward(&signs, mask, 0.3, offset_x);
  set_order(Order::kForward);
  one.backward(&signs, mask, 0.25, offset_y);
  one.backward(nullptr, mask, 0.25, offset_x);
  if (values == Values::kSpecial) one.backward(&signs, mask, NAN, offset_x);
}

// The mean that the operator returns: what relu_l1 leaves goes into finish_sum.
void run_mean(DType type, int64_t n) {
  set_case(describe("mean of relu_l1", type, n, 0, Values::kEighths));
  const L1Case one(type, n, 0, 0, Values::kEighths);
  Buffer a = copy_of(one.x, type, 0);
  Buffer b = copy_of(one.y, type, 0);
  Buffer partial(DType::kFloat64, map_blocks(n));
  auto* sums = static_cast<double*>(partial.data());
  Scalar loss(0.0, true);
  check(cuda::relu_l1(a.data(), b.data(), type, n, nullptr, nullptr, sums, nullptr) == 0, "relu_l1");
  check(cuda::finish_sum(sums, map_blocks(n), 0.0, loss.device(), nullptr) == 0, "finish_sum");
  double wanted = 0.0;
  for (int64_t i = 0; i < n; ++i) wanted += std::fabs(one.difference(i)) / static_cast<double>(n);
  check(close(loss.get(), wanted, 1e-13 * wanted), "the mean is %.17g, not %.17g", loss.get(), wanted);
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
  Buffer x, wanted, grad, wanted_grad;
  Planes codes;

  PoolCase(DType type_, const Map& map_, int64_t offset_, Values values_)
      : type(type_),
        map(map_),
        pooled(map_.pooled()),
        offset(offset_),
        values(values_),
        x(filled(type, map.numel(), offset, values, static_cast<uint64_t>(map.numel()))),
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
      codes.set(i, 2, alive(best));
      const double g = alive(best) ? grad.get(type, i) : 0.0;
      wanted_grad.set(type, map.index(n, 2 * row + position / 2, 2 * column + position % 2, c), g);
    });
  }

  double at(int64_t n, int64_t row, int64_t column, int64_t c, int64_t k) const {
    return x.get(type, map.index(n, 2 * row + k / 2, 2 * column + k % 2, c));
  }

  void run(int64_t out_offset) {
    Words words(3 * (pooled.numel() / 32));
    for (const bool pack : {false, true}) {
      Buffer out(type, pooled.numel(), out_offset);
      const int error = cuda::relu_pool(x.data(), out.data(), type, map.shape, pack ? words.data() : nullptr, nullptr);
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

void run_pool(DType type, const cuda::MapShape& shape, int64_t offset, Values values) {
  PoolCase one(type, {shape}, offset, values);
  set_case(describe("relu_pool", type, one.map.numel(), offset, values) + " " + one.map.str());
  one.run(offset);
  set_order(Order::kReversed);
  one.run(1);
  set_order(Order::kForward);
}

}  // namespace

void test_vgg() {
  // Rows of a few elements, of more than a block's, and ones that end within a warp; maps that pooling leaves nothing
  // of.
  const std::vector<cuda::MapShape> shapes = {{1, 32, 2, 2},  {2, 32, 5, 7},   {1, 64, 4, 6},  {2, 96, 3, 11},
                                              {2, 64, 2, 50}, {1, 160, 7, 17}, {3, 32, 1, 5},  {2, 64, 5, 1},
                                              {2, 32, 1, 1},  {0, 32, 4, 4},   {1, 2080, 3, 2}};
  for (const DType type : kTypes) {
    for (const int64_t n : map_sizes()) {
      run_relu(type, n, 0, Values::kEighths);
      run_relu_l1(type, n, 0, 0, Values::kEighths);
    }
    for (const int64_t n : {int64_t{5}, int64_t{129}, kMapChunk + 1}) {
      run_relu(type, n, 1, Values::kSpecial);
      run_relu_l1(type, n, 1, 1, Values::kRandom);
      run_relu_l1(type, n, 0, 3, Values::kSpecial);
      run_mean(type, n);
    }
    run_relu(type, kMapChunk, 3, Values::kRandom);
    run_relu_l1(type, kMapChunk, 0, 0, Values::kSpecial);
    run_relu_l1(type, 2 * kMapChunk, 0, 0, Values::kRandom);
    for (const cuda::MapShape& shape : shapes) {
      run_pool(type, shape, 0, Values::kEighths);
      run_pool(type, shape, 0, Values::kSpecial);
    }
    run_pool(type, shapes[1], 1, Values::kSpecial);
    run_pool(type, shapes[3], 3, Values::kRandom);
  }
}

}  // namespace harness
