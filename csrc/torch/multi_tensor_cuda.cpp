// CUDA side of the multi-tensor operators: allocation, the launch plan, launches on the current stream. The schemas are
// in torch/multi_tensor_cpu.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../cuda/kernels.h"
#include "stable_cuda.h"
#include "stable_tensor.h"
#include "tensor_memory.h"

namespace pix2pixhd {
namespace {

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

cuda::DeviceScalar device_scalar(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), dtype_of(tensor, "grad") == DType::kFloat64};
}

// The upstream gradient on the device, as float32 or float64. The kernels read it there: no copy to the host.
Tensor upstream(const Tensor& grad, Device device) {
  check_defined(grad, "grad");
  STD_TORCH_CHECK(grad.numel() == 1, "pix2pixhd: grad must have one element, got ", grad.numel());
  const Device own(grad);
  STD_TORCH_CHECK(own.type == device.type && own.index == device.index,
                  "pix2pixhd: grad must be on the device of the tensors");
  const DType type = dtype_of(grad, "grad");
  return type == DType::kFloat32 || type == DType::kFloat64 ? grad : torch::stable::to(grad, ScalarType::Float);
}

// sum_k weight_k / numel_k * (sum over tensor k): first the blocks' partial sums, then their sum in a fixed order.
template <typename LaunchOne>
Tensor weighted_means(const cuda::Plan& plan, double initial, bool use_float64, Device device, LaunchOne&& launch_one) {
  const cuda::Stream stream = current_stream(device);
  Tensor partial = empty_1d(plan.partials, scalar_type_of(DType::kFloat64), device);
  Tensor loss = empty_scalar(scalar_type_of(use_float64 ? DType::kFloat64 : DType::kFloat32), device);
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  for (const cuda::Launch& launch : plan.launches) check_launch(launch_one(launch, sums, stream));
  check_launch(cuda::finish_sum(sums, plan.partials, initial, device_scalar(loss), stream));
  return loss;
}

// The mean of an empty tensor is 0/0 = NaN, as in PyTorch, for every weight.
double mean_of_empty(const std::vector<int64_t>& numels) {
  for (const int64_t numel : numels) {
    if (numel == 0) return std::numeric_limits<double>::quiet_NaN();
  }
  return 0.0;
}

// signs_out: the tensor for the signs; null to allocate one.
std::tuple<Tensor, Tensor> l1_forward(const std::vector<Tensor>& input, const std::vector<Tensor>& target,
                                      const std::vector<double>& weight, const std::vector<int64_t>& wanted,
                                      const Tensor* signs_out) {
  const std::vector<DensePair> pairs = dense_pairs(input, target, weight);
  const Device device(input[0]);
  const DeviceGuard guard(device.index);
  std::vector<int64_t> numels;
  bool use_float64 = false;
  for (const DensePair& pair : pairs) {
    numels.push_back(pair.numel);
    use_float64 = use_float64 || pair.input_type == DType::kFloat64 || pair.target_type == DType::kFloat64;
  }
  const SignOffsets offsets = sign_offsets(numels, wanted);
  if (signs_out != nullptr) {
    check_signs(*signs_out, offsets.words, device);
    check_signs_apart(*signs_out, pairs);
  }
  Tensor signs =
      signs_out != nullptr ? *signs_out : empty_1d(offsets.words, static_cast<int32_t>(ScalarType::Int), device);
  auto* packed = static_cast<uint32_t*>(signs.mutable_data_ptr());
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < pairs.size(); ++k) {
    void* x = const_cast<void*>(pairs[k].input.const_data_ptr());
    void* y = const_cast<void*>(pairs[k].target.const_data_ptr());
    uint32_t* words = offsets.begin[k] == kNotPacked ? nullptr : packed + offsets.begin[k];
    entries.push_back(
        {{{x, y}, words, numels[k], weight[k] / static_cast<double>(numels[k]), 0.0, is_aligned(x) && is_aligned(y)},
         {pairs[k].input_type, pairs[k].target_type}});
  }
  Tensor loss = weighted_means(cuda::make_plan(entries), mean_of_empty(numels), use_float64, device, cuda::l1_forward);
  return {loss, signs};
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
  const Device device(signs);
  const DeviceGuard guard(device.index);
  auto* packed = const_cast<uint32_t*>(static_cast<const uint32_t*>(signs.const_data_ptr()));
  STD_TORCH_CHECK(is_aligned(packed),
                  "pix2pixhd: signs must be the tensor that the forward returned, not a view of it");
  std::vector<cuda::PlanEntry> entries;
  for (const L1Gradient& gradient : gradients) {
    void* data = gradient.tensor.mutable_data_ptr();
    entries.push_back(
        {{{data, nullptr}, packed + gradient.signs, gradient.numel, gradient.factor, 0.0, is_aligned(data)},
         {gradient.type, gradient.type}});
  }
  const Tensor scale = upstream(grad, device);
  const cuda::Stream stream = current_stream(device);
  for (const cuda::Launch& launch : cuda::make_plan(entries).launches) {
    check_launch(cuda::l1_backward(launch, device_scalar(scale), stream));
  }
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

std::vector<cuda::PlanEntry> pointwise_entries(const std::vector<Tensor>& dense, const std::vector<Tensor>* gradients,
                                               const std::vector<double>& constant, const std::vector<double>& weight) {
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < dense.size(); ++k) {
    void* x = const_cast<void*>(dense[k].const_data_ptr());
    void* g = gradients != nullptr ? (*gradients)[k].mutable_data_ptr() : nullptr;
    const int64_t numel = dense[k].numel();
    const DType type = dtype_of(dense[k], "input", k);
    entries.push_back(
        {{{x, g}, nullptr, numel, weight[k] / static_cast<double>(numel), constant[k], is_aligned(x) && is_aligned(g)},
         {type, type}});
  }
  return entries;
}

Tensor multi_pointwise(std::vector<Tensor> input, std::vector<double> constant, std::vector<double> weight,
                       int64_t kind) {
  const Pointwise loss_kind = pointwise_kind(kind);
  const std::vector<Tensor> dense = dense_list(input, constant, weight);
  const Device device(input[0]);
  const DeviceGuard guard(device.index);
  std::vector<int64_t> numels;
  bool use_float64 = false;
  for (const Tensor& tensor : dense) {
    numels.push_back(tensor.numel());
    use_float64 = use_float64 || tensor.scalar_type() == ScalarType::Double;
  }
  return weighted_means(cuda::make_plan(pointwise_entries(dense, nullptr, constant, weight)), mean_of_empty(numels),
                        use_float64, device,
                        [loss_kind](const cuda::Launch& launch, double* partial, cuda::Stream stream) {
                          return cuda::pointwise_forward(launch, loss_kind, partial, stream);
                        });
}

std::vector<Tensor> pointwise_backward(const Tensor& grad, const std::vector<Tensor>& input,
                                       const std::vector<double>& constant, const std::vector<double>& weight,
                                       int64_t kind, const std::vector<Tensor>* out) {
  const Pointwise loss_kind = pointwise_kind(kind);
  const std::vector<Tensor> dense = dense_list(input, constant, weight);
  const Device device(input[0]);
  const DeviceGuard guard(device.index);
  std::vector<Tensor> gradients = outputs_like(dense, out);
  const Tensor scale = upstream(grad, device);
  const cuda::Stream stream = current_stream(device);
  for (const cuda::Launch& launch : cuda::make_plan(pointwise_entries(dense, &gradients, constant, weight)).launches) {
    check_launch(cuda::pointwise_backward(launch, loss_kind, device_scalar(scale), stream));
  }
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

}  // namespace
}  // namespace pix2pixhd

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd, CUDA, m) {
  m.impl("multi_l1", TORCH_BOX(&pix2pixhd::multi_l1));
  m.impl("multi_l1_out", TORCH_BOX(&pix2pixhd::multi_l1_out));
  m.impl("multi_l1_backward", TORCH_BOX(&pix2pixhd::multi_l1_backward));
  m.impl("multi_l1_backward_out", TORCH_BOX(&pix2pixhd::multi_l1_backward_out));
  m.impl("multi_pointwise", TORCH_BOX(&pix2pixhd::multi_pointwise));
  m.impl("multi_pointwise_backward", TORCH_BOX(&pix2pixhd::multi_pointwise_backward));
  m.impl("multi_pointwise_backward_out", TORCH_BOX(&pix2pixhd::multi_pointwise_backward_out));
}
