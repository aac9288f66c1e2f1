// Runs every CPU operator with one thread and with several, and several operators at once. The results must have the
// same bits; ThreadSanitizer reports races. The sources of csrc/cpu and csrc/torch are compiled against the headers in
// shim/, whose loop starts a thread per part. The arguments are names of tests, or nothing for all of them; after
// "overlap", neighbouring threads share an element of the loop.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include "../../csrc/cpu/kernels.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Floats = std::vector<double>;
using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

namespace harness {

torch::stable::Tensor make(const Ints& sizes, ScalarType type, bool channels_last) {
  Ints strides(sizes.size());
  int64_t running = 1;
  const auto set = [&](size_t d) {
    strides[d] = running;
    running *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_last) {
    for (const size_t d : {1, 3, 2, 0}) set(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) set(d);
  }
  AtenTensorHandle handle;
  aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(type),
                           0, 0, &handle);
  return Tensor(handle);
}

}  // namespace harness

namespace {

template <typename F>
F* find(const char* name) {
  const auto found = harness::operators().find(name);
  STD_TORCH_CHECK(found != harness::operators().end(), "no operator ", name);
  return reinterpret_cast<F*>(found->second);
}

Tensor random(const Ints& sizes, ScalarType type, bool channels_last = false, uint32_t seed = 1) {
  Tensor tensor = harness::make(sizes, type, channels_last);
  std::vector<double> values(tensor.numel());
  for (double& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<int32_t>(seed) / 1073741824.0;
  }
  harness::set_values(tensor, values);
  return tensor;
}

Tensor one() { return random({}, ScalarType::Float); }

// Returns results whose bits are compared.
using Test = Tensors (*)(ScalarType);

Tensors multi_tensor(ScalarType type) {
  Tensors results, inputs, targets, out;
  Ints sizes, ndims, dtypes;
  const Ints wanted = {0, 1};
  for (const Ints& size : {Ints{3, 30001}, Ints{49999}}) {  // more than are processed by one thread
    inputs.push_back(random(size, type));
    targets.push_back(random(size, type, false, 2));
    out.push_back(harness::make(size, type));
    sizes.insert(sizes.end(), size.begin(), size.end());
    ndims.push_back(static_cast<int64_t>(size.size()));
    dtypes.push_back(static_cast<int64_t>(type));
  }
  const Floats weight = {0.5, 2.0};
  const Floats constant = {1.0, 0.0};
  auto [loss, signs] =
      find<std::tuple<Tensor, Tensor>(Tensors, Tensors, Floats, Ints)>("multi_l1")(inputs, targets, weight, wanted);
  find<void(Tensor, Tensor, Floats, Ints, Ints, Ints, Ints, Ints, Tensors)>("multi_l1_backward_out")(
      one(), signs, weight, sizes, {}, ndims, dtypes, wanted, out);
  results = {loss, signs, out[0], out[1]};
  for (int64_t kind = 0; kind < pix2pixhd::kPointwiseKinds; ++kind) {
    results.push_back(
        find<Tensor(Tensors, Floats, Floats, int64_t)>("multi_pointwise")(inputs, constant, weight, kind));
    for (const Tensor& gradient : find<Tensors(Tensor, Tensors, Floats, Floats, int64_t)>("multi_pointwise_backward")(
             one(), inputs, constant, weight, kind)) {
      results.push_back(gradient);
    }
  }
  return results;
}

template <bool channels_last>
Tensors norm_act(ScalarType type) {
  Tensors results;
  const Tensor x = random({2, 6, 40, 333}, type, channels_last);
  auto [mean, rstd, var] =
      find<std::tuple<Tensor, Tensor, Tensor>(Tensor, bool, double)>("norm_statistics")(x, true, 1e-5);
  const Tensor weight = random({6}, ScalarType::Float, false, 3);
  const Ints padding = {2, 1, 1, 2};
  for (int64_t mode = 0; mode < 3; ++mode) {
    const Tensor y = find<Tensor(Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor,
                                 int64_t, double, Ints, int64_t)>("norm_act")(x, mean, rstd, weight, weight, x,
                                                                              1 + mode % 2, 0.2, padding, mode);
    auto [gx, gw, gb, gr] = find<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        Tensor, Tensor, bool, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, int64_t, double, Ints,
        int64_t, bool, bool, bool, bool)>("norm_act_backward")(y, x, false, mean, rstd, weight, weight, 1 + mode % 2,
                                                               0.2, padding, mode, true, true, true, true);
    results.insert(results.end(), {mean, rstd, var, y, gx, gw, gb, gr});
  }
  return results;
}

Tensors perceptual(ScalarType type) {
  Tensors results;
  const Ints size = {1, 64, 61, 47};
  const Tensor bias = random({64}, type, false, 3);
  const ScalarType wide = type == ScalarType::Double ? type : ScalarType::Float;
  const Tensor weight = random({1, 61, 47}, wide, false, 4);
  const Tensor linear = random({64}, wide, false, 5);
  const Tensor x = random(size, type, true);
  const Tensor mask = find<Tensor(Tensor, OptionalTensor, bool)>("relu_mask_")(x, bias, true);
  const Tensor grad = random(size, type, true, 6);
  find<void(Tensor, Tensor)>("relu_backward_")(grad, mask);
  results.insert(results.end(), {x, mask, grad});
  using Distances = std::tuple<Tensor, Tensor, Tensor>;
  for (int variant = 0; variant < 3; ++variant) {
    const Tensor a = random(size, type, true, 7);
    const Tensor b = random(size, type, true, 8);
    const bool squared = variant > 0;
    auto [loss, passed, kept] =
        variant == 2 ? find<Distances(Tensor, Tensor, OptionalTensor, Tensor, OptionalTensor, bool, double, bool)>(
                           "relu_lpips_")(a, b, bias, linear, weight, false, 1.0, true)
                     : find<Distances(Tensor, Tensor, OptionalTensor, OptionalTensor, bool, bool, bool)>(
                           "relu_distance_")(a, b, bias, weight, squared, false, true);
    const Tensor gradient = random(size, type, true, 9);
    find<void(Tensor, Tensor, Tensor, OptionalTensor, bool, double)>("relu_distance_backward_")(gradient, passed, kept,
                                                                                                weight, squared, 0.5);
    results.insert(results.end(), {a, b, loss, passed, kept, gradient});
  }
  auto [pooled, codes] = find<std::tuple<Tensor, Tensor>(Tensor, OptionalTensor, bool)>("relu_pool")(x, bias, true);
  const Tensor from = find<Tensor(Tensor, Tensor, int64_t, int64_t)>("relu_pool_backward")(pooled, codes, 61, 47);
  results.insert(results.end(), {pooled, codes, from});
  return results;
}

// Several operators at once on the same inputs, while another thread selects the instruction set.
Tensors concurrent(ScalarType type) {
  const Tensor x = random({2, 64, 33, 31}, type, true);
  Tensors results(3);
  std::vector<std::thread> threads;
  for (Tensor& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3; ++i) {
        result = std::get<0>(find<std::tuple<Tensor, Tensor>(Tensor, OptionalTensor, bool)>("relu_pool")(x, {}, true));
        find<Tensor(Tensors, Floats, Floats, int64_t)>("multi_pointwise")({x}, {1.0}, {1.0}, 0);
      }
    });
  }
  threads.emplace_back([] {
    for (int i = 0; i < 20; ++i) find<void(std::string)>("select_cpu_instruction_set")("auto");
  });
  for (std::thread& thread : threads) thread.join();
  return results;
}

bool same_bits(const Tensors& a, const Tensors& b) {
  for (size_t k = 0; k < a.size(); ++k) {
    if (a[k].get()->bytes != b[k].get()->bytes) return false;
    if (std::memcmp(a[k].const_data_ptr(), b[k].const_data_ptr(), a[k].get()->bytes) != 0) return false;
  }
  return a.size() == b.size();
}

constexpr std::pair<const char*, Test> kTests[] = {
    {"multi_tensor", multi_tensor}, {"norm_act", norm_act<false>}, {"norm_act_channels_last", norm_act<true>},
    {"perceptual", perceptual},     {"concurrent", concurrent},
};

}  // namespace

int main(int count, char** arguments) {
  std::vector<ScalarType> types = {ScalarType::Float};
#ifndef HARNESS_FLOAT_ONLY
  types = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};
#endif
  if (count > 1 && std::strcmp(arguments[1], "overlap") == 0) {
    harness::overlap = 1;
    --count;
    ++arguments;
  }
  int failures = 0;
  int runs = 0;
  std::string names(pix2pixhd::cpu::supported_instruction_sets());
  for (size_t begin = 0; begin < names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    const std::string set = names.substr(begin, end - begin);
    begin = end + 1;
#ifdef HARNESS_FLOAT_ONLY
    if (set != "baseline") continue;
#endif
    for (const ScalarType type : types) {
      for (const auto& [name, test] : kTests) {
        bool wanted = count == 1;
        for (int i = 1; i < count; ++i) wanted = wanted || std::strcmp(name, arguments[i]) == 0;
        if (!wanted) continue;
        pix2pixhd::cpu::select_kernels(set.c_str());
        harness::threads = 1;
        const Tensors expected = test(type);
        pix2pixhd::cpu::select_kernels(set.c_str());
        harness::threads = 4;
        ++runs;
        if (same_bits(expected, test(type))) continue;
        std::printf("%s, %s: the results depend on the number of threads\n", name, set.c_str());
        ++failures;
      }
    }
  }
  std::printf("%d tests, %d failures\n", runs, failures);
  return failures == 0 ? 0 : 1;
}
