// Schemas and CPU side of the multi-tensor operators: allocation, the split into chunks, sums in a fixed order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "stable_tensor.h"
#include "tensor_memory.h"

namespace pix2pixhd {
namespace {

// A chunk of one tensor. The chunks of all tensors form one list, which is processed in parallel.
struct Chunk {
  int32_t tensor;
  int64_t begin;
  int64_t size;
};

std::vector<Chunk> split(const std::vector<int64_t>& numels) {
  std::vector<Chunk> chunks;
  for (size_t k = 0; k < numels.size(); ++k) {
    for (int64_t begin = 0; begin < numels[k]; begin += cpu::kChunk) {
      chunks.push_back({static_cast<int32_t>(k), begin, std::min(cpu::kChunk, numels[k] - begin)});
    }
  }
  return chunks;
}

// Up to this size one thread is faster than waking a second one. Discriminator predictions, for example, are smaller.
constexpr int64_t kSerialElements = int64_t{1} << 17;

// Gradients larger than this are evicted from every cache before they are read, so they are written with streaming
// stores.
constexpr int64_t kCacheBytes = int64_t{16} << 20;

template <typename F>
void for_each_chunk(const std::vector<Chunk>& chunks, const F& f) {
  const auto count = static_cast<int64_t>(chunks.size());
  int64_t elements = 0;
  for (const Chunk& chunk : chunks) elements += chunk.size;
  if (elements <= kSerialElements) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// sum_k weight_k * (sum of tensor k's chunks, in order) / numel_k. An empty tensor's mean is 0/0 = NaN, as in PyTorch.
double weighted_means(const std::vector<Chunk>& chunks, const std::vector<double>& partial,
                      const std::vector<int64_t>& numels, const std::vector<double>& weight) {
  std::vector<double> sums(numels.size(), 0.0);
  for (size_t i = 0; i < chunks.size(); ++i) sums[chunks[i].tensor] += partial[i];
  double total = 0.0;
  for (size_t k = 0; k < numels.size(); ++k) total += weight[k] * (sums[k] / static_cast<double>(numels[k]));
  return total;
}

// The loss is float64 if any tensor is float64, otherwise float32.
Tensor scalar_loss(double value, bool use_float64, Device device) {
  Tensor loss = empty_scalar(scalar_type_of(use_float64 ? DType::kFloat64 : DType::kFloat32), device);
  if (use_float64) {
    *static_cast<double*>(loss.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(value);
  }
  return loss;
}

double upstream(const Tensor& grad) {
  check_defined(grad, "grad");
  STD_TORCH_CHECK(grad.numel() == 1, "pix2pixhd: grad must have one element, got ", grad.numel());
  return dtype_of(grad, "grad") == DType::kFloat64 ? *static_cast<const double*>(grad.const_data_ptr())
                                                   : static_cast<double>(*static_cast<const float*>(
                                                         torch::stable::to(grad, ScalarType::Float).const_data_ptr()));
}

// wanted: indices of the pairs whose signs are packed, those in which a tensor requires a gradient.
// signs_out: the tensor for the signs; null to allocate one.
std::tuple<Tensor, Tensor> l1_forward(const std::vector<Tensor>& input, const std::vector<Tensor>& target,
                                      const std::vector<double>& weight, const std::vector<int64_t>& wanted,
                                      const Tensor* signs_out) {
  const std::vector<DensePair> pairs = dense_pairs(input, target, weight);
  const Device device(input[0]);
  std::vector<int64_t> numels;
  std::vector<const char*> inputs;
  std::vector<const char*> targets;
  bool use_float64 = false;
  for (const DensePair& pair : pairs) {
    numels.push_back(pair.numel);
    inputs.push_back(static_cast<const char*>(pair.input.const_data_ptr()));
    targets.push_back(static_cast<const char*>(pair.target.const_data_ptr()));
    use_float64 = use_float64 || pair.input_type == DType::kFloat64 || pair.target_type == DType::kFloat64;
  }
  const SignOffsets offsets = sign_offsets(numels, wanted);
  if (signs_out != nullptr) {
    check_signs(*signs_out, offsets.words, device);
    check_signs_apart(*signs_out, pairs);
  }
  Tensor signs =
      signs_out != nullptr ? *signs_out : empty_1d(offsets.words, static_cast<int32_t>(ScalarType::Int), device);
  auto* words = static_cast<uint32_t*>(signs.mutable_data_ptr());

  const std::vector<Chunk> chunks = split(numels);
  std::vector<double> partial(chunks.size());
  const cpu::Kernels& kernels = cpu::kernels();
  for_each_chunk(chunks, [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const DensePair& pair = pairs[chunk.tensor];
    const int64_t first_word = offsets.begin[chunk.tensor];
    uint32_t* own_signs = first_word == kNotPacked ? nullptr : words + first_word + chunk.begin / 16;
    partial[i] = kernels.l1_forward(inputs[chunk.tensor] + chunk.begin * element_size(pair.input_type), pair.input_type,
                                    targets[chunk.tensor] + chunk.begin * element_size(pair.target_type),
                                    pair.target_type, chunk.size, own_signs);
    if (own_signs != nullptr && chunk.begin + chunk.size == pair.numel) {  // padding of the last tile
      std::fill(own_signs + (chunk.size + 31) / 32 * 2, words + first_word + sign_words(pair.numel), 0u);
    }
  });
  return {scalar_loss(weighted_means(chunks, partial, numels, weight), use_float64, device), signs};
}

std::tuple<Tensor, Tensor> multi_l1(std::vector<Tensor> input, std::vector<Tensor> target, std::vector<double> weight,
                                    std::vector<int64_t> wanted) {
  return l1_forward(input, target, weight, wanted, nullptr);
}

Tensor multi_l1_out(std::vector<Tensor> input, std::vector<Tensor> target, std::vector<double> weight,
                    std::vector<int64_t> wanted, Tensor signs) {
  return std::get<0>(l1_forward(input, target, weight, wanted, &signs));
}

void write_l1_gradients(const Tensor& grad, const Tensor& signs, const std::vector<L1Gradient>& gradients) {
  std::vector<int64_t> numels;
  std::vector<char*> data;
  int64_t bytes = 0;
  for (const L1Gradient& gradient : gradients) {
    numels.push_back(gradient.numel);
    data.push_back(static_cast<char*>(gradient.tensor.mutable_data_ptr()));
    bytes += gradient.numel * element_size(gradient.type);
  }
  const auto* words = static_cast<const uint32_t*>(signs.const_data_ptr());
  const double scale = upstream(grad);
  const bool stream = bytes > kCacheBytes;

  const std::vector<Chunk> chunks = split(numels);
  const cpu::Kernels& kernels = cpu::kernels();
  for_each_chunk(chunks, [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const L1Gradient& gradient = gradients[chunk.tensor];
    kernels.l1_backward(data[chunk.tensor] + chunk.begin * element_size(gradient.type), gradient.type, chunk.size,
                        words + gradient.signs + chunk.begin / 16, scale * gradient.factor, stream);
  });
}

std::vector<Tensor> multi_l1_backward(Tensor grad, Tensor signs, std::vector<double> weight, std::vector<int64_t> sizes,
                                      std::vector<int64_t> strides, std::vector<int64_t> ndims,
                                      std::vector<int64_t> dtypes, std::vector<int64_t> wanted) {
  const std::vector<L1Gradient> gradients = l1_gradients(signs, weight, sizes, strides, ndims, dtypes, wanted, nullptr);
  write_l1_gradients(grad, signs, gradients);
  return tensors_of(gradients);
}

void multi_l1_backward_out(Tensor grad, Tensor signs, std::vector<double> weight, std::vector<int64_t> sizes,
                           std::vector<int64_t> strides, std::vector<int64_t> ndims, std::vector<int64_t> dtypes,
                           std::vector<int64_t> wanted, std::vector<Tensor> out) {
  write_l1_gradients(grad, signs, l1_gradients(signs, weight, sizes, strides, ndims, dtypes, wanted, &out));
}

Tensor multi_pointwise(std::vector<Tensor> input, std::vector<double> constant, std::vector<double> weight,
                       int64_t kind) {
  const Pointwise loss_kind = pointwise_kind(kind);
  const std::vector<Tensor> dense = dense_list(input, constant, weight);
  std::vector<int64_t> numels;
  std::vector<DType> types;
  bool use_float64 = false;
  for (const Tensor& tensor : dense) {
    numels.push_back(tensor.numel());
    types.push_back(dtype_of(tensor, "input", numels.size() - 1));
    use_float64 = use_float64 || types.back() == DType::kFloat64;
  }
  const std::vector<Chunk> chunks = split(numels);
  std::vector<double> partial(chunks.size());
  const cpu::Kernels& kernels = cpu::kernels();
  for_each_chunk(chunks, [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const int32_t k = chunk.tensor;
    const auto* data = static_cast<const char*>(dense[k].const_data_ptr()) + chunk.begin * element_size(types[k]);
    partial[i] = kernels.pointwise_forward(data, types[k], chunk.size, loss_kind, constant[k]);
  });
  return scalar_loss(weighted_means(chunks, partial, numels, weight), use_float64, Device(input[0]));
}

std::vector<Tensor> pointwise_backward(const Tensor& grad, const std::vector<Tensor>& input,
                                       const std::vector<double>& constant, const std::vector<double>& weight,
                                       int64_t kind, const std::vector<Tensor>* out) {
  const Pointwise loss_kind = pointwise_kind(kind);
  const std::vector<Tensor> dense = dense_list(input, constant, weight);
  std::vector<Tensor> gradients = outputs_like(dense, out);
  std::vector<int64_t> numels;
  std::vector<DType> types;
  for (const Tensor& tensor : dense) {
    numels.push_back(tensor.numel());
    types.push_back(dtype_of(tensor, "input", numels.size() - 1));
  }
  const double scale = upstream(grad);
  const std::vector<Chunk> chunks = split(numels);
  const cpu::Kernels& kernels = cpu::kernels();
  for_each_chunk(chunks, [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const int32_t k = chunk.tensor;
    const int64_t offset = chunk.begin * element_size(types[k]);
    kernels.pointwise_backward(static_cast<char*>(gradients[k].mutable_data_ptr()) + offset,
                               static_cast<const char*>(dense[k].const_data_ptr()) + offset, types[k], chunk.size,
                               loss_kind, constant[k], scale * weight[k] / static_cast<double>(numels[k]));
  });
  return gradients;
}

std::vector<Tensor> multi_pointwise_backward(Tensor grad, std::vector<Tensor> input, std::vector<double> constant,
                                             std::vector<double> weight, int64_t kind) {
  return pointwise_backward(grad, input, constant, weight, kind, nullptr);
}

void multi_pointwise_backward_out(Tensor grad, std::vector<Tensor> input, std::vector<double> constant,
                                  std::vector<double> weight, int64_t kind, std::vector<Tensor> out) {
  pointwise_backward(grad, input, constant, weight, kind, &out);
}

std::string cpu_instruction_sets() {
  return std::string(cpu::supported_instruction_sets()) + ";" + cpu::kernels().name;
}

void select_cpu_instruction_set(std::string name) {
  STD_TORCH_CHECK(cpu::select_kernels(name.c_str()),
                  "pix2pixhd: the instruction set must be one that this processor supports: ",
                  cpu::supported_instruction_sets(), " (or auto), got '", name, "'");
}

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY(pix2pixhd, m) {
  m.def("multi_l1(Tensor[] input, Tensor[] target, float[] weight, int[] wanted) -> (Tensor, Tensor)");
  m.def(
      "multi_l1_backward(Tensor grad, Tensor signs, float[] weight, SymInt[] sizes, SymInt[] strides, int[] ndims, "
      "int[] dtypes, int[] wanted) -> Tensor[]");
  // The `_out` operators write into tensors allocated in Python; pix2pixhd/ops/recycling.py explains why.
  m.def("multi_l1_out(Tensor[] input, Tensor[] target, float[] weight, int[] wanted, Tensor(a!) signs) -> Tensor");
  m.def(
      "multi_l1_backward_out(Tensor grad, Tensor signs, float[] weight, SymInt[] sizes, SymInt[] strides, int[] ndims, "
      "int[] dtypes, int[] wanted, Tensor(a!)[] out) -> ()");
  m.def(
      "multi_pointwise_backward_out(Tensor grad, Tensor[] input, float[] constant, float[] weight, int kind, "
      "Tensor(a!)[] out) -> ()");
  m.def("multi_pointwise(Tensor[] input, float[] constant, float[] weight, int kind) -> Tensor");
  m.def(
      "multi_pointwise_backward(Tensor grad, Tensor[] input, float[] constant, float[] weight, int kind) -> Tensor[]");
  m.def("cpu_instruction_sets() -> str");
  m.def("select_cpu_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CPU, m) {
  m.impl("multi_l1", TORCH_BOX(&pix2pixhd::multi_l1));
  m.impl("multi_l1_out", TORCH_BOX(&pix2pixhd::multi_l1_out));
  m.impl("multi_l1_backward", TORCH_BOX(&pix2pixhd::multi_l1_backward));
  m.impl("multi_l1_backward_out", TORCH_BOX(&pix2pixhd::multi_l1_backward_out));
  m.impl("multi_pointwise", TORCH_BOX(&pix2pixhd::multi_pointwise));
  m.impl("multi_pointwise_backward", TORCH_BOX(&pix2pixhd::multi_pointwise_backward));
  m.impl("multi_pointwise_backward_out", TORCH_BOX(&pix2pixhd::multi_pointwise_backward_out));
}

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&pix2pixhd::cpu_instruction_sets));
  m.impl("select_cpu_instruction_set", TORCH_BOX(&pix2pixhd::select_cpu_instruction_set));
}
