// Launchers of the elementwise parts of VGG for the perceptual loss: as kernels.h, plain types and a stream in, a CUDA
// error code out. Nothing is launched for a tensor without elements.
//
// Bits are kept as on the CPU: word w of a plane holds the elements 32 * w to 32 * w + 31, the first in bit 0, for
// every type. Words of several planes alternate: (positive, negative) for signs, (column, row, alive) for pooling.
// Alive is what ReLU lets through, !(x <= 0): NaN too. Padding in the last word is zero.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pix2pixhd::cuda {

// Elements of a map per block, fixed as kBlockChunk is. VGG's last maps have a million elements, which are to fill a
// GPU too.
constexpr int64_t kMapChunk = 4096;

constexpr int64_t map_blocks(int64_t n) { return (n + kMapChunk - 1) / kMapChunk; }

// x = max(0, x) in place. mask: [ceil(n / 32)] words, or null.
int relu(void* x, DType type, int64_t n, uint32_t* mask, Stream stream);

// ReLU of both in place. partial: [map_blocks(n)], a block's sum of |input - target|, divided by n.
// signs: [2 * ceil(n / 32)], mask of input: [ceil(n / 32)] words; both or neither.
int relu_l1(void* input, void* target, DType type, int64_t n, uint32_t* signs, uint32_t* mask, double* partial,
            Stream stream);

// grad = mask * (grad + coefficient * sign) in place, rounded once; without signs, grad = mask * grad.
int relu_l1_backward(void* grad, DType type, int64_t n, const uint32_t* mask, const uint32_t* signs, double coefficient,
                     Stream stream);

// Of a map before pooling, in memory [batch, height, width, channels]; channels a multiple of 32.
struct MapShape {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// Max-pooling 2x2 of max(0, x), which leaves an odd last row or column out. The first of equals wins, and so does every
// NaN. out: [batch, height / 2, width / 2, channels]; codes: 3 words per 32 elements of out, or null.
int relu_pool(const void* x, void* out, DType type, const MapShape& shape, uint32_t* codes, Stream stream);

// Its gradient, every element of it: out [batch, height, width, channels] of grad, which has the pooled shape.
int relu_pool_backward(const void* grad, void* out, DType type, const MapShape& shape, const uint32_t* codes,
                       Stream stream);

}  // namespace pix2pixhd::cuda
