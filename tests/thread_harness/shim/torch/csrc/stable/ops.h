// Replacement of PyTorch's functions. parallel_for starts a thread per part, which ThreadSanitizer can follow; OpenMP's
// threads it cannot.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace harness {

inline int64_t threads = 4;
inline int64_t overlap = 0;  // elements of the range that two threads share, a deliberate fault

// f(offset of the element in memory of these strides) for all elements, in the order of their indices.
template <typename F>
void for_elements(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, size_t d, int64_t at,
                  const F& f) {
  if (d == sizes.size()) return f(at);
  for (int64_t i = 0; i < sizes[d]; ++i) for_elements(sizes, strides, d + 1, at + i * strides[d], f);
}

inline std::vector<double> values_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  std::vector<double> values;
  const void* data = tensor.const_data_ptr();
  for_elements(tensor.sizes(), tensor.strides(), 0, 0, [&](int64_t i) {
    switch (tensor.scalar_type()) {
      case ScalarType::Double:
        return values.push_back(static_cast<const double*>(data)[i]);
      case ScalarType::Half:
        return values.push_back(static_cast<float>(static_cast<const torch::headeronly::Half*>(data)[i]));
      case ScalarType::BFloat16:
        return values.push_back(static_cast<float>(static_cast<const torch::headeronly::BFloat16*>(data)[i]));
      default:
        return values.push_back(static_cast<const float*>(data)[i]);
    }
  });
  return values;
}

inline void set_values(const torch::stable::Tensor& tensor, const std::vector<double>& values) {
  using torch::headeronly::ScalarType;
  void* data = tensor.mutable_data_ptr();
  size_t next = 0;
  for_elements(tensor.sizes(), tensor.strides(), 0, 0, [&](int64_t i) {
    const double value = values[next++];
    switch (tensor.scalar_type()) {
      case ScalarType::Double:
        static_cast<double*>(data)[i] = value;
        break;
      case ScalarType::Half:
        static_cast<torch::headeronly::Half*>(data)[i] = torch::headeronly::Half(static_cast<float>(value));
        break;
      case ScalarType::BFloat16:
        static_cast<torch::headeronly::BFloat16*>(data)[i] = torch::headeronly::BFloat16(static_cast<float>(value));
        break;
      default:
        static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  });
}

torch::stable::Tensor make(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type,
                           bool channels_last = false);

}  // namespace harness

namespace torch::stable {

inline void copy_(Tensor& target, const Tensor& source) { harness::set_values(target, harness::values_of(source)); }

inline Tensor contiguous(const Tensor& tensor) {
  Tensor copy = harness::make(tensor.sizes(), tensor.scalar_type());
  copy_(copy, tensor);
  return copy;
}

inline Tensor to(const Tensor& tensor, headeronly::ScalarType type) {
  Tensor copy = harness::make(tensor.sizes(), type);
  copy_(copy, tensor);
  return copy;
}

// Splits the range as at::parallel_for does.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin >= end) return;
  const int64_t most = (end - begin + grain - 1) / std::max<int64_t>(grain, 1);
  const int64_t count = std::min(harness::threads, most);
  if (count <= 1) return f(begin, end);
  const int64_t part = (end - begin + count - 1) / count;
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += part) {
    threads.emplace_back([&f, first, last = std::min(first + part + harness::overlap, end)] { f(first, last); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace torch::stable
