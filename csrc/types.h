// What the CPU and the CUDA kernels share: element types, the sign layout's size and the work split.
// No framework header is included here or in any kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pix2pixhd {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Losses of one tensor against a constant: f(x; c), summed over x.
enum class Pointwise : int32_t {
  kSquaredError = 0,  // (x - c)^2, LSGAN (arXiv 1611.04076) with c the label
  kHinge = 1,         // max(0, 1 - c*x), the discriminator's hinge with c = +1 (real) or -1 (fake)
  kLinear = 2,        // c*x, the generator's hinge and the Wasserstein loss with c = -1 or +1
  kLogistic = 3,      // (1 - c)*x - log(sigmoid(x)), binary cross entropy of the logit x with the label c
};
constexpr int32_t kPointwiseKinds = 4;

// How the perceptual loss compares two maps of VGG.
enum class Distance : int32_t {
  kAbsolute = 0,  // |x - y|; its backward needs the sign of x - y, 2 bits an element
  kSquared = 1,   // (x - y)^2; its backward needs x - y itself
};

// Two types meet in the wider of the two: float, unless one is double.
template <typename A, typename B>
struct Wider {
  using type = float;
};
template <typename B>
struct Wider<double, B> {
  using type = double;
};
template <typename A>
struct Wider<A, double> {
  using type = double;
};
template <>
struct Wider<double, double> {
  using type = double;
};

// Signs are kept as two bit planes, 2 bits an element: positive and negative; neither set means zero (a tie or NaN).
// Every tensor's signs are padded to whole tiles so that one size formula serves every kernel's own order inside a
// tile.
constexpr int64_t kSignTile = 256;                     // elements
constexpr int64_t kSignWordsPerTile = kSignTile / 16;  // 32-bit words: 16 elements of 2 bits each

constexpr int64_t sign_words(int64_t numel) { return (numel + kSignTile - 1) / kSignTile * kSignWordsPerTile; }

}  // namespace pix2pixhd
