#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

namespace harness {

Buffer filled(DType type, int64_t n, int64_t offset, Values values, Random& random) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kSpecial[] = {0.0, -0.0, NAN, kInfinity, -kInfinity, 6e-8, -1e-40, 3e4, -1.0, 1.0, 0.3, 1e30};
  Buffer buffer(type, n, offset);
  for (int64_t i = 0; i < n; ++i) {
    buffer.set(type, i,
               values == Values::kEighths  ? static_cast<double>(random.below(65) - 32) / 8.0
               : values == Values::kRandom ? 6.0 * random.uniform() - 3.0
                                           : kSpecial[random.below(std::size(kSpecial))]);
  }
  return buffer;
}

double tolerance(DType type, double scale) {
  constexpr double kRelative[] = {4e-6, 1e-13, 2e-3, 1.6e-2};
  return kRelative[static_cast<int>(type)] * scale + (type == DType::kFloat16 ? 0x1p-24 : 0.0);
}

void check_near(const Buffer& got, DType type, int64_t i, double wanted, double scale, const char* what) {
  const double allowed = tolerance(type, std::max(scale, std::fabs(wanted)));
  check(close(got.get(type, i), rounded(type, wanted), allowed), "%s [%ld of %ld] is %.9g, not %.9g", what,
        static_cast<long>(i), static_cast<long>(got.numel()), got.get(type, i), wanted);
}

void check_same(const Buffer& got, DType type, const std::vector<double>& wanted, const char* what) {
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double x = got.get(type, i);
    const double y = wanted[static_cast<size_t>(i)];
    check(same(x, y), "%s [%ld of %ld] is %g, not %g", what, static_cast<long>(i), static_cast<long>(got.numel()), x,
          y);
  }
  got.check_guards(what);
}

void Run::add_to_digest(double x) {
  if (std::isnan(x)) x = NAN;  // the sign and the payload of a NaN depend on the processor
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  digest = (digest ^ (std::isnan(x) ? 0x7ff8000000000000u : bits)) * 0x100000001b3u;
}

// Often around the sizes of vectors and words.
int64_t random_size(Random& random) {
  constexpr int64_t kEdges[] = {0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257};
  return random.below(3) == 0 ? 1 + random.below(1500) : kEdges[random.below(std::size(kEdges))];
}

}  // namespace harness
