// Launchers of the elementwise parts of VGG for the perceptual loss: as kernels.h, plain types and a stream in, a CUDA
// error code out. Nothing is launched for a tensor without elements.
//
// Bits are kept as on the CPU: word w of a plane holds the elements 32 * w to 32 * w + 31, the first in bit 0, for
// every type. Words of several planes alternate: (positive, negative) for signs, (column, row, alive) for pooling.
// Alive is what ReLU lets through, !(x <= 0): NaN too.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pix2pixhd::cuda {

// Elements of a map per block, fixed as kBlockChunk is. VGG's last maps have a million elements, which are to fill a
// GPU too.
constexpr int64_t kMapChunk = 4096;

constexpr int64_t map_blocks(int64_t n) { return (n + kMapChunk - 1) / kMapChunk; }

// A map as the elementwise kernels see it, channels last: elements of one picture and channels, multiples of 32.
struct MapView {
  int64_t pictures;
  int64_t elements;
  int64_t channels;
  const void* bias;    // [channels] in the map's type, or null: added before ReLU
  const void* weight;  // [pictures, pixels] float, or double for double; or null: of each pixel's distance
};

// x = max(0, x + bias) in place. mask: a word per 32 elements, or null.
int relu(void* x, DType type, const MapView& map, uint32_t* mask, Stream stream);

// grad = mask * grad in place.
int relu_backward(void* grad, DType type, const MapView& map, const uint32_t* mask, Stream stream);

// ReLU of both in place, of target only unless it is activated. partial: [pictures, map_blocks(elements)], a block's
// sum of weight * distance, divided by elements. mask: that of input; kept: 2 words of signs per 32 elements, or the
// differences in the map's type, aligned as an allocation is; both or neither.
int relu_distance(void* input, void* target, bool target_is_activated, DType type, const MapView& map,
                  Distance distance, void* kept, uint32_t* mask, double* partial, Stream stream);

// grad = mask * (grad + coefficient * weight * derivative of the distance) in place, rounded once.
int relu_distance_backward(void* grad, DType type, const MapView& map, Distance distance, const uint32_t* mask,
                           const void* kept, double coefficient, Stream stream);

// Of a map before pooling, in memory [batch, height, width, channels]; channels a multiple of 32.
struct MapShape {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// Max-pooling 2x2 of max(0, x + bias), which leaves an odd last row or column out. The first of equals wins, and so
// does every NaN. out: [batch, height / 2, width / 2, channels]; codes: 3 words per 32 elements of out, or null.
int relu_pool(const void* x, void* out, DType type, const MapShape& shape, const void* bias, uint32_t* codes,
              Stream stream);

// Its gradient, every element of it: out [batch, height, width, channels] of grad, which has the pooled shape.
int relu_pool_backward(const void* grad, void* out, DType type, const MapShape& shape, const uint32_t* codes,
                       Stream stream);

}  // namespace pix2pixhd::cuda
