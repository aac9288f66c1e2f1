// Tensors of more than 2^32 elements. Their memory is only reserved; the last blocks access a small part of it.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../csrc/cuda/norm_act.h"
#include "../../csrc/cuda/perceptual.h"
#include "tensors.h"

namespace harness {

#if defined(HARNESS_THREAD)

// Skipped: ThreadSanitizer's shadow memory would exceed the address space, and the other variants test the same
// indices.
void test_huge_tensors() {}

#else

namespace {

using namespace pix2pixhd;

constexpr DType kType = DType::kBFloat16;
constexpr int64_t kNumel = (int64_t{1} << 32) + kBlockChunk + 5;  // 2 blocks and 5 elements beyond 2^32 - kBlockChunk
constexpr int64_t kBlocks = (kNumel + kBlockChunk - 1) / kBlockChunk;
constexpr int64_t kFirst = (kBlocks - 3) * kBlockChunk;  // first element of the last three blocks

class Reserved {
 public:
  explicit Reserved(size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Reserved(const Reserved&) = delete;
  ~Reserved() {
    if (valid()) munmap(data_, bytes_);
  }
  bool valid() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

double value(int64_t i, int64_t side) { return static_cast<double>((i * 7 + side * 3) % 33 - 16) / 8.0; }

void fill(const Reserved& memory, int64_t side) {
  auto* bits = static_cast<uint16_t*>(memory.data());
  for (int64_t i = kFirst; i < kNumel; ++i) bits[i] = static_cast<uint16_t>(encode(kType, value(i, side)));
}

double read(const Reserved& memory, int64_t i) { return decode(kType, static_cast<const uint16_t*>(memory.data())[i]); }

void check_partial(Buffer& partial, const char* kernel, double (*term)(int64_t)) {
  for (int64_t block = kBlocks - 3; block < kBlocks; ++block) {
    double wanted = 0.0;
    for (int64_t i = block * kBlockChunk; i < std::min((block + 1) * kBlockChunk, kNumel); ++i) wanted += term(i);
    check(partial.get(DType::kFloat64, block) == wanted, "%s: block %ld gives %g, not %g", kernel,
          static_cast<long>(block), partial.get(DType::kFloat64, block), wanted);
  }
  partial.check_guards("partial sums");
}

void check_gradient(const Reserved& gradient, const char* kernel, double (*wanted)(int64_t), int64_t numel = kNumel) {
  for (int64_t i = kFirst; i < numel; ++i) {
    check(read(gradient, i) == wanted(i), "%s: [%ld] is %g, not %g", kernel, static_cast<long>(i), read(gradient, i),
          wanted(i));
  }
  check(read(gradient, kNumel) == 0.0 && read(gradient, kFirst - 1) == 0.0, "%s: a write out of bounds", kernel);
}

cuda::Launch launch_of(void* first, void* second, void* signs) {
  return cuda::make_plan({{{{first, second}, static_cast<uint32_t*>(signs), kNumel, 1.0, 0.5, 1}, {kType, kType}}})
      .launches.at(0);
}

// A map of two rows of slightly more than 2^32 elements, of which the last windows are pooled.
void test_huge_map() {
  constexpr int64_t kChannels = 32;
  constexpr int64_t kWidth = (int64_t{1} << 27) + 129;
  constexpr int64_t kFirstColumn = int64_t{1} << 27;
  constexpr int64_t kPooled = kWidth / 2 * kChannels;
  const auto index = [](int64_t row, int64_t column, int64_t c) { return (row * kWidth + column) * kChannels + c; };
  const auto bytes = static_cast<size_t>(2 * kWidth * kChannels) * 2;
  Reserved x(bytes), spread(bytes), out(bytes / 4), grad(bytes / 4), codes(static_cast<size_t>(kPooled / 32) * 12);
  check(x.valid() && spread.valid() && out.valid() && grad.valid() && codes.valid(),
        "cannot reserve address space for a huge map");
  if (failures() > 0) return;
  const auto set = [](const Reserved& memory, int64_t i, double number) {
    static_cast<uint16_t*>(memory.data())[i] = static_cast<uint16_t>(encode(kType, number));
  };
  for (int64_t column = kFirstColumn; column < kWidth; ++column) {
    for (int64_t c = 0; c < kChannels; ++c) {
      for (const int64_t row : {0, 1}) set(x, index(row, column, c), value(index(row, column, c), row));
      if (column < kWidth / 2 * 2) set(grad, index(0, column / 2, c), value(column / 2 * kChannels + c, 1));
    }
  }
  const cuda::MapShape shape{1, kChannels, 2, kWidth};
  auto* words = static_cast<uint32_t*>(codes.data());
  set_first_block(kFirstColumn / 2 * kChannels / (cuda::kThreads * 8));
  check(cuda::relu_pool(x.data(), out.data(), kType, shape, nullptr, words, nullptr) == 0, "relu_pool");
  check(cuda::relu_pool_backward(grad.data(), spread.data(), kType, shape, words, nullptr) == 0, "relu_pool_backward");
  for (int64_t column = kFirstColumn; column < kWidth; ++column) {
    for (int64_t c = 0; c < kChannels; ++c) {
      const bool pooled = column < kWidth / 2 * 2;
      double best = -HUGE_VAL;
      int64_t from = 0;
      for (int64_t k = 0; k < 4 && pooled; ++k) {
        const double number = read(x, index(k / 2, column / 2 * 2 + k % 2, c));
        from = number > best ? k : from;
        best = std::max(best, number);
      }
      const int64_t at = column / 2 * kChannels + c;
      if (pooled) check(read(out, at) == std::max(0.0, best), "relu_pool: [%ld]", static_cast<long>(at));
      for (const int64_t row : {0, 1}) {
        const bool here = pooled && best > 0 && from == 2 * row + column % 2;
        check(read(spread, index(row, column, c)) == (here ? read(grad, at) : 0.0), "relu_pool_backward: [%ld]",
              static_cast<long>(index(row, column, c)));
      }
    }
  }
  set_first_block(0);
}

// The tap of LPIPS on the last chunks of one image of slightly more than 2^32 elements, after ReLU.
void test_huge_lpips(const Reserved& input, const Reserved& target, const Reserved& kept, uint32_t* mask) {
  constexpr int64_t kChannels = 32;
  constexpr int64_t kPixels = kNumel / kChannels;
  static_assert(kFirst % (kChannels * cuda::kLpipsPixels) == 0);
  Buffer partial(DType::kFloat64, cuda::lpips_blocks(kPixels));
  const std::vector<float> linear(kChannels, 1.0f);
  set_first_block(kFirst / kChannels / cuda::kLpipsPixels);
  check(
      cuda::relu_lpips(input.data(), target.data(), true, kType, {1, kPixels * kChannels, kChannels, nullptr, nullptr},
                       linear.data(), 1.0, kept.data(), mask, static_cast<double*>(partial.data()), nullptr) == 0,
      "relu_lpips");
  for (int64_t pixel = kFirst / kChannels; pixel < kPixels; ++pixel) {
    double squares[2] = {0.0, 0.0};
    double product = 0.0;
    for (int64_t i = pixel * kChannels; i < (pixel + 1) * kChannels; ++i) {
      const double x = read(input, i);
      const double y = read(target, i);
      squares[0] += x * x;
      squares[1] += y * y;
      product += x * y;
    }
    const double norm[2] = {std::sqrt(squares[0]), std::sqrt(squares[1])};
    // With linear = 1 half the derivative of |x / |x| - y / |y||^2 is (x * cosine / |x| - y / |y|) / |x|.
    const double cosine = product / (norm[0] * norm[1]);
    for (int64_t i = pixel * kChannels; i < (pixel + 1) * kChannels; ++i) {
      const double wanted = (read(input, i) / norm[0] * cosine - read(target, i) / norm[1]) / norm[0];
      check(close(read(kept, i), wanted, 0x1p-8 * std::fabs(wanted) + 1e-6), "relu_lpips: [%ld] is %g, not %g",
            static_cast<long>(i), read(kept, i), wanted);
    }
  }
  partial.check_guards("partial sums");
}

// One image of slightly more than 2^32 elements, of which the last chunks are compared.
void test_huge_view(const Reserved& input, const Reserved& target, const Reserved& gradient, const Reserved& slope,
                    const Reserved& signs) {
  constexpr int64_t kMapNumel = kNumel / 32 * 32;
  const cuda::MapView view{1, kMapNumel, 32, nullptr, nullptr};
  Buffer partial(DType::kFloat64, cuda::map_blocks(kMapNumel));
  auto* sums = static_cast<double*>(partial.data());
  Reserved mask(static_cast<size_t>(kMapNumel / 32) * 4);
  check(mask.valid(), "cannot reserve address space for a mask");
  if (failures() > 0) return;
  auto* mask_words = static_cast<uint32_t*>(mask.data());
  auto* sign_words = static_cast<uint32_t*>(signs.data());
  set_first_block(kFirst / cuda::kMapChunk);
  check(cuda::relu_distance(input.data(), target.data(), false, kType, view, Distance::kAbsolute, sign_words,
                            mask_words, sums, nullptr) == 0,
        "relu_distance");
  check_gradient(input, "relu_distance", [](int64_t i) { return std::max(0.0, value(i, 0)); }, kMapNumel);
  check_gradient(target, "relu_distance", [](int64_t i) { return std::max(0.0, value(i, 1)); }, kMapNumel);
  test_huge_lpips(input, target, gradient, mask_words);
  set_first_block(kFirst / cuda::kMapChunk);
  fill(gradient, 2);
  check(cuda::relu_distance_backward(gradient.data(), kType, view, Distance::kAbsolute, mask_words, sign_words, 1.0,
                                     nullptr) == 0,
        "relu_distance_backward");
  check_gradient(
      gradient, "relu_distance_backward",
      [](int64_t i) {
        const double difference = std::max(0.0, value(i, 0)) - std::max(0.0, value(i, 1));
        const double sign = difference > 0 ? 1.0 : difference < 0 ? -1.0 : 0.0;
        return value(i, 0) <= 0 ? 0.0 : value(i, 2) + sign;
      },
      kMapNumel);
  fill(slope, 1);
  check(cuda::relu(slope.data(), kType, view, mask_words, nullptr) == 0, "relu");
  check_gradient(slope, "relu", [](int64_t i) { return std::max(0.0, value(i, 1)); }, kMapNumel);
  fill(gradient, 2);
  check(cuda::relu_backward(gradient.data(), kType, view, mask_words, nullptr) == 0, "relu_backward");
  check_gradient(gradient, "relu_backward", [](int64_t i) { return value(i, 1) <= 0 ? 0.0 : value(i, 2); }, kMapNumel);
}

// One image of slightly more than 2^32 elements, of which the last row is compared: a plane, and 8 channels.
void test_huge_image(int64_t channels) {
  constexpr int64_t kRow = int64_t{1} << 16;
  constexpr int64_t kLastRow = kRow * kRow;
  const bool last = channels > 1;
  const cuda::NormTensor tensor{
      1, channels, {kRow + 1, kRow / channels, channels, 0, 0, 0, 0, PaddingMode::kZero}, last, kType};
  const auto bytes = static_cast<size_t>(kLastRow + kRow) * 2;
  Reserved x(bytes), y(bytes), grad(bytes), spread(bytes);
  check(x.valid() && y.valid() && grad.valid() && spread.valid(), "cannot reserve 36 GB of address space");
  if (failures() > 0) return;
  for (int64_t i = kLastRow; i < kLastRow + kRow; ++i) {
    static_cast<uint16_t*>(x.data())[i] = static_cast<uint16_t>(encode(kType, value(i, 0)));
    static_cast<uint16_t*>(grad.data())[i] = static_cast<uint16_t>(encode(kType, value(i, 1)));
  }
  Buffer parameters(DType::kFloat32, cuda::kNormParameters * channels);
  for (int64_t i = 0; i < parameters.numel(); ++i) {
    parameters.set(DType::kFloat32, i, i / channels == cuda::kScale ? 1.0 : 0.0);
  }
  const cuda::NormActivation relu{Activation::kRelu, 0.0};
  const cuda::NormSource source{x.data(), false, false};
  set_first_block(kLastRow / (cuda::kThreads * 4 * 8));  // 4 vectors of 8 elements per thread
  check(cuda::norm_act(x.data(), nullptr, y.data(), tensor, relu, parameters.data(), nullptr) == 0, "norm_act");
  check(cuda::norm_act_backward(grad.data(), source, spread.data(), nullptr, tensor, relu, parameters.data(),
                                nullptr) == 0,
        "norm_act_backward");
  for (int64_t i = kLastRow; i < kLastRow + kRow; ++i) {
    check(read(y, i) == std::max(0.0, value(i, 0)), "norm_act: [%ld]", static_cast<long>(i));
    const double wanted = value(i, 0) <= 0 ? 0.0 : value(i, 1);
    check(read(spread, i) == wanted, "norm_act_backward: [%ld]", static_cast<long>(i));
  }

  const int64_t chunk = last ? cuda::kDeepChunk : cuda::kPlaneChunk;
  const int64_t chunks = tensor.chunks();
  Buffer partial(DType::kFloat64, tensor.partials());
  set_first_block(kLastRow / channels / chunk);
  const auto check_chunk = [&](const char* kernel, double (*term)(int64_t)) {
    for (int64_t c = 0; c < channels; ++c) {
      double wanted = 0.0;
      for (int64_t i = (chunks - 1) * chunk * channels + c; i < kLastRow + kRow; i += channels) wanted += term(i);
      const double got = partial.get(DType::kFloat64, 2 * (chunks - 1) * channels + c);
      check(close(got, wanted, 1e-6 * static_cast<double>(chunk)), "%s: the last sum is %g, not %g", kernel, got,
            wanted);
    }
  };
  Buffer sums(DType::kFloat64, 2 * channels), statistics(DType::kFloat32, 3 * channels);
  auto* to = static_cast<double*>(partial.data());
  auto* mean = static_cast<float*>(statistics.data());
  check(cuda::norm_act_sums(grad.data(), source, tensor, relu, parameters.data(), to, static_cast<double*>(sums.data()),
                            nullptr) == 0,
        "norm_act_sums");
  check_chunk("norm_act_sums", [](int64_t i) { return value(i, 0) <= 0 ? 0.0 : value(i, 1); });
  check(cuda::norm_statistics(x.data(), tensor, 1, 1.0, to, mean, mean + channels, mean + 2 * channels, nullptr) == 0,
        "norm_statistics");
  check_chunk("norm_statistics", [](int64_t i) { return value(i, 0); });
  set_first_block(0);
}

}  // namespace

void test_huge_tensors() {
  set_case("huge tensors");
  const auto bytes = static_cast<size_t>(kNumel + kBlockChunk) * 2;
  Reserved input(bytes), target(bytes), gradient(bytes), slope(bytes);
  Reserved signs(static_cast<size_t>(sign_words(kNumel)) * 4);
  check(input.valid() && target.valid() && gradient.valid() && slope.valid() && signs.valid(),
        "cannot reserve 36 GB of address space");
  if (failures() > 0) return;
  fill(input, 0);
  fill(target, 1);
  Buffer partial(DType::kFloat64, kBlocks);
  auto* sums = static_cast<double*>(partial.data());
  Scalar one(1.0, false);
  set_first_block(kBlocks - 3);
  check(cuda::l1_forward(launch_of(input.data(), target.data(), signs.data()), sums, nullptr) == 0, "l1_forward");
  check_partial(partial, "l1_forward", [](int64_t i) { return std::fabs(value(i, 0) - value(i, 1)); });
  check(cuda::l1_backward(launch_of(gradient.data(), nullptr, signs.data()), one.device(), nullptr) == 0,
        "l1_backward");
  check_gradient(gradient, "l1_backward", [](int64_t i) {
    const double difference = value(i, 0) - value(i, 1);
    return difference > 0 ? 1.0 : difference < 0 ? -1.0 : 0.0;
  });
  const cuda::Launch pointwise = launch_of(input.data(), slope.data(), nullptr);
  check(cuda::pointwise_forward(pointwise, Pointwise::kSquaredError, sums, nullptr) == 0, "pointwise_forward");
  check_partial(partial, "pointwise_forward", [](int64_t i) { return (value(i, 0) - 0.5) * (value(i, 0) - 0.5); });
  check(cuda::pointwise_backward(pointwise, Pointwise::kSquaredError, one.device(), nullptr) == 0,
        "pointwise_backward");
  check_gradient(slope, "pointwise_backward", [](int64_t i) { return 2.0 * (value(i, 0) - 0.5); });
  test_huge_view(input, target, gradient, slope, signs);
  set_first_block(0);
  test_huge_map();
  test_huge_image(1);
  test_huge_image(8);
}

#endif

}  // namespace harness
