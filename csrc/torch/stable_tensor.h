// The few things that both op files need of a tensor, over the stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../types.h"

namespace pix2pixhd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Shape {
  const int64_t* sizes;
  const int64_t* strides;
  int64_t ndim;

  explicit Shape(const Tensor& tensor);
  Shape(const int64_t* sizes_, const int64_t* strides_, int64_t ndim_)
      : sizes(sizes_), strides(strides_), ndim(ndim_) {}
  int64_t numel() const;
  // One block of memory, every element once, in any order of dimensions.
  bool is_dense() const;
  // The same element at the same place: strides compared where they matter, in dimensions longer than 1.
  bool same_layout(const Shape& other) const;
  bool same_sizes(const Shape& other) const;
  std::string str() const;
};

DType dtype_of(const Tensor& tensor, const char* argument, size_t index);
DType dtype_from_scalar_type(int64_t scalar_type);
int32_t scalar_type_of(DType dtype);
int64_t element_size(DType dtype);

struct Device {
  int32_t type;
  int32_t index;
  explicit Device(const Tensor& tensor);
};

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t scalar_type,
                     Device device);
inline Tensor empty_1d(int64_t size, int32_t scalar_type, Device device) {
  return empty_strided({size}, {1}, scalar_type, device);
}
inline Tensor empty_scalar(int32_t scalar_type, Device device) { return empty_strided({}, {}, scalar_type, device); }

// A pair as the kernels read it: two dense tensors of one layout. Copies are made only of what cannot be read in place.
struct DensePair {
  Tensor input;
  Tensor target;
  int64_t numel;
  DType input_type;
  DType target_type;
};

// Checks lists of equal length, tensors of equal shape, supported types, one device.
std::vector<DensePair> dense_pairs(const std::vector<Tensor>& input, const std::vector<Tensor>& target,
                                   const std::vector<double>& weight);
// The same for one list; a tensor that is not dense is made contiguous.
std::vector<Tensor> dense_list(const std::vector<Tensor>& input, const std::vector<double>& constant,
                               const std::vector<double>& weight);

// One output per tensor, of its sizes, strides and dtype: those of `out`, which are checked, or new ones without it.
std::vector<Tensor> outputs_like(const std::vector<Tensor>& dense, const std::vector<Tensor>* out);

Pointwise pointwise_kind(int64_t kind);

// Where the packed signs of each pair begin, in 32-bit words.
struct SignOffsets {
  std::vector<int64_t> begin;  // one per pair; kNotPacked for a pair without signs
  int64_t words = 0;           // of the whole buffer
};
constexpr int64_t kNotPacked = -1;

// Only the pairs in `wanted` (ascending indices) have signs, one after another.
SignOffsets sign_offsets(const std::vector<int64_t>& numels, const std::vector<int64_t>& wanted);

void check_signs(const Tensor& signs, int64_t words, Device device);

// A gradient that multi_l1_backward writes, and what it is computed from.
struct L1Gradient {
  Tensor tensor;
  int64_t numel;
  DType type;
  int64_t signs;  // where its signs begin, in 32-bit words
  double factor;  // weight / numel
};

// The gradients of the tensors in `wanted`, ascending indices into the pairs whose signs are packed: the tensors in
// `out`, which are checked, or new ones without it. Sizes, strides and dtypes of all these pairs are given flattened.
// Dense strides are kept, others become contiguous, as the forward reads them.
std::vector<L1Gradient> l1_gradients(const Tensor& signs, const std::vector<double>& weight,
                                     const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                     const std::vector<int64_t>& ndims, const std::vector<int64_t>& dtypes,
                                     const std::vector<int64_t>& wanted, const std::vector<Tensor>* out);

std::vector<Tensor> tensors_of(const std::vector<L1Gradient>& gradients);

}  // namespace pix2pixhd
