// Definitions that the CPU and the CUDA kernels share: element types, kinds of losses, and the size of the packed
// signs. Neither this file nor any kernel includes a framework header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pix2pixhd {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Losses of a tensor against a constant c: the sum of f(x; c) over its elements x.
enum class Pointwise : int32_t {
  kSquaredError = 0,  // (x - c)^2, LSGAN (arXiv 1611.04076), c is the label
  kHinge = 1,         // max(0, 1 - c*x), the discriminator's hinge loss, c = +1 (real) or -1 (fake)
  kLinear = 2,        // c*x, the generator's hinge loss and the Wasserstein loss, c = -1 or +1
  kLogistic = 3,      // (1 - c)*x - log(sigmoid(x)), binary cross entropy of the logit x, c is the label
};
constexpr int32_t kPointwiseKinds = 4;

// The distance between two feature maps in the perceptual loss.
enum class Distance : int32_t {
  kAbsolute = 0,  // |x - y|; its backward needs the sign of x - y, 2 bits per element
  kSquared = 1,   // (x - y)^2; its backward needs x - y
};

// LPIPS (arXiv 1801.03924) divides the channels of a pixel by their norm plus kLpipsEps, as the lpips package does.
// Below kLpipsTiny the derivative of the norm is negligible and is left out.
constexpr double kLpipsEps = 1e-10;
constexpr double kLpipsTiny = 1e-18;

// norm_act: the activation after the normalisation, and the padding after both. The values are those of the operators'
// arguments.
enum class Activation : int32_t { kNone = 0, kRelu = 1, kLeakyRelu = 2 };
enum class PaddingMode : int32_t { kZero = 0, kReflect = 1, kReplicate = 2 };

// An image of channels [height, width, channels], and the padding around it. One channel of a contiguous tensor is an
// image of one channel.
struct PaddedImage {
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t left;
  int64_t right;
  int64_t top;
  int64_t bottom;
  PaddingMode mode;

  int64_t pixels() const { return height * width; }
  int64_t padded_height() const { return height + top + bottom; }
  int64_t padded_width() const { return width + left + right; }
  bool is_padded() const { return left + right + top + bottom > 0; }
};

// The type of the arithmetic on two element types: double if either is double, otherwise float.
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

// A gradient is a coefficient, upstream * weight / numel in double, times the slope of each element. Outside these
// limits the coefficient would overflow or lose digits in float, although the product may be an ordinary number. It is
// then applied as two factors, of which the second is a power of two.
constexpr double kSmallestCoefficient = 0x1p-126;
constexpr double kLargestCoefficient = 0x1p126;
constexpr double kCoefficientScale = 0x1p100;

// Signs are packed as two bit planes, positive and negative: 2 bits per element. Neither bit is set for a difference of
// zero or NaN. Each tensor's signs are padded to whole tiles, so that the size does not depend on the order that a
// kernel uses inside a tile.
constexpr int64_t kSignTile = 256;                     // elements
constexpr int64_t kSignWordsPerTile = kSignTile / 16;  // 32-bit words: 16 elements of 2 bits each

constexpr int64_t sign_words(int64_t numel) { return (numel + kSignTile - 1) / kSignTile * kSignWordsPerTile; }

}  // namespace pix2pixhd
