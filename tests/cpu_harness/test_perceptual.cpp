// The elementwise stages of the perceptual loss on one chunk or one row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cases.h"

namespace harness {
namespace {

// A chunk of a feature map that starts and ends anywhere, with random bias and weights of the pixels.
struct Chunk {
  DType type;
  int64_t channels;
  int64_t channel;
  int64_t size;
  Buffer bias;
  Buffer weight;
  bool has_bias;
  bool has_weight;

  Chunk(Run& run, DType type_)
      : type(type_),
        channels(32 * (1 + run.random.below(5))),
        channel(32 * run.random.below(channels / 32)),
        size(32 * (1 + run.random.below(12))),
        bias(filled(type, channels, run.random.below(5), Values::kEighths, run.random)),
        weight(filled(arithmetic(type), pixels(), 0, Values::kEighths, run.random)),
        has_bias(run.random.below(2) == 0),
        has_weight(run.random.below(2) == 0) {}

  int64_t pixels() const { return (channel + size + channels - 1) / channels; }
  double bias_of(int64_t i) const { return has_bias ? bias.get(type, (channel + i) % channels) : 0.0; }
  double weight_of(int64_t i) const {
    return has_weight ? weight.get(arithmetic(type), (channel + i) / channels) : 1.0;
  }
  double activated(const Buffer& x, int64_t i) const { return relu_of(biased(x, i)); }
  double biased(const Buffer& x, int64_t i) const {
    return has_bias ? narrowed(type, x.get(type, i) + bias_of(i)) : x.get(type, i);
  }
  MapChunk get() {
    return {size, channels, channel, has_bias ? bias.data() : nullptr, has_weight ? weight.data() : nullptr};
  }
};

std::string describe(const Run& run, const char* kernel, const Chunk& chunk) {
  return std::string(run.kernels.name) + " " + kernel + " " + name(chunk.type) + " channels " +
         std::to_string(chunk.channels) + " from " + std::to_string(chunk.channel) + " size " +
         std::to_string(chunk.size) + (chunk.has_bias ? " bias" : "") + (chunk.has_weight ? " weight" : "");
}

void relu(Run& run, DType type, Values values) {
  Chunk chunk(run, type);
  set_case(describe(run, "relu", chunk));
  Buffer x = filled(type, chunk.size, run.random.below(5), values, run.random);
  std::vector<double> wanted;
  std::vector<bool> passed;
  for (int64_t i = 0; i < chunk.size; ++i) {
    wanted.push_back(chunk.activated(x, i));
    passed.push_back(passes_relu(chunk.biased(x, i)));
  }
  Words mask(chunk.size / 32);
  run.kernels.relu(x.data(), type, chunk.get(), mask.data());
  check_same(x, type, wanted, "x");
  for (int64_t i = 0; i < chunk.size; ++i) mask.check_bit(i, 0, 1, passed[static_cast<size_t>(i)], "mask");
  mask.check_guards("mask");

  Buffer grad = filled(type, chunk.size, run.random.below(5), values, run.random);
  for (int64_t i = 0; i < chunk.size; ++i) wanted[static_cast<size_t>(i)] = mask.bit(i, 0, 1) ? grad.get(type, i) : 0.0;
  run.kernels.relu_backward(grad.data(), type, chunk.size, mask.data());
  check_same(grad, type, wanted, "grad");
}

void distance(Run& run, DType type, Distance distance, bool target_is_activated) {
  Chunk chunk(run, type);
  const bool absolute = distance == Distance::kAbsolute;
  set_case(describe(run, absolute ? "relu_l1" : "relu_mse", chunk));
  const int64_t n = chunk.size;
  Buffer x = filled(type, n, run.random.below(5), Values::kRandom, run.random);
  Buffer y = filled(type, n, run.random.below(5), Values::kRandom, run.random);
  for (int64_t i = 0; i < n; i += 1 + run.random.below(9)) y.set(type, i, x.get(type, i));
  std::vector<double> own, other, difference, passed;
  double wanted = 0.0;
  double magnitude = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    own.push_back(chunk.activated(x, i));
    other.push_back(target_is_activated ? y.get(type, i) : chunk.activated(y, i));
    passed.push_back(passes_relu(chunk.biased(x, i)) ? 1.0 : 0.0);
    difference.push_back(rounded(arithmetic(type), own.back() - other.back()));
    const double term = absolute ? std::fabs(difference.back()) : difference.back() * difference.back();
    wanted += chunk.weight_of(i) * term;
    magnitude += std::fabs(chunk.weight_of(i)) * term;
  }
  Words mask(n / 32);
  Words signs(n / 16);
  Buffer kept(type, n);
  void* saved = absolute ? static_cast<void*>(signs.data()) : kept.data();
  const double sum = run.kernels.relu_distance(x.data(), y.data(), target_is_activated, type, chunk.get(), distance,
                                               saved, mask.data());
  check(close(sum, wanted, 1e-12 * magnitude), "the sum is %.17g, not %.17g", sum, wanted);
  run.add_to_digest(sum);
  check_same(x, type, own, "input");
  check_same(y, type, other, "target");

  constexpr double kCoefficient = 0.375;
  Buffer grad = filled(type, n, run.random.below(5), Values::kEighths, run.random);
  std::vector<double> before;
  for (int64_t i = 0; i < n; ++i) before.push_back(grad.get(type, i));
  run.kernels.relu_distance_backward(grad.data(), type, chunk.get(), distance, mask.data(), saved, kCoefficient);
  for (int64_t i = 0; i < n; ++i) {
    const auto k = static_cast<size_t>(i);
    mask.check_bit(i, 0, 1, passed[k] != 0.0, "mask");
    if (absolute) {
      signs.check_bit(i, 0, 2, difference[k] > 0, "positive");
      signs.check_bit(i, 1, 2, difference[k] < 0, "negative");
    } else {
      check(same(kept.get(type, i), narrowed(type, difference[k])), "kept [%ld] is %g, not %g", static_cast<long>(i),
            kept.get(type, i), difference[k]);
    }
    const double derivative = absolute ? sign_of(difference[k]) : 2.0 * narrowed(type, difference[k]);
    const double term = kCoefficient * chunk.weight_of(i) * derivative;
    check_near(grad, type, i, passed[k] * (before[k] + term), std::fabs(before[k]) + std::fabs(term), "grad");
  }
  for (const Words* words : {&mask, &signs}) words->check_guards("bits");
  for (const Buffer* buffer : {&grad, &kept}) buffer->check_guards("backward");
}

void lpips(Run& run, DType type, bool target_is_activated, bool has_bias, bool has_weight) {
  const int64_t channels = 32 * (1 + run.random.below(5));
  const int64_t count = 1 + run.random.below(9);
  const int64_t n = count * channels;
  set_case(std::string(run.kernels.name) + " lpips " + name(type) + " pixels " + std::to_string(count) + " channels " +
           std::to_string(channels));
  Buffer x = filled(type, n, run.random.below(5), Values::kRandom, run.random);
  Buffer y = filled(type, n, run.random.below(5), Values::kRandom, run.random);
  for (int64_t c = 0; c < channels; ++c) x.set(type, c, 0.0);  // a pixel with norm zero
  Buffer bias = filled(type, channels, 0, Values::kEighths, run.random);
  Buffer linear = filled(arithmetic(type), channels, 1, Values::kRandom, run.random);
  Buffer weight = filled(arithmetic(type), count, 1, Values::kEighths, run.random);
  auto activated = [&](const Buffer& map, int64_t i) {
    const double value = map.get(type, i);
    return relu_of(has_bias ? narrowed(type, value + bias.get(type, i % channels)) : value);
  };
  constexpr double kScale = 4.0;
  std::vector<double> u, v, derivative;
  std::vector<bool> passed;
  double wanted = 0.0;
  double magnitude = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    u.push_back(activated(x, i));
    v.push_back(target_is_activated ? y.get(type, i) : activated(y, i));
    passed.push_back(
        passes_relu(has_bias ? narrowed(type, x.get(type, i) + bias.get(type, i % channels)) : x.get(type, i)));
  }
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    const double* own = u.data() + pixel * channels;
    const double* other = v.data() + pixel * channels;
    double norm = 0.0, norm_other = 0.0, along = 0.0, sum = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      norm += own[c] * own[c];
      norm_other += other[c] * other[c];
    }
    norm = std::sqrt(norm);
    norm_other = std::sqrt(norm_other);
    auto difference = [&](int64_t c) { return own[c] / (norm + kLpipsEps) - other[c] / (norm_other + kLpipsEps); };
    for (int64_t c = 0; c < channels; ++c) {
      const double factor = linear.get(arithmetic(type), c);
      sum += factor * difference(c) * difference(c);
      magnitude += 32.0 * std::fabs(factor) * difference(c) * difference(c);
      along += factor * difference(c) * own[c] / (norm + kLpipsEps);
    }
    wanted += (has_weight ? weight.get(arithmetic(type), pixel) : 1.0) * sum;
    for (int64_t c = 0; c < channels; ++c) {
      const double direct = linear.get(arithmetic(type), c) * difference(c);
      const double radial = norm > kLpipsTiny ? own[c] / norm * along : 0.0;
      derivative.push_back(kScale * (direct - radial) / (norm + kLpipsEps));
    }
  }
  const LpipsPixels pixels{count, channels, has_bias ? bias.data() : nullptr, linear.data(),
                           has_weight ? weight.data() : nullptr};
  Words mask(n / 32);
  Buffer kept(type, n);
  const double sum =
      run.kernels.relu_lpips(x.data(), y.data(), target_is_activated, type, pixels, kScale, kept.data(), mask.data());
  check(close(sum, wanted, 1e-12 * magnitude), "the sum is %.17g, not %.17g", sum, wanted);
  check_same(x, type, u, "input");
  check_same(y, type, v, "target");
  for (int64_t i = 0; i < n; ++i) {
    mask.check_bit(i, 0, 1, passed[static_cast<size_t>(i)], "mask");
    double scale = 0.0;
    for (int64_t c = i / channels * channels; c < (i / channels + 1) * channels; ++c) {
      scale = std::max(scale, std::fabs(derivative[static_cast<size_t>(c)]));
    }
    const double value = derivative[static_cast<size_t>(i)];
    if (type == DType::kFloat16 && std::fabs(value) > 65504.0) {
      check(kept.get(type, i) == std::copysign(65504.0, value), "kept [%ld] is not saturated", static_cast<long>(i));
    } else {
      check_near(kept, type, i, value, scale, "kept");
    }
  }
  mask.check_guards("mask");
  kept.check_guards("kept");
}

void pool(Run& run, DType type, Values values, bool has_bias) {
  const int64_t channels = 32 * (1 + run.random.below(4));
  const int64_t width = 1 + run.random.below(9);
  set_case(std::string(run.kernels.name) + " pool " + name(type) + " width " + std::to_string(width) + " channels " +
           std::to_string(channels));
  Buffer rows[2] = {filled(type, 2 * width * channels, run.random.below(5), values, run.random),
                    filled(type, 2 * width * channels, run.random.below(5), values, run.random)};
  Buffer bias = filled(type, channels, 0, Values::kEighths, run.random);
  Buffer out(type, width * channels, run.random.below(5));
  Words codes(width * channels / 32 * 3);
  run.kernels.relu_pool(rows[0].data(), rows[1].data(), out.data(), type, width, channels,
                        has_bias ? bias.data() : nullptr, codes.data());
  std::vector<double> wanted;
  std::vector<int> position;
  for (int64_t i = 0; i < width * channels; ++i) {
    double best = 0.0;
    int at = 0;
    for (int k = 0; k < 4; ++k) {
      const double raw = rows[k / 2].get(type, (2 * (i / channels) + k % 2) * channels + i % channels);
      const double value = has_bias ? narrowed(type, raw + bias.get(type, i % channels)) : raw;
      if (k == 0 || value > best || std::isnan(value)) {
        best = value;
        at = k;
      }
    }
    wanted.push_back(relu_of(best));
    position.push_back(passes_relu(best) ? at : -1);
    codes.check_bit(i, 0, 3, at % 2 != 0, "column");
    codes.check_bit(i, 1, 3, at / 2 != 0, "row");
    codes.check_bit(i, 2, 3, passes_relu(best), "passed");
  }
  check_same(out, type, wanted, "out");
  codes.check_guards("codes");

  Buffer grad = filled(type, width * channels, run.random.below(5), Values::kRandom, run.random);
  run.kernels.relu_pool_backward(grad.data(), rows[0].data(), rows[1].data(), type, width, channels, codes.data());
  for (int k = 0; k < 4; ++k) {
    for (int64_t i = 0; i < width * channels; ++i) {
      const double got = rows[k / 2].get(type, (2 * (i / channels) + k % 2) * channels + i % channels);
      const double expected = position[static_cast<size_t>(i)] == k ? grad.get(type, i) : 0.0;
      check(same(got, expected), "gradient of corner %d [%ld] is %g, not %g", k, static_cast<long>(i), got, expected);
    }
  }
  for (const Buffer& row : rows) row.check_guards("rows");
}

}  // namespace

void test_relu(Run& run) {
  for (const DType type : kTypes) {
    for (int64_t k = 0; k < run.shapes; ++k) {
      relu(run, type, k % 3 == 2 ? Values::kSpecial : Values::kRandom);
      for (const bool activated : {false, true}) {
        distance(run, type, Distance::kAbsolute, activated);
        distance(run, type, Distance::kSquared, activated);
      }
    }
  }
}

void test_lpips(Run& run) {
  for (const DType type : kTypes) {
    for (int64_t k = 0; k < run.shapes; ++k) lpips(run, type, k % 2 == 0, k % 3 == 0, k % 4 < 2);
  }
}

void test_pool(Run& run) {
  for (const DType type : kTypes) {
    for (int64_t k = 0; k < run.shapes; ++k) {
      constexpr Values kValues[] = {Values::kRandom, Values::kEighths, Values::kSpecial};
      pool(run, type, kValues[k % 3], k % 2 == 0);
    }
  }
}

}  // namespace harness
