// Shared by the tests of the CPU kernels. The element types, random numbers and guarded buffers are those of the CUDA
// harness. The references are plain loops in double.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../cuda_harness/checks.h"

namespace harness {

using namespace pix2pixhd;
using pix2pixhd::cpu::Kernels;
using pix2pixhd::cpu::LpipsPixels;
using pix2pixhd::cpu::MapChunk;
using pix2pixhd::cpu::NormRows;

// kEighths: multiples of 1/8 with many ties, for which most results are exact. kRandom: uniform in [-3, 3). kSpecial:
// NaN, Inf, -0, tiny and huge values.
enum class Values { kEighths, kRandom, kSpecial };
Buffer filled(DType type, int64_t n, int64_t offset, Values values, Random& random);

inline DType arithmetic(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }
// Conversions of a double to half precision round to float32 first, as the kernels do.
inline double narrowed(DType type, double x) {
  return rounded(type, rounded(type == DType::kFloat64 ? type : DType::kFloat32, x));
}
inline bool passes_relu(double x) { return !(x <= 0.0); }
inline double relu_of(double x) { return passes_relu(x) ? x : 0.0; }
inline double sign_of(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

// The error that is allowed for a result of magnitude `scale`.
double tolerance(DType type, double scale);
void check_near(const Buffer& got, DType type, int64_t i, double wanted, double scale, const char* what);
void check_same(const Buffer& got, DType type, const std::vector<double>& wanted, const char* what);

// Packed bits. They start as garbage, so that a kernel that does not write all of them is found.
class Words {
 public:
  explicit Words(int64_t count) : buffer_(sizeof(uint32_t), count) {}
  uint32_t* data() { return static_cast<uint32_t*>(buffer_.data()); }
  // Bit i of `plane`, of `planes` words for 32 elements.
  bool bit(int64_t i, int64_t plane, int64_t planes) const {
    return static_cast<const uint32_t*>(buffer_.data())[i / 32 * planes + plane] >> i % 32 & 1u;
  }
  void set(int64_t i, int64_t plane, int64_t planes, bool value) {
    uint32_t& word = data()[i / 32 * planes + plane];
    word = (word & ~(1u << i % 32)) | static_cast<uint32_t>(value) << i % 32;
  }
  void check_bit(int64_t i, int64_t plane, int64_t planes, bool wanted, const char* what) const {
    check(bit(i, plane, planes) == wanted, "%s: bit %ld of plane %ld is %d", what, static_cast<long>(i),
          static_cast<long>(plane), bit(i, plane, planes));
  }
  void check_guards(const char* what) const { buffer_.check_guards(what); }

 private:
  Buffer buffer_;
};

// Everything that one run shares: the kernels, the random shapes and how many of them, and a digest of the sums whose
// bits do not depend on the width of the vectors.
struct Run {
  const Kernels& kernels;
  Random random;
  int64_t shapes;
  uint64_t digest = 0xcbf29ce484222325u;

  void add_to_digest(double x);
};

int64_t random_size(Random& random);

void test_l1(Run& run);
void test_pointwise(Run& run);
void test_relu(Run& run);
void test_lpips(Run& run);
void test_pool(Run& run);
void test_norm_act(Run& run);

}  // namespace harness
