// Lists of tensors as the tests make them.
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

// kEighths: multiples of 1/8 with many ties, on which every kernel is exact; kRandom: any; kSpecial: NaN, Inf, -0,
// tiny, huge.
enum class Values { kEighths, kRandom, kSpecial };
double draw(Random& random, Values values);

// One element, the borders of warps, tiles, blocks and chunks, and two chunks and a bit.
std::vector<int64_t> awkward_sizes();
std::vector<int64_t> some_awkward_sizes();
// The borders of words, warps and blocks in a single map.
std::vector<Shape> of_types(const std::vector<int64_t>& numels, DType first, DType second);
// Empty tensors at the beginning, in the middle and at the end; more tensors than one launch takes; several types in
// turn.
std::vector<Shape> with_empty(DType first, DType second);
std::vector<Shape> more_than_one_launch(DType first, DType second);
std::vector<Shape> mixed_types();

// The order of the tensors in a plan: by types in order of first appearance, without empty ones.
std::vector<size_t> planned_order(const std::vector<Shape>& shapes);

bool is_aligned(const void* data);
std::string describe(const char* kernel, const char* list, const std::vector<Shape>& shapes, int64_t offset,
                     Values values);

// An upstream gradient on the device.
class Scalar {
 public:
  Scalar(double value, bool wide);
  pix2pixhd::cuda::DeviceScalar device() { return {buffer_.data(), wide_}; }
  double get() const { return buffer_.get(type(), 0); }
  const Buffer& buffer() const { return buffer_; }

 private:
  DType type() const { return wide_ ? DType::kFloat64 : DType::kFloat32; }

  bool wide_;
  Buffer buffer_;
};

}  // namespace harness
