#include "tensors.h"

#include <cmath>
#include <iterator>
#include <limits>

namespace harness {
namespace {

bool fewer_sizes = false;

}  // namespace

double draw(Random& random, Values values) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kSpecial[] = {0.0, -0.0, NAN, kInfinity, -kInfinity, 6e-8, -1e-40, 3e4, -1.0, 1.0, 0.3, 1e30};
  switch (values) {
    case Values::kEighths:
      return static_cast<double>(random.below(65) - 32) / 8.0;
    case Values::kRandom:
      return 6.0 * random.uniform() - 3.0;
    default:
      return kSpecial[random.below(std::size(kSpecial))];
  }
}

void use_fewer_sizes() { fewer_sizes = true; }

bool uses_fewer_sizes() { return fewer_sizes; }

std::vector<int64_t> awkward_sizes() {
  if (fewer_sizes) return {1, 33, 127, 257, 1025, kBlockChunk + 1};
  return {1,
          2,
          3,
          7,
          8,
          9,
          31,
          32,
          33,
          127,
          128,
          129,
          255,
          256,
          257,
          511,
          513,
          767,
          1023,
          1024,
          1025,
          4095,
          4097,
          8191,
          kBlockChunk - 1,
          kBlockChunk,
          kBlockChunk + 1,
          2 * kBlockChunk + 5};
}

std::vector<int64_t> some_awkward_sizes() {
  if (fewer_sizes) return {5, 129, 1025};
  return {1, 33, 127, 257, 1025, 4097, kBlockChunk + 1};
}

std::vector<Shape> of_types(const std::vector<int64_t>& numels, DType first, DType second) {
  std::vector<Shape> shapes;
  for (const int64_t numel : numels) shapes.push_back({numel, {first, second}});
  return shapes;
}

std::vector<Shape> with_empty(DType first, DType second) {
  return of_types({0, 0, 5, 0, 300, 0, 0, 77, 0}, first, second);
}

std::vector<Shape> more_than_one_launch(DType first, DType second) {
  std::vector<int64_t> numels;
  for (int64_t k = 0; k < 2 * kMaxTensors + 3; ++k) numels.push_back(k % 10 == 4 ? 0 : 1 + 7 * k % 290);
  numels[kMaxTensors] = kBlockChunk + 1;
  return of_types(numels, first, second);
}

std::vector<Shape> mixed_types() {
  std::vector<Shape> shapes;
  for (int64_t k = 0; k < 48; ++k) shapes.push_back({k == 7 ? 0 : 130 + 61 * k, {kTypes[k % 4], kTypes[k / 4 % 4]}});
  return shapes;
}

std::vector<size_t> planned_order(const std::vector<Shape>& shapes) {
  const auto code = [](const Shape& shape) {
    return static_cast<int>(shape.type[0]) * 4 + static_cast<int>(shape.type[1]);
  };
  std::vector<int> groups;
  std::vector<size_t> order;
  for (const Shape& shape : shapes) {
    bool known = false;
    for (const int group : groups) known = known || group == code(shape);
    if (known) continue;
    groups.push_back(code(shape));
    for (size_t k = 0; k < shapes.size(); ++k) {
      if (code(shapes[k]) == groups.back() && shapes[k].numel > 0) order.push_back(k);
    }
  }
  return order;
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

std::string describe(const char* kernel, const char* list, const std::vector<Shape>& shapes, int64_t offset,
                     Values values) {
  constexpr const char* kNames[] = {"eighths", "random", "special"};
  return std::string(kernel) + " " + list + " " + name(shapes[0].type[0]) + "/" + name(shapes[0].type[1]) + " offset " +
         std::to_string(offset) + " " + kNames[static_cast<int>(values)];
}

Scalar::Scalar(double value, bool is_float64) : is_float64_(is_float64), buffer_(type(), 1) {
  buffer_.set(type(), 0, value);
}

}  // namespace harness
