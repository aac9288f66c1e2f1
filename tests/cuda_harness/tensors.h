// Lists of tensors for the tests.
#pragma once

#include <string>
#include <vector>

#include "checks.h"
#include "simulator.h"

namespace harness {

using pix2pixhd::cuda::kBlockChunk;
using pix2pixhd::cuda::kMaxTensors;

struct Shape {
  int64_t numel;
  DType type[2];
};

// kEighths: multiples of 1/8 with many ties, for which every kernel is exact. kRandom: uniform in [-3, 3). kSpecial:
// NaN, Inf, -0, tiny and huge values.
enum class Values { kEighths, kRandom, kSpecial };
double draw(Random& random, Values values);

// One element, sizes around those of warps, tiles, blocks and chunks, and slightly more than two chunks.
std::vector<int64_t> awkward_sizes();
std::vector<int64_t> some_awkward_sizes();
std::vector<Shape> of_types(const std::vector<int64_t>& numels, DType first, DType second);
// Empty tensors at the beginning, in the middle and at the end; more tensors than one launch takes; alternating dtypes.
std::vector<Shape> with_empty(DType first, DType second);
std::vector<Shape> more_than_one_launch(DType first, DType second);
std::vector<Shape> mixed_types();

// The order of the non-empty tensors in a plan: grouped by dtypes, in order of first appearance.
std::vector<size_t> planned_order(const std::vector<Shape>& shapes);

bool is_aligned(const void* data);
std::string describe(const char* kernel, const char* list, const std::vector<Shape>& shapes, int64_t offset,
                     Values values);

// A scalar on the device: an upstream gradient or a loss.
class Scalar {
 public:
  Scalar(double value, bool is_float64);
  pix2pixhd::cuda::DeviceScalar device() { return {buffer_.data(), is_float64_}; }
  double get() const { return buffer_.get(type(), 0); }
  const Buffer& buffer() const { return buffer_; }

 private:
  DType type() const { return is_float64_ ? DType::kFloat64 : DType::kFloat32; }

  bool is_float64_;
  Buffer buffer_;
};

}  // namespace harness
