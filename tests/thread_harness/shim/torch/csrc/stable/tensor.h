// Replacement of PyTorch's tensors: dense or strided memory on the CPU, shared by the copies of a tensor.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace harness {

struct TensorData {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  torch::headeronly::ScalarType type;
  std::unique_ptr<char[]> memory;
  int64_t bytes;
};

inline int64_t size_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double ? 8 : type == ScalarType::Half || type == ScalarType::BFloat16 ? 2 : 4;
}

}  // namespace harness

using AtenTensorHandle = harness::TensorData*;

namespace torch::stable {

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : data_(handle) {}

  AtenTensorHandle get() const { return data_.get(); }
  bool defined() const { return data_ != nullptr; }
  const std::vector<int64_t>& sizes() const { return data_->sizes; }
  const std::vector<int64_t>& strides() const { return data_->strides; }
  int64_t dim() const { return static_cast<int64_t>(data_->sizes.size()); }
  int64_t storage_offset() const { return 0; }
  size_t element_size() const { return harness::size_of(data_->type); }
  headeronly::ScalarType scalar_type() const { return data_->type; }
  const void* const_data_ptr() const { return data_->memory.get(); }
  void* mutable_data_ptr() const { return data_->memory.get(); }
  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : data_->sizes) product *= size;
    return product;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim() - 1; d >= 0; --d) {
      if (data_->sizes[d] != 1 && data_->strides[d] != expected) return numel() == 0;
      expected *= data_->sizes[d];
    }
    return true;
  }

 private:
  std::shared_ptr<harness::TensorData> data_;
};

}  // namespace torch::stable
