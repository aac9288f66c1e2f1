// Replacement of PyTorch's C interface.
#pragma once

#include <torch/csrc/stable/tensor.h>

#define TORCH_SUCCESS 0

inline int aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) { return *type = 0; }
inline int aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) { return *index = 0; }
inline int aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* code) {
  *code = static_cast<int32_t>(tensor->type);
  return TORCH_SUCCESS;
}
inline int aoti_torch_get_storage_size(AtenTensorHandle tensor, int64_t* bytes) {
  *bytes = tensor->bytes;
  return TORCH_SUCCESS;
}
inline int aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t type, int32_t,
                                    int32_t, AtenTensorHandle* result) {
  auto* tensor = new harness::TensorData{
      {sizes, sizes + ndim}, {strides, strides + ndim}, static_cast<torch::headeronly::ScalarType>(type), nullptr, 0};
  int64_t elements = 1;
  for (int64_t d = 0; d < ndim; ++d)
    elements = sizes[d] == 0 ? 0 : elements == 0 ? 0 : elements + (sizes[d] - 1) * strides[d];
  tensor->bytes = elements * harness::size_of(tensor->type);
  tensor->memory.reset(new char[tensor->bytes + 64]());
  *result = tensor;
  return TORCH_SUCCESS;
}
