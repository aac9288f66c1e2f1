// Launchers of the elementwise stages of the perceptual loss. As in kernels.h, they take plain types and a stream, and
// return a CUDA error code. Nothing is launched for an empty tensor.
//
// Bits are packed as on the CPU: word w of a plane holds the elements 32 * w to 32 * w + 31, the first in bit 0, for
// every dtype. Words of several planes alternate: (positive, negative) for signs, (column, row, passed) for pooling.
// `passed` marks the elements that ReLU passes, !(x <= 0), which include NaN.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pix2pixhd::cuda {

// Elements of a feature map per block, fixed for the same reason as kBlockChunk. It is smaller, so that VGG's last
// feature maps, of a million elements, still fill a GPU.
constexpr int64_t kMapChunk = 4096;

constexpr int64_t map_blocks(int64_t n) { return (n + kMapChunk - 1) / kMapChunk; }

// A batch of channels-last feature maps for the elementwise kernels. elements (per image) and channels are multiples
// of 32.
struct MapView {
  int64_t batch;
  int64_t elements;
  int64_t channels;
  const void* bias;    // [channels] in the map's dtype, added before ReLU; or null
  const void* weight;  // [batch, pixels], weights of the distance; double for a double map, otherwise float; or null
};

// x = max(0, x + bias) in place. mask: one word per 32 elements, or null.
int relu(void* x, DType type, const MapView& map, uint32_t* mask, Stream stream);

// grad = mask * grad in place.
int relu_backward(void* grad, DType type, const MapView& map, const uint32_t* mask, Stream stream);

// Applies bias and ReLU to input, and to target unless it is activated already, in place. partial:
// [batch, map_blocks(elements)], a block's sum of weight * distance, divided by elements. mask: of input; kept: 2 words
// of signs per 32 elements, or differences in the map's dtype, 16-byte aligned. mask and kept are both given or both
// null.
int relu_distance(void* input, void* target, bool target_is_activated, DType type, const MapView& map,
                  Distance distance, void* kept, uint32_t* mask, double* partial, Stream stream);

// grad = mask * (grad + coefficient * weight * derivative of the distance) in place, rounded once.
int relu_distance_backward(void* grad, DType type, const MapView& map, Distance distance, const uint32_t* mask,
                           const void* kept, double coefficient, Stream stream);

// Pixels of a feature map per block of relu_lpips, fixed for the same reason as kBlockChunk.
constexpr int64_t kLpipsPixels = 64;

constexpr int64_t lpips_blocks(int64_t pixels) { return (pixels + kLpipsPixels - 1) / kLpipsPixels; }

// The tap of LPIPS (arXiv 1801.03924). Applies bias and ReLU as relu_distance does. The distance of a pixel is the sum
// over the channels of linear * (u - v)^2, where u = x / (|x| + kLpipsEps), v likewise, and |x| is the norm over the
// channels. linear: [channels], of the type of the weights. partial: [batch, lpips_blocks(pixels)], a block's sum of
// weight * distance, divided by the pixels of the image. kept: kept_scale times half the derivative of each pixel's
// distance in input, in the map's dtype, Inf of float16 replaced by the largest finite number; mask: of input. kept and
// mask are both given or both null. The backward is relu_distance_backward of the squared distance.
int relu_lpips(void* input, void* target, bool target_is_activated, DType type, const MapView& map, const void* linear,
               double kept_scale, void* kept, uint32_t* mask, double* partial, Stream stream);

// The shape of a feature map before pooling. Memory order: [batch, height, width, channels]; channels is a multiple
// of 32.
struct MapShape {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// 2x2 max-pooling of max(0, x + bias), which drops an odd last row or column. Of equal elements the first is the
// maximum; NaN is always the maximum. out: [batch, height / 2, width / 2, channels]; codes: 3 words per 32 elements of
// out, or null.
int relu_pool(const void* x, void* out, DType type, const MapShape& shape, const void* bias, uint32_t* codes,
              Stream stream);

// The backward of relu_pool: writes every element of out [batch, height, width, channels] from grad, which has the
// pooled shape.
int relu_pool_backward(const void* grad, void* out, DType type, const MapShape& shape, const uint32_t* codes,
                       Stream stream);

}  // namespace pix2pixhd::cuda
