// Checks of the memory of tensors: that it exists, and that what an operator writes is not at the same time another
// argument.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "stable_tensor.h"

namespace pix2pixhd {

// Whether the tensor's storage has its elements: a storage may have been freed or shrunk by resize_().
inline bool has_memory(const Tensor& tensor) {
  const Shape shape(tensor);
  if (shape.numel() == 0) return true;
  int64_t end = tensor.storage_offset() + 1;
  for (int64_t d = 0; d < shape.ndim; ++d) end += (shape.sizes[d] - 1) * shape.strides[d];
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  return end * static_cast<int64_t>(tensor.element_size()) <= bytes;
}

inline void check_memory(const Tensor& tensor, const char* argument) {
  if (has_memory(tensor)) return;
  STD_TORCH_CHECK(false, "pix2pixhd: the storage of ", argument, " has fewer elements than its shape ",
                  Shape(tensor).str(), "; it was freed or shrunk by resize_()");
}

// The memory from the first to the last element of a tensor; empty for a tensor without elements.
struct Span {
  const char* begin = nullptr;
  const char* end = nullptr;

  explicit Span(const Tensor& tensor) {
    const Shape shape(tensor);
    if (shape.numel() == 0) return;
    int64_t last = 0;
    for (int64_t d = 0; d < shape.ndim; ++d) last += (shape.sizes[d] - 1) * shape.strides[d];
    begin = static_cast<const char*>(tensor.const_data_ptr());
    end = begin + (last + 1) * static_cast<int64_t>(tensor.element_size());
  }
  bool overlaps(const Span& other) const { return begin < other.end && other.begin < end; }
};

// Checks that tensors which an operator writes share memory neither with each other nor with those that it reads.
inline void check_outputs_apart(const std::vector<Tensor>& outputs, const std::vector<Tensor>& read) {
  std::vector<Span> spans;
  spans.reserve(outputs.size());
  for (const Tensor& tensor : outputs) {
    const Span span(tensor);
    if (span.begin != nullptr) spans.push_back(span);
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  for (size_t k = 1; k < spans.size(); ++k) {
    STD_TORCH_CHECK(!spans[k].overlaps(spans[k - 1]),
                    "pix2pixhd: two tensors of out share memory; each needs memory of its own");
  }
  for (const Tensor& tensor : read) {
    const Span span(tensor);
    // The only candidates: the last output that begins before the end, and no earlier one, because outputs do not
    // overlap.
    auto after = std::upper_bound(spans.begin(), spans.end(), span.end,
                                  [](const char* end, const Span& other) { return end <= other.begin; });
    STD_TORCH_CHECK(span.begin == nullptr || after == spans.begin() || !std::prev(after)->overlaps(span),
                    "pix2pixhd: a tensor of out shares memory with an input; it needs memory of its own");
  }
}

// Checks that a tensor that the operator writes shares no memory with another argument. Between the first and the last
// element of a tensor all memory counts as its own.
inline void check_apart(const Tensor& written, const char* name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(!Span(written).overlaps(Span(other)), "pix2pixhd: ", name, ", which is modified in place, shares ",
                  "memory with ", other_name, "; pass a copy of one, for example with .clone()");
}

// Checks that the signs, which the forward writes, share no memory with the pairs.
inline void check_signs_apart(const Tensor& signs, const std::vector<DensePair>& pairs) {
  for (const DensePair& pair : pairs) {
    check_apart(signs, "signs", pair.input, "input");
    check_apart(signs, "signs", pair.target, "target");
  }
}

}  // namespace pix2pixhd
