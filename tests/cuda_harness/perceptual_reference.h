// The perceptual kernels' reference in double arithmetic, and buffers of packed bits.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cuda/perceptual.h"
#include "tensors.h"

namespace harness {

using namespace pix2pixhd;

// Packed bits. Like a Buffer they start as garbage, so that a kernel that does not write all of them is found.
class Words {
 public:
  explicit Words(int64_t count) : buffer_(sizeof(uint32_t), count) {}
  uint32_t* data() { return static_cast<uint32_t*>(buffer_.data()); }
  std::vector<uint32_t> get() const {
    std::vector<uint32_t> words(static_cast<size_t>(buffer_.numel()));
    const std::vector<unsigned char> bytes = buffer_.bytes();
    if (!words.empty()) std::memcpy(words.data(), bytes.data(), bytes.size());
    return words;
  }
  void check_are(const std::vector<uint32_t>& wanted, const char* what) const {
    const std::vector<uint32_t> got = get();
    for (size_t w = 0; w < wanted.size(); ++w) {
      check(got[w] == wanted[w], "%s: word %zu of %zu is %08x, not %08x", what, w, wanted.size(), got[w], wanted[w]);
    }
    buffer_.check_guards(what);
  }

 private:
  Buffer buffer_;
};

// Planes of bits as perceptual.h describes them.
class Planes {
 public:
  Planes(int64_t n, int64_t planes) : words(static_cast<size_t>(n / 32 * planes)), planes_(planes) {}
  void set(int64_t i, int64_t plane, bool bit) {
    words[static_cast<size_t>(i / 32 * planes_ + plane)] |= uint32_t{bit} << i % 32;
  }
  std::vector<uint32_t> words;

 private:
  int64_t planes_;
};

inline DType arithmetic(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }
inline bool passes_relu(double x) { return !(x <= 0.0); }
inline double relu_of(double x) { return passes_relu(x) ? x : 0.0; }
inline double sign_of(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

inline Buffer filled(DType type, int64_t n, int64_t offset, Values values, uint64_t seed,
                     const Buffer* ties = nullptr) {
  Random random(seed);
  Buffer buffer(type, n, offset);
  for (int64_t i = 0; i < n; ++i) {
    const bool tie = ties != nullptr && random.below(8) == 0;
    buffer.set(type, i, tie ? ties->get(type, i) : draw(random, values));
  }
  return buffer;
}

inline Buffer copy_of(const Buffer& other, DType type, int64_t offset) {
  Buffer buffer(type, other.numel(), offset);
  for (int64_t i = 0; i < other.numel(); ++i) buffer.set(type, i, other.get(type, i));
  return buffer;
}

inline void check_same(const Buffer& got, const Buffer& wanted, DType type, const char* what) {
  for (int64_t i = 0; i < wanted.numel(); ++i) {
    const double x = got.get(type, i);
    const double y = wanted.get(type, i);
    check(same(x, y), "%s [%ld of %ld] is %g, not %g", what, static_cast<long>(i), static_cast<long>(wanted.numel()), x,
          y);
  }
  got.check_guards(what);
}

inline std::string describe(const char* kernel, DType type, const std::string& shape, int64_t offset, Values values) {
  return harness::describe(kernel, shape.c_str(), {{1, {type, type}}}, offset, values);
}

// x + bias, rounded to the map's dtype.
inline Buffer biased(const Buffer& x, DType type, int64_t channels, const Buffer* bias) {
  Buffer sum(type, x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double own = bias != nullptr ? bias->get(type, i % channels) : 0.0;
    const double value = x.get(type, i);
    sum.set(type, i, bias != nullptr ? rounded(type, rounded(arithmetic(type), value + own)) : value);
  }
  return sum;
}

inline Buffer relu_of(const Buffer& x, DType type) {
  Buffer wanted(type, x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) wanted.set(type, i, relu_of(x.get(type, i)));
  return wanted;
}

// The size of a batch of feature maps, for the elementwise kernels.
struct View {
  int64_t batch;
  int64_t pixels;
  int64_t channels;

  int64_t elements() const { return pixels * channels; }
  int64_t numel() const { return batch * elements(); }
  int64_t blocks() const { return batch * cuda::map_blocks(elements()); }
  cuda::MapView with(const Buffer* bias, const Buffer* weight) const {
    return {batch, elements(), channels, bias != nullptr ? bias->data() : nullptr,
            weight != nullptr ? weight->data() : nullptr};
  }
  std::string str() const {
    return std::to_string(batch) + "x" + std::to_string(pixels) + "x" + std::to_string(channels);
  }
};

inline Planes relu_bits(const Buffer& x, DType type) {
  Planes bits(x.numel(), 1);
  for (int64_t i = 0; i < x.numel(); ++i) bits.set(i, 0, passes_relu(x.get(type, i)));
  return bits;
}

// The bits of the sums, except the sign of NaN, which C++ does not define.
inline std::vector<uint64_t> bits_of(const Buffer& sums) {
  std::vector<uint64_t> bits;
  for (int64_t i = 0; i < sums.numel(); ++i) {
    const double sum = sums.get(DType::kFloat64, i);
    const double one_nan = std::isnan(sum) ? NAN : sum;
    uint64_t word = 0;
    std::memcpy(&word, &one_nan, sizeof(word));
    bits.push_back(word);
  }
  return bits;
}

}  // namespace harness
