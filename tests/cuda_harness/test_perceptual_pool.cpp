// The max-pooling kernels against the formulas in double, and the bits that the forward saves for backward.
#include <cmath>

#include "perceptual_reference.h"

namespace harness {
namespace {

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
        before(biased(x, type, map.shape.channels, with_bias ? &bias : nullptr)),
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

void test_perceptual_pool() {
  // Rows of a few elements, of more elements than a block handles, and rows that end within a warp; feature maps whose
  // pooled map is empty.
  const std::vector<cuda::MapShape> shapes = {{1, 32, 2, 2},  {2, 32, 5, 7},   {1, 64, 4, 6},  {2, 96, 3, 11},
                                              {2, 64, 2, 50}, {1, 160, 7, 17}, {3, 32, 1, 5},  {2, 64, 5, 1},
                                              {2, 32, 1, 1},  {0, 32, 4, 4},   {1, 2080, 3, 2}};
  for (const DType type : kTypes) {
    for (const cuda::MapShape& shape : shapes) {
      run_pool(type, shape, 0, Values::kEighths, false);
      run_pool(type, shape, 0, Values::kSpecial, true);
    }
    run_pool(type, shapes[1], 1, Values::kSpecial, false);
    run_pool(type, shapes[3], 3, Values::kRandom, true);
  }
}

}  // namespace harness
