// What all harness tests share: counted checks, element types as the standard defines them, buffers with guards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.h"

namespace harness {

// Names what is being tested, for the messages of failed checks.
void set_case(const std::string& name);
// Counts a check; a failed one is printed, and ends the process where that was asked for.
void stop_at_first_failure();
void check(bool passed, const char* format, ...) __attribute__((format(printf, 2, 3)));
int64_t checks();
int64_t cases();
int64_t failures();

// The reference of the element types, in double arithmetic and apart from the shim's bit operations.
using pix2pixhd::DType;
constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
const char* name(DType type);
size_t size_of(DType type);
double rounded(DType type, double x);  // to nearest, ties to even
double decode(DType type, uint64_t bits);
uint64_t encode(DType type, double x);  // rounds

bool same(double a, double b);  // equal with the sign of zero, or both NaN
bool close(double a, double b, double tolerance);

// Numbers that are the same on every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

// Memory of exactly the size asked for, between guards: a write outside is found by check_guards(), and under
// AddressSanitizer every access outside is. Guards read as NaN. The content starts as garbage.
class Buffer {
 public:
  // offset: elements that the start lies beyond a 64-byte boundary.
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

// For ThreadSanitizer, under which everything takes ten times as long: the same kernels on fewer elements.
void use_fewer_sizes();

void test_shim();
void test_simulator();
void test_plan();
void test_l1();
void test_pointwise();
void test_finish_sum();
void test_perceptual();
void test_huge_tensors();

// Runs a kernel that breaks a rule; the simulator must not let it pass. False where there is none of the name.
bool run_misuse(const char* name);

}  // namespace harness
