// ReLU of VGG's maps, after the bias, with the distance of two maps at a tapped layer, forward and backward.
//
// Limit: every map is read once and written once, in place; beside it 1 to 3 bits an element, or the differences.
#include "perceptual.cuh"

namespace pix2pixhd::cuda {
namespace {

static_assert(kMapChunk % 32 == 0, "a word belongs to one block");

// What one block works on: count elements from begin on, a multiple of 32, within one picture.
struct MapPart {
  int64_t begin;
  int count;
  int channel;  // of the first element
  bool whole;   // kMapChunk elements with 16-byte accesses
};

__device__ inline MapPart find_part(const MapView& map, bool aligned) {
  const auto per_picture = static_cast<uint64_t>((map.elements + kMapChunk - 1) / kMapChunk);
  const int64_t picture = blockIdx.x / per_picture;
  const int64_t within = static_cast<int64_t>(blockIdx.x % per_picture) * kMapChunk;
  const int count = static_cast<int>(map.elements - within < kMapChunk ? map.elements - within : kMapChunk);
  return {picture * map.elements + within, count, static_cast<int>(within % map.channels),
          aligned && count == kMapChunk};
}

// The bias of the channels of this part's element `at` and of the next ones, or null.
template <typename T>
__device__ inline const T* bias_at(const MapView& map, const MapPart& part, int at) {
  if (map.bias == nullptr) return nullptr;
  return static_cast<const T*>(map.bias) + (part.channel + at) % static_cast<unsigned>(map.channels);
}

// The weight of the pixel that this part's element `at` belongs to.
template <typename C>
__device__ inline C weight_at(const MapView& map, const MapPart& part, int at) {
  return static_cast<const C*>(map.weight)[(part.begin + at) / map.channels];
}

template <bool kWhole, bool kMask, typename T>
__device__ inline void relu_part(T* x, uint32_t* mask, const MapView& map, const MapPart& part, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = part.count;
  Pack<T, V> pack[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) pack[u] = load<kWhole, V>(x, first + u * kRow<T>, count, aligned);
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    const unsigned bits = relu_vector(pack[u], bias_at<T>(map, part, at));
    store<kWhole, V>(x, at, count, aligned, pack[u]);
    if constexpr (kMask) {
      const unsigned bytes = gather_bits<V>(bits);
      if (kWhole || at < count) put_bits<1>(mask, at, bytes);
    }
  }
}

template <typename T, bool kMask>
__global__ void __launch_bounds__(kThreads) relu_kernel(T* x, uint32_t* mask, MapView map, bool aligned) {
  const MapPart part = find_part(map, aligned);
  uint32_t* words = kMask ? mask + part.begin / 32 : nullptr;
  if (part.whole) {
    relu_part<true, kMask>(x + part.begin, words, map, part, true);
  } else {
    relu_part<false, kMask>(x + part.begin, words, map, part, aligned);
  }
}

// What the distance reads and leaves. kept: sign words, or differences of the map's type; null like mask where nobody
// wants a gradient.
template <typename T>
struct Sides {
  T* __restrict__ x;
  T* __restrict__ y;
  bool target_is_activated;
  void* __restrict__ kept;
  uint32_t* __restrict__ mask;
};

template <Distance kDistance, bool kKeep, typename T>
__device__ inline Sides<T> move_to(const Sides<T>& sides, int64_t begin) {
  Sides<T> moved{sides.x + begin, sides.y + begin, sides.target_is_activated, nullptr, nullptr};
  if constexpr (kKeep) {
    moved.mask = sides.mask + begin / 32;
    if constexpr (kDistance == Distance::kAbsolute) {
      moved.kept = static_cast<uint32_t*>(sides.kept) + begin / 16;
    } else {
      moved.kept = static_cast<T*>(sides.kept) + begin;
    }
  }
  return moved;
}

// ReLU of both sides; returns this thread's part of the sum.
template <Distance kDistance, bool kWhole, bool kKeep, typename T>
__device__ inline double distance_part(const Sides<T>& sides, const MapView& map, const MapPart& part, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = part.count;
  Pack<T, V> a[kRows];
  Pack<T, V> b[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    a[u] = load<kWhole, V>(sides.x, first + u * kRow<T>, count, aligned);
    b[u] = load<kWhole, V>(sides.y, first + u * kRow<T>, count, aligned);
  }
  double sum = 0.0;
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    const T* bias = bias_at<T>(map, part, at);
    unsigned bits = relu_vector(a[u], bias);
    store<kWhole, V>(sides.x, at, count, aligned, a[u]);
    if (!sides.target_is_activated) {
      relu_vector(b[u], bias);
      store<kWhole, V>(sides.y, at, count, aligned, b[u]);
    }
    if (!kWhole && at >= count) a[u] = b[u];  // padding: no distance, no signs
    Compute<T> terms = 0;                     // one vector's before double
    Pack<T, V> differences;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      const Compute<T> difference = widen(a[u].value[c]) - widen(b[u].value[c]);
      if constexpr (kDistance == Distance::kAbsolute) {
        terms += difference < 0 ? -difference : difference;
        bits |= difference > 0 ? 0x100u << c : difference < 0 ? 0x10000u << c : 0u;
      } else {
        terms += difference * difference;
        differences.value[c] = narrow<T>(difference);
      }
    }
    if (kWhole || at < count) {
      const double weight = map.weight != nullptr ? weight_at<Compute<T>>(map, part, at) : Compute<T>(1);
      sum += weight * static_cast<double>(terms);
    }
    if constexpr (kKeep) {
      const unsigned bytes = gather_bits<V>(bits);
      if (kWhole || at < count) {
        put_bits<1>(sides.mask, at, bytes);
        if constexpr (kDistance == Distance::kAbsolute) {
          put_bits<2>(static_cast<uint32_t*>(sides.kept), at, bytes >> 8);
        }
      }
      if constexpr (kDistance == Distance::kSquared) {
        store<kWhole, V>(static_cast<T*>(sides.kept), at, count, aligned, differences);
      }
    }
  }
  return sum;
}

template <typename T, Distance kDistance, bool kKeep>
__global__ void __launch_bounds__(kThreads)
    relu_distance_kernel(Sides<T> sides, double* __restrict__ partial, MapView map, bool aligned) {
  const MapPart part = find_part(map, aligned);
  const Sides<T> here = move_to<kDistance, kKeep>(sides, part.begin);
  const double sum = part.whole ? distance_part<kDistance, true, kKeep>(here, map, part, true)
                                : distance_part<kDistance, false, kKeep>(here, map, part, aligned);
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total / static_cast<double>(map.elements);
}

// What the backward adds before the mask: nothing, or the derivative of a distance.
enum class Term { kNone, kSigns, kDifferences };

template <typename T, Term kTerm>
struct BackwardArgs {
  T* __restrict__ grad;
  const uint32_t* __restrict__ mask;
  const void* __restrict__ kept;
  Compute<T> coefficient;
};

template <Term kTerm, bool kWhole, typename T>
__device__ inline void relu_backward_part(const BackwardArgs<T, kTerm>& args, const MapView& map, const MapPart& part,
                                          bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = part.count;
  T* grad = args.grad + part.begin;
  const uint32_t* mask = args.mask + part.begin / 32;
  Pack<T, V> pack[kRows];
  Pack<T, V> difference[kTerm == Term::kDifferences ? kRows : 1];
  unsigned alive[kRows] = {};
  unsigned positive[kRows] = {};
  unsigned negative[kRows] = {};
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    pack[u] = load<kWhole, V>(grad, at, count, aligned);
    if constexpr (kTerm == Term::kDifferences) {
      difference[u] = load<kWhole, V>(static_cast<const T*>(args.kept) + part.begin, at, count, aligned);
    }
    if (!kWhole && at >= count) continue;
    alive[u] = get_bits<1>(mask, at, 0);
    if constexpr (kTerm == Term::kSigns) {
      const uint32_t* signs = static_cast<const uint32_t*>(args.kept) + part.begin / 16;
      positive[u] = get_bits<2>(signs, at, 0);
      negative[u] = get_bits<2>(signs, at, 1);
    }
  }
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    Compute<T> coefficient = args.coefficient;
    if constexpr (kTerm != Term::kNone) {
      if (map.weight != nullptr && (kWhole || at < count)) coefficient *= weight_at<Compute<T>>(map, part, at);
    }
#pragma unroll
    for (int c = 0; c < V; ++c) {
      T value = pack[u].value[c];
      if constexpr (kTerm == Term::kSigns) {
        const Compute<T> term = positive[u] >> c & 1u   ? coefficient
                                : negative[u] >> c & 1u ? -coefficient
                                                        : Compute<T>(0);
        value = narrow<T>(widen(value) + term);
      } else if constexpr (kTerm == Term::kDifferences) {
        value = narrow<T>(widen(value) + coefficient * widen(difference[u].value[c]));
      }
      pack[u].value[c] = alive[u] >> c & 1u ? value : narrow<T>(0.0);
    }
    store<kWhole, V>(grad, at, count, aligned, pack[u]);
  }
}

template <typename T, Term kTerm>
__global__ void __launch_bounds__(kThreads)
    relu_backward_kernel(BackwardArgs<T, kTerm> args, MapView map, bool aligned) {
  const MapPart part = find_part(map, aligned);
  if (part.whole) {
    relu_backward_part<kTerm, true>(args, map, part, true);
  } else {
    relu_backward_part<kTerm, false>(args, map, part, aligned);
  }
}

int64_t block_count(const MapView& map) { return map.pictures * map_blocks(map.elements); }

template <typename T, Term kTerm>
int launch_backward(T* grad, const MapView& map, const uint32_t* mask, const void* kept, double coefficient,
                    Stream stream) {
  const BackwardArgs<T, kTerm> args{grad, mask, kept, static_cast<Compute<T>>(coefficient)};
  const bool aligned = is_aligned(grad) && (kTerm != Term::kDifferences || is_aligned(kept));
  return launch_blocks(relu_backward_kernel<T, kTerm>, block_count(map), stream, args, map, aligned);
}

}  // namespace

int relu(void* x, DType type, const MapView& map, uint32_t* mask, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = mask != nullptr ? relu_kernel<T, true> : relu_kernel<T, false>;
    return launch_blocks(kernel, block_count(map), stream, static_cast<T*>(x), mask, map, is_aligned(x));
  });
}

int relu_backward(void* grad, DType type, const MapView& map, const uint32_t* mask, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return launch_backward<T, Term::kNone>(static_cast<T*>(grad), map, mask, nullptr, 0.0, stream);
  });
}

int relu_distance(void* input, void* target, bool target_is_activated, DType type, const MapView& map,
                  Distance distance, void* kept, uint32_t* mask, double* partial, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto l1 = mask != nullptr ? relu_distance_kernel<T, Distance::kAbsolute, true>
                                    : relu_distance_kernel<T, Distance::kAbsolute, false>;
    const auto mse = mask != nullptr ? relu_distance_kernel<T, Distance::kSquared, true>
                                     : relu_distance_kernel<T, Distance::kSquared, false>;
    const Sides<T> sides{static_cast<T*>(input), static_cast<T*>(target), target_is_activated, kept, mask};
    return launch_blocks(distance == Distance::kAbsolute ? l1 : mse, block_count(map), stream, sides, partial, map,
                         is_aligned(input) && is_aligned(target));
  });
}

int relu_distance_backward(void* grad, DType type, const MapView& map, Distance distance, const uint32_t* mask,
                           const void* kept, double coefficient, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    T* g = static_cast<T*>(grad);
    return distance == Distance::kAbsolute
               ? launch_backward<T, Term::kSigns>(g, map, mask, kept, coefficient, stream)
               : launch_backward<T, Term::kDifferences>(g, map, mask, kept, 2.0 * coefficient, stream);
  });
}

}  // namespace pix2pixhd::cuda
