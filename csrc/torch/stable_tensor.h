// Shapes, dtypes, devices and checks of tensors for all operators, through the stable ABI.
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

// More elements than any memory holds, and few enough that their number of bytes fits into 64 bits. A tensor without
// elements, or with strides of 0, can have sizes beyond it.
constexpr int64_t kMostElements = int64_t{1} << 59;

struct Shape {
  const int64_t* sizes;
  const int64_t* strides;
  int64_t ndim;

  // Checks that the product of the sizes is small enough for the arithmetic on sizes and offsets.
  explicit Shape(const Tensor& tensor);
  Shape(const int64_t* sizes_, const int64_t* strides_, int64_t ndim_)
      : sizes(sizes_), strides(strides_), ndim(ndim_) {}
  // Raises an error if a size is negative, or if the product of the sizes other than 0 is above kMostElements.
  void check_sizes(const char* what) const;
  int64_t numel() const;
  // Whether the elements fill one block of memory without gaps or overlaps, in any order of dimensions.
  bool is_dense() const;
  // Whether the strides are equal in all dimensions longer than 1; the others do not matter. The sizes must be equal.
  bool same_layout(const Shape& other) const;
  bool same_sizes(const Shape& other) const;
  std::string str() const;
};

// Raises an error for None in the place of a tensor.
void check_defined(const Tensor& tensor, const char* argument);

// The dtype of an argument, or of an entry of a list of tensors. The error for other dtypes names the argument. Also
// checks that the tensor's memory exists.
DType dtype_of(const Tensor& tensor, const char* argument);
DType dtype_of(const Tensor& tensor, const char* argument, size_t index);
DType dtype_from_scalar_type(int64_t scalar_type);
int32_t scalar_type_of(DType dtype);
bool is_int32(const Tensor& tensor);
int64_t element_size(DType dtype);
const char* name_of(DType dtype);

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

// A copy of the tensor with the strides of `layout`, which has its sizes.
Tensor copy_into_layout(const Tensor& tensor, const Shape& layout);

// A pair as the kernels read it: two dense tensors of the same layout. Only tensors that cannot be read in place are
// copied.
struct DensePair {
  Tensor input;
  Tensor target;
  int64_t numel;
  DType input_type;
  DType target_type;
};

// Checks that the lists have the same length, and the tensors the same shapes, supported dtypes and one device.
std::vector<DensePair> dense_pairs(const std::vector<Tensor>& input, const std::vector<Tensor>& target,
                                   const std::vector<double>& weight);
// The same for a single list. A tensor that is not dense is made contiguous.
std::vector<Tensor> dense_list(const std::vector<Tensor>& input, const std::vector<double>& constant,
                               const std::vector<double>& weight);

// One output per tensor, with its sizes, strides and dtype: the checked tensors of `out`, or new tensors without `out`.
// Outputs share memory neither with each other nor with `dense`.
std::vector<Tensor> outputs_like(const std::vector<Tensor>& dense, const std::vector<Tensor>* out);

Pointwise pointwise_kind(int64_t kind);

// Offsets of the pairs' packed signs, in 32-bit words.
struct SignOffsets {
  std::vector<int64_t> begin;  // one per pair; kNotPacked for a pair without signs
  int64_t words = 0;           // size of the whole buffer
};
constexpr int64_t kNotPacked = -1;

// Only the pairs in `wanted` (ascending indices) have signs, stored consecutively.
SignOffsets sign_offsets(const std::vector<int64_t>& numels, const std::vector<int64_t>& wanted);

void check_signs(const Tensor& signs, int64_t words, Device device);
// A gradient that multi_l1_backward writes, and the inputs of its computation.
struct L1Gradient {
  Tensor tensor;
  int64_t numel;
  DType type;
  int64_t signs;  // offset of its signs, in 32-bit words
  double factor;  // weight / numel
};

// The gradients of the tensors in `wanted` (ascending indices into the pairs whose signs are packed): the checked
// tensors of `out`, or new tensors without `out`. sizes, strides and dtypes of all these pairs are concatenated;
// strides may be empty if all tensors are contiguous. A gradient keeps dense strides; otherwise it is contiguous, in
// the layout that the forward reads.
std::vector<L1Gradient> l1_gradients(const Tensor& signs, const std::vector<double>& weight,
                                     const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                     const std::vector<int64_t>& ndims, const std::vector<int64_t>& dtypes,
                                     const std::vector<int64_t>& wanted, const std::vector<Tensor>* out);

std::vector<Tensor> tensors_of(const std::vector<L1Gradient>& gradients);

}  // namespace pix2pixhd
