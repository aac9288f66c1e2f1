// Backward of norm_act on rows of one image. Included by kernels_impl.h, whose rules apply.
//
// Memory traffic: two passes over grad and source, the sums and the gradient, and one write.
//
// The gradient of a pixel is the sum over the padded positions that it was copied to, in a fixed order. Only pixels
// near the border of a reflected or replicated image have several; the others are read from grad in place.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "norm_act_impl.h"
#include "scalar.h"

namespace pix2pixhd::cpu {
namespace {

constexpr int64_t kSegment = 2048;  // elements of a row that are gathered at a time: they stay in the L1 cache

// A part of a row: `groups` groups of `lanes` elements. Parameters and sums begin at `lane`.
template <typename T, typename G>
struct Segment {
  const G* grad;
  int64_t grad_stride;  // elements from a group to the next
  const T* source;
  int64_t source_stride;  // of x and of the results too
  int64_t groups;
  int64_t lanes;
  int64_t lane;
  int64_t at;  // first element, within the image
};

// What is computed of each segment.
template <typename T>
struct SegmentWork {
  using C = NormCompute<T>;
  const C* const* parameters;
  C slope;  // for negative elements; without an activation 1
  C inverse_slope;
  double* sums;  // of the gradient, per lane
  double* products;
  T* grad_x;
  T* grad_residual;  // or null

  SegmentWork(const C* const* parameters_, const NormRows& rows)
      : parameters(parameters_),
        slope(rows.activation == Activation::kNone ? C(1) : static_cast<C>(rows.slope)),
        inverse_slope(C(1) / slope) {}
};

template <typename T, typename G>
using SegmentFunction = void (*)(const Segment<T, G>&, const SegmentWork<T>&);

// Gradients in float16 are always gathered, as half precision on a CPU is bfloat16: less code to compile.
template <typename T>
constexpr bool kReadsInPlace = true;
template <>
constexpr bool kReadsInPlace<Half> = false;

template <typename T, bool kInPlace>
struct InPlaceType {
  using type = T;
};
template <typename T>
struct InPlaceType<T, false> {
  using type = NormCompute<T>;
};
template <typename T>
using InPlace = typename InPlaceType<T, kReadsInPlace<T>>::type;

// A function of segments, for gradients that are read in place and for gathered ones.
template <typename T>
struct SegmentFunctions {
  SegmentFunction<T, InPlace<T>> in_place;
  SegmentFunction<T, NormCompute<T>> gathered;
};

// The gradient after the activation's derivative, and z - kOffset, of one vector.
template <bool kRelu, bool kOutput, typename V, typename C, typename T, typename G>
inline auto masked_gradient(V, const G* grad, const T* source, const C* const* parameters, int64_t c, C slope,
                            C inverse_slope) {
  struct Pair {
    decltype(V::broadcast(C(0))) gradient, centred;
  };
  const auto g = V::load(grad);
  auto z = V::load(source);
  auto sign = z;
  if constexpr (kOutput && !kRelu) z = V::select(V::above_zero(z), z, V::multiply(z, V::broadcast(inverse_slope)));
  const auto d = V::subtract(z, V::load(parameters[kOffset] + c));
  if constexpr (!kOutput) {
    sign = V::add(V::multiply(d, V::load(parameters[kScale] + c)), V::load(parameters[kShift] + c));
  }
  const auto masked = kRelu ? V::select(V::passes_relu(sign), g, V::broadcast(C(0)))
                            : V::select(V::above_zero(sign), g, V::multiply(g, V::broadcast(slope)));
  return Pair{masked, d};
}

template <bool kRelu, bool kOutput, typename T, typename G>
void add_sums(const Segment<T, G>& segment_, const SegmentWork<T>& work_) {
  using C = NormCompute<T>;
  const Segment<T, G> segment = segment_;  // Copies: the compiler need not expect that a store changes them.
  const SegmentWork<T> work = work_;
  auto pair_at = [&](auto v, int64_t group, int64_t c) {
    return masked_gradient<kRelu, kOutput>(v, segment.grad + group * segment.grad_stride + c,
                                           segment.source + group * segment.source_stride + c, work.parameters,
                                           segment.lane + c, work.slope, work.inverse_slope);
  };
  double* sums = work.sums + segment.lane;
  double* products = work.products + segment.lane;
  for (int64_t group = 0; group < segment.groups; group += kTerms) {
    const int64_t end = segment.groups - group < kTerms ? segment.groups : group + kTerms;
    for_lanes<C>(segment.lanes, [&](auto v, int64_t c) {
      using V = decltype(v);
      auto sum = V::broadcast(C(0));
      auto product = V::broadcast(C(0));
      for (int64_t i = group; i < end; ++i) {
        const auto pair = pair_at(v, i, c);
        sum = V::add(sum, pair.gradient);
        product = V::add(product, V::multiply(pair.gradient, pair.centred));
      }
      V::accumulate(sums + c, sum);
      V::accumulate(products + c, product);
    });
  }
}

template <bool kRelu, bool kOutput, bool kStatistics, typename T, typename G>
void write_gradient(const Segment<T, G>& segment_, const SegmentWork<T>& work_) {
  const Segment<T, G> segment = segment_;  // copies, as in add_sums
  const SegmentWork<T> work = work_;
  const auto* factor = work.parameters[kGradient];
  const auto* centred = work.parameters[kCentred];
  const auto* constant = work.parameters[kConstant];
  for (int64_t group = 0; group < segment.groups; ++group) {
    const G* grad = segment.grad + group * segment.grad_stride;
    const T* source = segment.source + group * segment.source_stride;
    T* out = work.grad_x + segment.at + group * segment.source_stride;
    for_lanes<NormCompute<T>>(segment.lanes, [&](auto v, int64_t lane) {
      using V = decltype(v);
      const int64_t c = segment.lane + lane;
      const auto pair = masked_gradient<kRelu, kOutput>(v, grad + lane, source + lane, work.parameters, c, work.slope,
                                                        work.inverse_slope);
      auto result = pair.gradient;
      if constexpr (kStatistics) {
        const auto mean = V::add(V::multiply(V::load(centred + c), pair.centred), V::load(constant + c));
        result = V::add(result, mean);
      }
      V::store(out + lane, V::multiply(V::load(factor + c), result));
    });
  }
}

template <typename T, typename G>
void write_residual(const Segment<T, G>& segment, const SegmentWork<T>& work) {
  for (int64_t group = 0; group < segment.groups; ++group) {
    const G* grad = segment.grad + group * segment.grad_stride;
    T* out = work.grad_residual + segment.at + group * segment.source_stride;
    for_lanes<NormCompute<T>>(segment.lanes, [&](auto v, int64_t lane) {
      using V = decltype(v);
      V::store(out + lane, V::load(grad + lane));
    });
  }
}

// The rows of a backward call and the gathering of their gradient.
template <typename T>
class GradientRows {
 public:
  using C = NormCompute<T>;
  GradientRows(const T* grad, const T* source, const NormRows& rows)
      : grad_(grad), source_(source), rows_(rows), image_(rows.image) {}

  // Calls the function for all parts of the rows.
  void for_each_segment(const SegmentFunctions<T>& f, const SegmentWork<T>& work) {
    if constexpr (!kReadsInPlace<T>) {
      for (int64_t row = rows_.first; row < rows_.last; ++row) gathered(row, 0, image_.width, f, work);
      return;
    }
    if (!image_.is_padded()) {
      return direct((rows_.first * image_.width) * image_.channels, rows_.first, 0,
                    (rows_.last - rows_.first) * image_.width, f, work);
    }
    const bool in_place = image_.mode == PaddingMode::kZero;
    const bool reflect = image_.mode == PaddingMode::kReflect;
    // Columns before `begin` and from `end` on are sources of padding.
    int64_t begin = in_place || image_.left == 0 ? 0 : reflect ? image_.left + 1 : 1;
    int64_t end = in_place || image_.right == 0 ? image_.width : image_.width - (reflect ? image_.right + 1 : 1);
    // A split row of few channels would have short vectors at both sides.
    if (image_.channels < kFewChannels && (begin > 0 || end < image_.width)) begin = end = image_.width;
    if (end < begin) begin = end = image_.width;
    for (int64_t row = rows_.first; row < rows_.last; ++row) {
      if (!in_place && is_vertical_source(row)) {
        gathered(row, 0, image_.width, f, work);
        continue;
      }
      gathered(row, 0, begin, f, work);
      if (end > begin) direct(element(row, begin), row, begin, end - begin, f, work);
      gathered(row, end, image_.width, f, work);
    }
  }

 private:
  int64_t element(int64_t row, int64_t column) const { return (row * image_.width + column) * image_.channels; }
  const T* grad_at(int64_t padded_row, int64_t padded_column) const {
    return grad_ + (padded_row * image_.padded_width() + padded_column) * image_.channels;
  }

  // Calls f(position) for the padding along one dimension that was copied from pixel `i`, in ascending order.
  template <typename F>
  void for_copies(int64_t i, int64_t before, int64_t size, int64_t after, const F& f) const {
    for (int64_t p = 0; p < before; ++p) {
      if (padding_source(p, before, size, image_.mode) == i) f(p);
    }
    for (int64_t p = before + size; p < before + size + after; ++p) {
      if (padding_source(p, before, size, image_.mode) == i) f(p);
    }
  }

  bool is_vertical_source(int64_t row) const {
    bool found = false;
    for_copies(row, image_.top, image_.height, image_.bottom, [&](int64_t) { found = true; });
    return found;
  }

  // `count` pixels whose gradient is read in place.
  void direct(int64_t at, int64_t row, int64_t column, int64_t count, const SegmentFunctions<T>& f,
              const SegmentWork<T>& work) {
    if constexpr (kReadsInPlace<T>) {
      const T* grad = grad_at(row + image_.top, column + image_.left);
      for_groups(count, image_.channels, [&](int64_t first, int64_t groups, int64_t lanes) {
        f.in_place({grad + first, lanes, source_ + at + first, lanes, groups, lanes, 0, at + first}, work);
      });
    }
  }

  // The pixels [begin, end) of a row, by way of the buffer.
  void gathered(int64_t row, int64_t begin, int64_t end, const SegmentFunctions<T>& f, const SegmentWork<T>& work) {
    const int64_t channels = image_.channels;
    const int64_t block = channels < kSegment ? channels : kSegment;
    for (int64_t c = 0; c < channels; c += block) {
      const int64_t width = channels - c < block ? channels - c : block;
      for (int64_t first = begin; first < end; first += kSegment / width) {
        const int64_t last = end - first < kSegment / width ? end : first + kSegment / width;
        gather(row, first, last, c, width);
        const int64_t at = element(row, first) + c;
        if (width == channels) {
          for_groups(last - first, channels, [&](int64_t start, int64_t groups, int64_t lanes) {
            f.gathered({buffer_ + start, lanes, source_ + at + start, lanes, groups, lanes, 0, at + start}, work);
          });
        } else {
          f.gathered({buffer_, width, source_ + at, channels, last - first, width, c, at}, work);
        }
      }
    }
  }

  // Writes to the buffer the gradient of the pixels [first, last) of a row, `width` channels from c on.
  void gather(int64_t row, int64_t first, int64_t last, int64_t c, int64_t width) {
    add_row<true>(row + image_.top, first, last, c, width);
    for_copies(row, image_.top, image_.height, image_.bottom,
               [&](int64_t padded) { add_row<false>(padded, first, last, c, width); });
  }

  template <bool kFirst>
  void add_row(int64_t padded, int64_t first, int64_t last, int64_t c, int64_t width) {
    const T* from = grad_at(padded, image_.left + first) + c;
    if (width == image_.channels) {
      add<kFirst>(buffer_, from, (last - first) * width);
    } else {
      for (int64_t i = 0; i < last - first; ++i) add<kFirst>(buffer_ + i * width, from + i * image_.channels, width);
    }
    auto add_column = [&](int64_t p) {
      const int64_t source = padding_source(p, image_.left, image_.width, image_.mode);
      if (source >= first && source < last) {
        add<false>(buffer_ + (source - first) * width, grad_at(padded, p) + c, width);
      }
    };
    for (int64_t p = 0; p < image_.left; ++p) add_column(p);
    for (int64_t p = image_.left + image_.width; p < image_.padded_width(); ++p) add_column(p);
  }

  template <bool kFirst>
  __attribute__((noinline)) static void add(C* to, const T* from, int64_t count) {
    for_lanes<C>(count, [&](auto v, int64_t i) {
      using V = decltype(v);
      V::store(to + i, kFirst ? V::load(from + i) : V::add(V::load(to + i), V::load(from + i)));
    });
  }

  const T* grad_;
  const T* source_;
  const NormRows& rows_;
  const PaddedImage& image_;
  C buffer_[kSegment];
};

template <typename T, bool kRelu, bool kOutput>
constexpr SegmentFunctions<T> kSums = {add_sums<kRelu, kOutput, T, InPlace<T>>,
                                       add_sums<kRelu, kOutput, T, NormCompute<T>>};

template <typename T, bool kRelu, bool kOutput, bool kStatistics>
constexpr SegmentFunctions<T> kGradients = {write_gradient<kRelu, kOutput, kStatistics, T, InPlace<T>>,
                                            write_gradient<kRelu, kOutput, kStatistics, T, NormCompute<T>>};

template <typename T>
constexpr SegmentFunctions<T> kResiduals = {write_residual<T, InPlace<T>>, write_residual<T, NormCompute<T>>};

template <typename T>
void norm_act_sums_typed(const T* grad, const T* source, const NormRows& rows, double* sums) {
  const int64_t channels = rows.image.channels;
  const LaneParameters<NormCompute<T>, 3> parameters(rows.parameters, channels);
  SegmentWork<T> work(parameters.row, rows);
  const int64_t lanes = group_lanes(channels);
  double repeated[2][kGroup];
  work.sums = lanes == channels ? sums : repeated[0];
  work.products = lanes == channels ? sums + channels : repeated[1];
  for (int64_t lane = 0; lane < lanes; ++lane) work.sums[lane] = work.products[lane] = 0.0;
  const bool relu = rows.activation == Activation::kRelu;
  const SegmentFunctions<T> add = rows.source_is_output ? relu ? kSums<T, true, true> : kSums<T, false, true>
                                  : relu                ? kSums<T, true, false>
                                                        : kSums<T, false, false>;
  GradientRows<T>(grad, source, rows).for_each_segment(add, work);
  if (lanes == channels) return;
  for (int64_t c = 0; c < channels; ++c) {
    sums[c] = sums[channels + c] = 0.0;
    for (int64_t lane = c; lane < lanes; lane += channels) {
      sums[c] += work.sums[lane];
      sums[channels + c] += work.products[lane];
    }
  }
}

template <typename T, bool kStatistics>
SegmentFunctions<T> gradient_function(const NormRows& rows) {
  const bool relu = rows.activation == Activation::kRelu;
  // ReLU cannot be inverted, so its output is a source only if the statistics are constants.
  if (rows.source_is_output) {
    return relu && !kStatistics ? kGradients<T, true, true, false> : kGradients<T, false, true, kStatistics>;
  }
  return relu ? kGradients<T, true, false, kStatistics> : kGradients<T, false, false, kStatistics>;
}

template <typename T>
void norm_act_backward_typed(const T* grad, const T* source, T* grad_x, T* grad_residual, const NormRows& rows) {
  const LaneParameters<NormCompute<T>, kNormParameters> parameters(rows.parameters, rows.image.channels);
  SegmentWork<T> work(parameters.row, rows);
  work.grad_x = grad_x;
  work.grad_residual = grad_residual;
  GradientRows<T> gradients(grad, source, rows);
  if (grad_residual != nullptr) gradients.for_each_segment(kResiduals<T>, work);
  if (grad_x == nullptr) return;
  gradients.for_each_segment(
      rows.through_statistics ? gradient_function<T, true>(rows) : gradient_function<T, false>(rows), work);
}

void norm_act_sums(const void* grad, const void* source, DType type, const NormRows& rows, double* sums) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    norm_act_sums_typed(static_cast<const T*>(grad), static_cast<const T*>(source), rows, sums);
  });
}

void norm_act_backward(const void* grad, const void* source, void* grad_x, void* grad_residual, DType type,
                       const NormRows& rows) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    norm_act_backward_typed(static_cast<const T*>(grad), static_cast<const T*>(source), static_cast<T*>(grad_x),
                            static_cast<T*>(grad_residual), rows);
  });
}

}  // namespace
}  // namespace pix2pixhd::cpu
