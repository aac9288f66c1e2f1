// Shared by all harness tests: counted checks, a reference of the element types, buffers with guards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.h"

namespace harness {

// Sets the name that the messages of failed checks begin with.
void set_case(const std::string& name);
// Counts a check and prints a failed one. After stop_at_first_failure() a failed check ends the process.
void stop_at_first_failure();
void check(bool passed, const char* format, ...) __attribute__((format(printf, 2, 3)));
int64_t checks();
int64_t cases();
int64_t failures();

// A reference of the element types in double arithmetic, independent of the bit operations of the shim.
using pix2pixhd::DType;
constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
const char* name(DType type);
size_t size_of(DType type);
double rounded(DType type, double x);  // to nearest, ties to even
double decode(DType type, uint64_t bits);
uint64_t encode(DType type, double x);  // rounds

bool same(double a, double b);  // equal with the sign of zero, or both NaN
bool close(double a, double b, double tolerance);

// Random numbers that are the same on every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

// Memory between guards. check_guards() finds writes out of bounds; under AddressSanitizer every access out of bounds
// is found. Guards read as NaN. The content starts as garbage.
class Buffer {
 public:
  // offset: elements between a 64-byte boundary and the start.
  Buffer(size_t element_bytes, int64_t numel, int64_t offset = 0);
  Buffer(DType type, int64_t numel, int64_t offset = 0) : Buffer(size_of(type), numel, offset) {}
  Buffer(Buffer&& other) = default;
  ~Buffer();

  void* data() { return memory_.data() + begin_; }
  const void* data() const { return memory_.data() + begin_; }
  int64_t numel() const { return numel_; }
  double get(DType type, int64_t i) const;
  void set(DType type, int64_t i, double x);
  std::vector<unsigned char> bytes() const;
  void check_guards(const char* what) const;

 private:
  void guard(bool closed) const;

  std::vector<unsigned char> memory_;
  size_t element_bytes_;
  int64_t numel_;
  size_t begin_;
  size_t end_;
};

// Runs the same kernels on fewer elements, for ThreadSanitizer, which is ten times slower.
void use_fewer_sizes();
bool uses_fewer_sizes();

void test_shim();
void test_simulator();
void test_plan();
void test_l1();
void test_pointwise();
void test_finish_sum();
void test_perceptual();
void test_perceptual_pool();
void test_lpips();
void test_norm_act();
void test_norm_act_extremes();
void test_huge_tensors();

// Runs a kernel that breaks a rule, which the simulator must report. Returns false if there is none of this name.
bool run_misuse(const char* name);

}  // namespace harness
