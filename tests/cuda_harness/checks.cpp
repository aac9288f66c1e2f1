#include "checks.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(HARNESS_ADDRESS)
extern "C" void __asan_poison_memory_region(void const volatile* address, size_t size);
extern "C" void __asan_unpoison_memory_region(void const volatile* address, size_t size);
#else
static void __asan_poison_memory_region(void const volatile*, size_t) {}
static void __asan_unpoison_memory_region(void const volatile*, size_t) {}
#endif

namespace harness {
namespace {

constexpr unsigned char kCanary = 0xff;  // NaN in every floating type
constexpr unsigned char kGarbage = 0xa7;
constexpr size_t kGuard = 128;
constexpr int64_t kShownFailures = 20;

std::string case_name;
int64_t case_count = 0;
int64_t check_count = 0;
int64_t failure_count = 0;
bool stop = false;

struct Format {
  int mantissa;
  int exponent;
};

Format format_of(DType type) {
  switch (type) {
    case DType::kFloat32:
      return {23, 8};
    case DType::kFloat16:
      return {10, 5};
    case DType::kBFloat16:
      return {7, 8};
    default:
      return {52, 11};
  }
}

// For exponents of normal numbers. std::ldexp is a library call, on which the tests spent a third of their time.
double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// The largest e with 2^e <= |x|, or -1023 for a subnormal x.
int exponent_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<int>(bits >> 52 & 0x7ffu) - 1023;
}

}  // namespace

void set_case(const std::string& name) {
  case_name = name;
  ++case_count;
}

void check(bool passed, const char* format, ...) {
  ++check_count;
  if (passed) return;
  if (++failure_count > kShownFailures) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "FAILED: %s: ", case_name.c_str());
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
  if (stop) std::_Exit(1);
}

void stop_at_first_failure() { stop = true; }

int64_t checks() { return check_count; }
int64_t cases() { return case_count; }
int64_t failures() { return failure_count; }

const char* name(DType type) {
  switch (type) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat16:
      return "float16";
    default:
      return "bfloat16";
  }
}

size_t size_of(DType type) { return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2; }

double rounded(DType type, double x) {
  if (type == DType::kFloat64 || !std::isfinite(x) || x == 0.0) return x;
  const Format format = format_of(type);
  const int bias = (1 << (format.exponent - 1)) - 1;
  const int exponent = std::max(exponent_of(x), 1 - bias);
  const double step = power_of_two(exponent - format.mantissa);
  const double result = std::nearbyint(x / step) * step;
  const double largest = (2.0 - power_of_two(-format.mantissa)) * power_of_two(bias);
  return std::fabs(result) > largest ? std::copysign(HUGE_VAL, x) : result;
}

double decode(DType type, uint64_t bits) {
  if (type == DType::kFloat64) {
    double x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  }
  const Format format = format_of(type);
  const int bias = (1 << (format.exponent - 1)) - 1;
  const int exponent = static_cast<int>(bits >> format.mantissa & ((1u << format.exponent) - 1));
  const auto mantissa = static_cast<double>(bits & ((uint64_t{1} << format.mantissa) - 1));
  const double sign = (bits >> (format.mantissa + format.exponent) & 1u) != 0 ? -1.0 : 1.0;
  const double fraction = mantissa * power_of_two(-format.mantissa);
  if (exponent == (1 << format.exponent) - 1) return mantissa == 0.0 ? sign * HUGE_VAL : NAN;
  if (exponent == 0) return sign * fraction * power_of_two(1 - bias);
  return sign * (1.0 + fraction) * power_of_two(exponent - bias);
}

uint64_t encode(DType type, double x) {
  uint64_t result = 0;
  if (type == DType::kFloat64) {
    std::memcpy(&result, &x, sizeof(x));
    return result;
  }
  const Format format = format_of(type);
  const int bias = (1 << (format.exponent - 1)) - 1;
  const uint64_t sign = uint64_t{std::signbit(x)} << (format.mantissa + format.exponent);
  const uint64_t infinity = ((uint64_t{1} << format.exponent) - 1) << format.mantissa;
  if (std::isnan(x)) return infinity | ((uint64_t{1} << format.mantissa) - 1);
  const double value = std::fabs(rounded(type, x));
  if (std::isinf(value)) return sign | infinity;
  const double least_normal = power_of_two(1 - bias);
  if (value < least_normal)
    return sign | static_cast<uint64_t>(value / (least_normal * power_of_two(-format.mantissa)));
  const int exponent = exponent_of(value);
  const double fraction = value / power_of_two(exponent) - 1.0;
  result = static_cast<uint64_t>(exponent + bias) << format.mantissa;
  return sign | result | static_cast<uint64_t>(fraction * power_of_two(format.mantissa));
}

bool same(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && std::signbit(a) == std::signbit(b);
}

bool close(double a, double b, double tolerance) { return same(a, b) || std::fabs(a - b) <= tolerance; }

uint64_t Random::bits() {  // splitmix64
  uint64_t x = state_ += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

Buffer::Buffer(size_t element_bytes, int64_t numel, int64_t offset) : element_bytes_(element_bytes), numel_(numel) {
  const size_t size = static_cast<size_t>(numel) * element_bytes;
  memory_.assign(size + static_cast<size_t>(offset) * element_bytes + 2 * kGuard + 64, kCanary);
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  begin_ = (address + kGuard + 63) / 64 * 64 - address + static_cast<size_t>(offset) * element_bytes;
  end_ = begin_ + size;
  std::memset(memory_.data() + begin_, kGarbage, size);
  guard(true);
}

Buffer::~Buffer() {
  if (!memory_.empty()) guard(false);
}

void Buffer::guard(bool closed) const {
  const auto change = closed ? __asan_poison_memory_region : __asan_unpoison_memory_region;
  // AddressSanitizer poisons whole 8 bytes only. The canaries guard the remaining bytes before the content.
  const size_t before = closed ? (reinterpret_cast<uintptr_t>(memory_.data()) + begin_) / 8 * 8 -
                                     reinterpret_cast<uintptr_t>(memory_.data())
                               : begin_;
  change(memory_.data(), before);
  change(memory_.data() + end_, memory_.size() - end_);
}

// Copies of constant size: memcpy of a variable size is a call, which the sanitizers intercept.
double Buffer::get(DType type, int64_t i) const {
  uint64_t bits = 0;
  const unsigned char* from = memory_.data() + begin_ + static_cast<size_t>(i) * element_bytes_;
  switch (element_bytes_) {
    case 8:
      std::memcpy(&bits, from, 8);
      break;
    case 4:
      std::memcpy(&bits, from, 4);
      break;
    default:
      std::memcpy(&bits, from, 2);
  }
  return decode(type, bits);
}

void Buffer::set(DType type, int64_t i, double x) {
  const uint64_t bits = encode(type, x);
  unsigned char* to = memory_.data() + begin_ + static_cast<size_t>(i) * element_bytes_;
  switch (element_bytes_) {
    case 8:
      std::memcpy(to, &bits, 8);
      break;
    case 4:
      std::memcpy(to, &bits, 4);
      break;
    default:
      std::memcpy(to, &bits, 2);
  }
}

std::vector<unsigned char> Buffer::bytes() const {
  return {memory_.begin() + static_cast<int64_t>(begin_), memory_.begin() + static_cast<int64_t>(end_)};
}

void Buffer::check_guards(const char* what) const {
  guard(false);
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (i == begin_) i = end_;
    if (memory_[i] == kCanary) continue;
    const auto at = static_cast<long>(i) - static_cast<long>(begin_);
    check(false, "%s: a write out of bounds, at byte %ld of %ld", what, at, static_cast<long>(end_ - begin_));
    break;
  }
  check(true, "guards");
  guard(true);
}

}  // namespace harness
