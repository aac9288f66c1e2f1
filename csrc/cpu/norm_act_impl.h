// Statistics and forward of norm_act on rows of one image [height, width, channels]. Included by kernels_impl.h, whose
// rules apply.
//
// Memory traffic: the statistics read x once; the forward reads x and the residual once and writes y once.
//
// Channels are the innermost dimension. An image of few channels, such as one channel of a contiguous tensor, is
// treated as one of more channels: several pixels form a group of `lanes` elements, and the parameters are repeated.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

constexpr int64_t kFewChannels = 64;
constexpr int64_t kGroup = 64;  // most elements of a group of pixels

template <typename T>
using NormCompute = typename Wider<T, T>::type;

// Elements of a group: of one pixel, or of several pixels of few channels.
inline int64_t group_lanes(int64_t channels) {
  return channels >= kFewChannels ? channels : kGroup / channels * channels;
}

// The parameters of each lane of a group.
template <typename C, int kCount>
struct LaneParameters {
  const C* row[kCount];
  C repeated[kCount][kGroup];

  LaneParameters(const void* parameters, int64_t channels) {
    const C* values = static_cast<const C*>(parameters);
    const int64_t lanes = group_lanes(channels);
    for (int k = 0; k < kCount; ++k) {
      row[k] = values + k * channels;
      if (lanes == channels) continue;
      for (int64_t lane = 0; lane < lanes; lane += channels) {
        for (int64_t c = 0; c < channels; ++c) repeated[k][lane + c] = row[k][c];
      }
      row[k] = repeated[k];
    }
  }
  LaneParameters(const LaneParameters&) = delete;
};

// Calls f(vector type, lane) for vectors of lanes, then for single lanes.
template <typename C, typename F>
inline void for_lanes(int64_t lanes, const F& f) {
  int64_t lane = 0;
  for (; lane + Vec<C>::kLanes <= lanes; lane += Vec<C>::kLanes) f(Vec<C>{}, lane);
  for (; lane < lanes; ++lane) {
    asm volatile("");  // Keeps the compiler from vectorising these few iterations: that doubles the code.
    f(One<C>{}, lane);
  }
}

// Calls f(first element, groups, lanes) for whole groups of consecutive pixels, then for the last incomplete group.
template <typename F>
inline void for_groups(int64_t pixels, int64_t channels, const F& f) {
  const int64_t lanes = group_lanes(channels);
  const int64_t elements = pixels * channels;
  const int64_t groups = elements / lanes;
  if (groups > 0) f(int64_t{0}, groups, lanes);
  if (groups * lanes < elements) f(groups * lanes, int64_t{1}, elements - groups * lanes);
}

// Terms that are added in the arithmetic's type, before their sum is added in double.
constexpr int64_t kTerms = 8;

// Adds the deviations from `origin`, and their squares, of `groups` groups.
template <typename T, typename C>
void add_deviations(const T* x, int64_t groups, int64_t stride, int64_t lanes, const C* origin, double* sums,
                    double* squares) {
  for (int64_t group = 0; group < groups; group += kTerms) {
    const int64_t end = groups - group < kTerms ? groups : group + kTerms;
    for_lanes<C>(lanes, [&](auto v, int64_t c) {
      using V = decltype(v);
      const auto zero = V::load(origin + c);
      auto sum = V::broadcast(C(0));
      auto square = V::broadcast(C(0));
      for (int64_t i = group; i < end; ++i) {
        const auto d = V::subtract(V::load(x + i * stride + c), zero);
        sum = V::add(sum, d);
        square = V::add(square, V::multiply(d, d));
      }
      V::accumulate(sums + c, sum);
      V::accumulate(squares + c, square);
    });
  }
}

// Most that the squared distance of a channel's mean from its first pixel may exceed the variance. The first pixel may
// be an outlier: the variance would then be the small difference of two large sums, in the precision of float.
constexpr double kMostCancellation = 16.0;

// Sum and squared deviations of one channel in double: where the sums in C cancel or overflow.
template <typename T>
void exact_deviations(const T* x, int64_t pixels, int64_t stride, double* sum, double* deviation) {
  double total = 0.0;
  for (int64_t i = 0; i < pixels; ++i) total += double(widen(x[i * stride]));
  const double mean = total / double(pixels);
  double squares = 0.0;
  for (int64_t i = 0; i < pixels; ++i) {
    const double d = double(widen(x[i * stride])) - mean;
    squares += d * d;
  }
  *sum = total;
  *deviation = squares;
}

template <typename T>
void norm_statistics_typed(const T* x, int64_t pixels, int64_t channels, double* sums) {
  using C = NormCompute<T>;
  constexpr int64_t kBlock = 1024;  // channels at a time, so that the sums stay in the L1 cache
  const int64_t lanes = group_lanes(channels);
  for (int64_t first = 0; first < channels; first += kBlock) {
    const int64_t block = channels - first < kBlock ? channels - first : kBlock;
    const int64_t width = lanes == channels ? block : lanes;
    C origin[kBlock];
    double sum[kBlock];
    double square[kBlock];
    for (int64_t lane = 0; lane < width; ++lane) {
      // Deviations from the first pixel: a large mean does not cancel. Inf - Inf would be NaN where the mean is Inf.
      const C value = C(widen(x[first + lane % channels]));
      origin[lane] = value - value == 0 ? value : C(0);
      sum[lane] = square[lane] = 0.0;
    }
    if (lanes == channels) {
      add_deviations(x + first, pixels, channels, block, origin, sum, square);
    } else {
      for_groups(pixels, channels, [&](int64_t at, int64_t groups, int64_t width) {
        add_deviations(x + at, groups, width, width, origin, sum, square);
      });
    }
    for (int64_t c = 0; c < block; ++c) {
      double total = 0.0;
      double squares = 0.0;
      for (int64_t lane = c; lane < width; lane += block) {
        total += sum[lane];
        squares += square[lane];
      }
      double* sum_of_channel = sums + first + c;
      double* deviation_of_channel = sums + channels + first + c;
      const double shift = total * total / double(pixels);
      const double deviation = squares - shift;
      *sum_of_channel = total + double(origin[c]) * double(pixels);
      *deviation_of_channel = deviation < 0.0 ? 0.0 : deviation;
      const bool is_finite = deviation - deviation == 0.0;
      if (!is_finite || shift > kMostCancellation * deviation) {
        exact_deviations(x + first + c, pixels, channels, sum_of_channel, deviation_of_channel);
      }
    }
  }
}

// act((x - mean) * scale + shift) + residual of `groups` groups.
template <typename T, bool kRelu, bool kResidual>
void norm_act_groups(const T* x, const T* residual, T* y, int64_t groups, int64_t lanes,
                     const NormCompute<T>* const* parameters, NormCompute<T> slope) {
  using C = NormCompute<T>;
  const C* offset = parameters[kOffset];
  const C* scale = parameters[kScale];
  const C* shift = parameters[kShift];
  for (int64_t group = 0; group < groups; ++group) {
    for_lanes<C>(lanes, [&](auto v, int64_t c) {
      using V = decltype(v);
      const auto d = V::subtract(V::load(x + c), V::load(offset + c));
      const auto z = V::add(V::multiply(d, V::load(scale + c)), V::load(shift + c));
      auto result = kRelu ? V::select(V::passes_relu(z), z, V::broadcast(C(0)))
                          : V::select(V::above_zero(z), z, V::multiply(z, V::broadcast(slope)));
      if constexpr (kResidual) result = V::add(result, V::load(residual + c));
      V::store(y + c, result);
    });
    x += lanes;
    y += lanes;
    if constexpr (kResidual) residual += lanes;
  }
}

// The index of the pixel that is copied to padded position `i`, along one dimension; -1 for zero padding.
inline int64_t padding_source(int64_t i, int64_t before, int64_t size, PaddingMode mode) {
  i -= before;
  if (i >= 0 && i < size) return i;
  if (mode == PaddingMode::kZero) return -1;
  if (mode == PaddingMode::kReflect) return i < 0 ? -i : 2 * (size - 1) - i;
  return i < 0 ? 0 : size - 1;
}

// Writes the padding left and right of a row whose image pixels are written.
template <typename T>
void pad_row(T* row, const PaddedImage& image) {
  const int64_t pixel = image.channels * sizeof(T);
  auto fill = [&](int64_t i) {
    const int64_t source = padding_source(i, image.left, image.width, image.mode);
    if (source < 0) {
      __builtin_memset(row + i * image.channels, 0, pixel);
    } else {
      __builtin_memcpy(row + i * image.channels, row + (image.left + source) * image.channels, pixel);
    }
  };
  for (int64_t i = 0; i < image.left; ++i) fill(i);
  for (int64_t i = image.left + image.width; i < image.padded_width(); ++i) fill(i);
}

template <typename T>
void norm_act_typed(const T* x, const T* residual, T* y, const NormRows& rows) {
  const bool relu = rows.activation == Activation::kRelu;
  const auto compute = residual != nullptr ? relu ? norm_act_groups<T, true, true> : norm_act_groups<T, false, true>
                       : relu              ? norm_act_groups<T, true, false>
                                           : norm_act_groups<T, false, false>;
  using C = NormCompute<T>;
  const PaddedImage& image = rows.image;
  const LaneParameters<C, 3> parameters(rows.parameters, image.channels);
  const C slope = rows.activation == Activation::kNone ? C(1) : static_cast<C>(rows.slope);
  auto run = [&](int64_t from, int64_t to, int64_t pixels) {
    for_groups(pixels, image.channels, [&](int64_t at, int64_t groups, int64_t lanes) {
      compute(x + from + at, residual == nullptr ? nullptr : residual + from + at, y + to + at, groups, lanes,
              parameters.row, slope);
    });
  };
  const int64_t row = image.width * image.channels;
  if (!image.is_padded()) return run(rows.first * row, rows.first * row, (rows.last - rows.first) * image.width);
  const int64_t padded_row = image.padded_width() * image.channels;
  for (int64_t i = rows.first; i < rows.last; ++i) {
    const int64_t source = padding_source(i, image.top, image.height, image.mode);
    if (source < 0) {
      __builtin_memset(y + i * padded_row, 0, padded_row * sizeof(T));
      continue;
    }
    run(source * row, i * padded_row + image.left * image.channels, image.width);
    pad_row(y + i * padded_row, image);
  }
}

void norm_statistics(const void* x, DType type, int64_t pixels, int64_t channels, double* sums) {
  with_type(type, [&](auto t) { norm_statistics_typed(static_cast<const decltype(t)*>(x), pixels, channels, sums); });
}

void norm_act(const void* x, const void* residual, void* y, DType type, const NormRows& rows) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    norm_act_typed(static_cast<const T*>(x), static_cast<const T*>(residual), static_cast<T*>(y), rows);
  });
}

}  // namespace
}  // namespace pix2pixhd::cpu
