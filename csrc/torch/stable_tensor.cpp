#include "stable_tensor.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "tensor_memory.h"

namespace pix2pixhd {
namespace {

std::vector<int64_t> contiguous_strides(const int64_t* sizes, int64_t ndim) {
  std::vector<int64_t> strides(ndim);
  int64_t running = 1;
  for (int64_t d = ndim - 1; d >= 0; --d) {
    strides[d] = running;
    running *= std::max<int64_t>(sizes[d], 1);
  }
  return strides;
}

// The dtype's code, also if the stable ABI has no name for it.
int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

bool is_supported(int32_t code) {
  const auto type = static_cast<ScalarType>(code);
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

void check_same_device(const Tensor& tensor, Device device, const char* argument, size_t index) {
  const Device own(tensor);
  STD_TORCH_CHECK(own.type == device.type && own.index == device.index, "pix2pixhd: ", argument, "[", index,
                  "] is on another device than input[0]; move all tensors to one device");
}

void check_output_count(const std::vector<Tensor>* out, size_t count) {
  STD_TORCH_CHECK(out == nullptr || out->size() == count, "pix2pixhd: out must hold ", count, " tensors, got ",
                  out == nullptr ? 0 : out->size());
}

// out[index], checked to have this layout, or a new tensor without `out`.
Tensor output(const std::vector<Tensor>* out, size_t index, const std::vector<int64_t>& sizes,
              const std::vector<int64_t>& strides, int32_t scalar_type, Device device) {
  if (out == nullptr) return empty_strided(sizes, strides, scalar_type, device);
  const Tensor& tensor = (*out)[index];
  dtype_of(tensor, "out", index);
  const Shape expected(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()));
  const Shape got(tensor);
  const Device own(tensor);
  STD_TORCH_CHECK(got.same_sizes(expected) && (expected.numel() == 0 || got.same_layout(expected)) &&
                      dtype_code(tensor) == scalar_type && own.type == device.type && own.index == device.index,
                  "pix2pixhd: out[", index, "] must have the gradient's shape ", expected.str(),
                  ", strides, dtype and device, got shape ", got.str());
  return tensor;
}

}  // namespace

void check_defined(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(tensor.defined(), "pix2pixhd: ", argument, " must be a tensor, got None");
}

Shape::Shape(const Tensor& tensor) {
  check_defined(tensor, "an argument");
  sizes = tensor.sizes().data();
  strides = tensor.strides().data();
  ndim = tensor.dim();
  check_sizes("a tensor");
}

void Shape::check_sizes(const char* what) const {
  int64_t product = 1;
  for (int64_t d = 0; d < ndim; ++d) {
    STD_TORCH_CHECK(sizes[d] >= 0, "pix2pixhd: ", what, " must have sizes of at least 0, got ", str());
    STD_TORCH_CHECK(
        !__builtin_mul_overflow(product, std::max<int64_t>(sizes[d], 1), &product) && product <= kMostElements,
        "pix2pixhd: ", what, " is too large, got shape ", str(), "; pass a smaller one");
  }
}

int64_t Shape::numel() const {
  return std::accumulate(sizes, sizes + ndim, int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

bool Shape::is_dense() const {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < ndim; ++d) {
    if (sizes[d] == 0) return true;
    if (sizes[d] > 1) dims.emplace_back(strides[d], sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool Shape::same_layout(const Shape& other) const {
  for (int64_t d = 0; d < ndim; ++d) {
    if (sizes[d] > 1 && strides[d] != other.strides[d]) return false;
  }
  return true;
}

bool Shape::same_sizes(const Shape& other) const {
  return ndim == other.ndim && std::equal(sizes, sizes + ndim, other.sizes);
}

std::string Shape::str() const {
  std::string text = "[";
  for (int64_t d = 0; d < ndim; ++d) text += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

DType dtype_from_scalar_type(int64_t scalar_type) {
  for (const DType type : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    if (scalar_type == scalar_type_of(type)) return type;
  }
  STD_TORCH_CHECK(false, "pix2pixhd: expected float32, float64, float16 or bfloat16, got scalar type ", scalar_type);
  return DType::kFloat32;
}

DType dtype_of(const Tensor& tensor, const char* argument) {
  check_defined(tensor, argument);
  const int32_t code = dtype_code(tensor);
  STD_TORCH_CHECK(is_supported(code), "pix2pixhd: ", argument, " must be float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(static_cast<ScalarType>(code)),
                  "; convert it, for example with .float()");
  check_memory(tensor, argument);
  return dtype_from_scalar_type(code);
}

DType dtype_of(const Tensor& tensor, const char* argument, size_t index) {
  if (tensor.defined() && is_supported(dtype_code(tensor)) && has_memory(tensor)) {
    return dtype_from_scalar_type(dtype_code(tensor));
  }
  return dtype_of(tensor, (std::string(argument) + "[" + std::to_string(index) + "]").c_str());  // raises the error
}

bool is_int32(const Tensor& tensor) { return dtype_code(tensor) == static_cast<int32_t>(ScalarType::Int); }

int32_t scalar_type_of(DType dtype) {
  constexpr std::array<ScalarType, 4> types = {ScalarType::Float, ScalarType::Double, ScalarType::Half,
                                               ScalarType::BFloat16};
  return static_cast<int32_t>(types[static_cast<size_t>(dtype)]);
}

int64_t element_size(DType dtype) {
  constexpr std::array<int64_t, 4> sizes = {4, 8, 2, 2};
  return sizes[static_cast<size_t>(dtype)];
}

const char* name_of(DType dtype) {
  constexpr std::array<const char*, 4> names = {"float32", "float64", "float16", "bfloat16"};
  return names[static_cast<size_t>(dtype)];
}

Device::Device(const Tensor& tensor) {
  check_defined(tensor, "an argument");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
}

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t scalar_type,
                     Device device) {
  const Shape shape(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()));
  shape.check_sizes("a result");
  AtenTensorHandle handle;
  STD_TORCH_CHECK(aoti_torch_empty_strided(shape.ndim, sizes.data(), strides.data(), scalar_type, device.type,
                                           device.index, &handle) == TORCH_SUCCESS,
                  "pix2pixhd: there is not enough memory for a tensor of shape ", shape.str(),
                  "; use smaller tensors, or free memory");
  return Tensor(handle);
}

Tensor copy_into_layout(const Tensor& tensor, const Shape& layout) {
  Tensor copy =
      empty_strided({layout.sizes, layout.sizes + layout.ndim}, {layout.strides, layout.strides + layout.ndim},
                    scalar_type_of(dtype_of(tensor, "tensor")), Device(tensor));
  torch::stable::copy_(copy, tensor);
  return copy;
}

std::vector<DensePair> dense_pairs(const std::vector<Tensor>& input, const std::vector<Tensor>& target,
                                   const std::vector<double>& weight) {
  STD_TORCH_CHECK(!input.empty(), "pix2pixhd: input is an empty list; pass at least one tensor");
  STD_TORCH_CHECK(input.size() == target.size() && input.size() == weight.size(),
                  "pix2pixhd: input, target and weight must have the same length, got ", input.size(), ", ",
                  target.size(), " and ", weight.size());
  const Device device(input[0]);
  std::vector<DensePair> pairs;
  pairs.reserve(input.size());
  for (size_t k = 0; k < input.size(); ++k) {
    check_same_device(input[k], device, "input", k);
    check_same_device(target[k], device, "target", k);
    const Shape x(input[k]);
    const Shape y(target[k]);
    STD_TORCH_CHECK(x.same_sizes(y), "pix2pixhd: input[", k, "] and target[", k, "] must have the same shape, got ",
                    x.str(), " and ", y.str());
    DensePair pair{input[k], target[k], x.numel(), dtype_of(input[k], "input", k), dtype_of(target[k], "target", k)};
    if (pair.numel > 0) {
      if (!x.is_dense()) {
        pair.input = torch::stable::contiguous(input[k]);
        pair.target = torch::stable::contiguous(target[k]);
      } else if (!x.same_layout(y)) {
        pair.target = copy_into_layout(target[k], x);
      }
    }
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

std::vector<Tensor> dense_list(const std::vector<Tensor>& input, const std::vector<double>& constant,
                               const std::vector<double>& weight) {
  STD_TORCH_CHECK(!input.empty(), "pix2pixhd: input is an empty list; pass at least one tensor");
  STD_TORCH_CHECK(input.size() == constant.size() && input.size() == weight.size(),
                  "pix2pixhd: input, constant and weight must have the same length, got ", input.size(), ", ",
                  constant.size(), " and ", weight.size());
  const Device device(input[0]);
  std::vector<Tensor> dense;
  dense.reserve(input.size());
  for (size_t k = 0; k < input.size(); ++k) {
    check_same_device(input[k], device, "input", k);
    dtype_of(input[k], "input", k);
    dense.push_back(Shape(input[k]).is_dense() ? input[k] : torch::stable::contiguous(input[k]));
  }
  return dense;
}

std::vector<Tensor> outputs_like(const std::vector<Tensor>& dense, const std::vector<Tensor>* out) {
  check_output_count(out, dense.size());
  std::vector<Tensor> outputs;
  outputs.reserve(dense.size());
  for (size_t k = 0; k < dense.size(); ++k) {
    const Shape shape(dense[k]);
    outputs.push_back(output(out, k, {shape.sizes, shape.sizes + shape.ndim},
                             {shape.strides, shape.strides + shape.ndim}, static_cast<int32_t>(dense[k].scalar_type()),
                             Device(dense[k])));
  }
  if (out != nullptr) check_outputs_apart(outputs, dense);
  return outputs;
}

Pointwise pointwise_kind(int64_t kind) {
  STD_TORCH_CHECK(kind >= 0 && kind < kPointwiseKinds, "pix2pixhd: kind must be one of Pointwise (csrc/types.h), 0 to ",
                  kPointwiseKinds - 1, ", got ", kind);
  return static_cast<Pointwise>(kind);
}

namespace {

void check_wanted(const std::vector<int64_t>& wanted, size_t count) {
  int64_t previous = -1;
  for (const int64_t k : wanted) {
    STD_TORCH_CHECK(k > previous && k < static_cast<int64_t>(count),
                    "pix2pixhd: wanted must hold ascending indices below ", count, ", got ", k, " after ", previous);
    previous = k;
  }
}

}  // namespace

SignOffsets sign_offsets(const std::vector<int64_t>& numels, const std::vector<int64_t>& wanted) {
  check_wanted(wanted, numels.size());
  SignOffsets offsets{std::vector<int64_t>(numels.size(), kNotPacked)};
  for (const int64_t k : wanted) {
    offsets.begin[k] = offsets.words;
    offsets.words += sign_words(numels[k]);
  }
  return offsets;
}

void check_signs(const Tensor& signs, int64_t words, Device device) {
  check_memory(signs, "signs");
  const Device own(signs);
  STD_TORCH_CHECK(is_int32(signs) && signs.is_contiguous() && signs.numel() == words && own.type == device.type &&
                      own.index == device.index,
                  "pix2pixhd: signs must be the contiguous int32 tensor of ", words,
                  " words that the forward of these pairs fills, on their device");
}

std::vector<L1Gradient> l1_gradients(const Tensor& signs, const std::vector<double>& weight,
                                     const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                     const std::vector<int64_t>& ndims, const std::vector<int64_t>& dtypes,
                                     const std::vector<int64_t>& wanted, const std::vector<Tensor>* out) {
  int64_t total = 0;
  for (const int64_t ndim : ndims) {
    const int64_t left = static_cast<int64_t>(sizes.size()) - total;
    STD_TORCH_CHECK(ndim >= 0 && ndim <= left,
                    "pix2pixhd: ndims must hold numbers of at least 0, whose sum is the length of sizes, ",
                    sizes.size(), ", got ", ndim);
    total += ndim;
  }
  STD_TORCH_CHECK(
      ndims.size() == dtypes.size() && ndims.size() == weight.size() && static_cast<int64_t>(sizes.size()) == total &&
          (strides.empty() || sizes.size() == strides.size()),
      "pix2pixhd: sizes and strides must hold ", total, " integers, the sum of ndims (strides may be empty ",
      "for contiguous tensors); ndims, dtypes and weight must hold one element per tensor");
  check_wanted(wanted, ndims.size());
  check_output_count(out, wanted.size());
  const Device device(signs);
  std::vector<L1Gradient> gradients;
  gradients.reserve(wanted.size());
  size_t begin = 0;
  int64_t words = 0;
  for (size_t k = 0; k < ndims.size(); ++k) {
    const bool contiguous = strides.empty();
    const Shape shape(sizes.data() + begin, contiguous ? nullptr : strides.data() + begin, ndims[k]);
    shape.check_sizes("a tensor of sizes");
    const int64_t numel = shape.numel();
    if (gradients.size() < wanted.size() && wanted[gradients.size()] == static_cast<int64_t>(k)) {
      const std::vector<int64_t> size(shape.sizes, shape.sizes + shape.ndim);
      const std::vector<int64_t> stride = !contiguous && shape.is_dense()
                                              ? std::vector<int64_t>(shape.strides, shape.strides + shape.ndim)
                                              : contiguous_strides(shape.sizes, shape.ndim);
      const DType type = dtype_from_scalar_type(dtypes[k]);
      gradients.push_back({output(out, gradients.size(), size, stride, static_cast<int32_t>(dtypes[k]), device), numel,
                           type, words, weight[k] / static_cast<double>(numel)});
    }
    words += sign_words(numel);
    STD_TORCH_CHECK(words <= kMostElements, "pix2pixhd: the tensors of sizes are too large; pass smaller ones");
    begin += ndims[k];
  }
  check_signs(signs, words, device);
  if (out != nullptr) check_outputs_apart(tensors_of(gradients), {signs});
  return gradients;
}

std::vector<Tensor> tensors_of(const std::vector<L1Gradient>& gradients) {
  std::vector<Tensor> tensors;
  tensors.reserve(gradients.size());
  for (const L1Gradient& gradient : gradients) tensors.push_back(gradient.tensor);
  return tensors;
}

}  // namespace pix2pixhd
