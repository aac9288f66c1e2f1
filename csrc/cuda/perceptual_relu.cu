// Bias and ReLU of feature maps, and the distance between two feature maps at a tapped layer, forward and backward.
//
// Memory traffic: every map is read once and written once, in place. In addition 1 to 3 bits per element, or the
// differences.
#include "perceptual.cuh"

namespace pix2pixhd::cuda {
namespace {

static_assert(kMapChunk % 32 == 0, "a word must not cross blocks");

// The map of a kernel, and what the host computes for it.
template <typename T>
struct MapGrid {
  int64_t elements;  // per image,
  int64_t pixels;    // as are these
  ChannelVector<T> bias;
  const Compute<T>* weight;
  Divisor by_blocks;  // per image
  Divisor by_channels;

  explicit MapGrid(const MapView& map)
      : elements(map.elements),
        pixels(map.channels > 0 ? map.elements / map.channels : 0),
        bias(map.bias),
        weight(static_cast<const Compute<T>*>(map.weight)),
        by_blocks(map_blocks(map.elements)),
        by_channels(map.channels) {}
};

// The work of one block: `count` elements of one image from `begin` on. count is a multiple of 32.
struct MapChunk {
  int64_t begin;
  int64_t pixel;  // of the first element, among those of all images
  int count;
  uint32_t channel;  // of the first element
  bool whole;        // kMapChunk elements and 16-byte aligned
};

template <typename T>
__device__ inline MapChunk find_map_chunk(const MapGrid<T>& map, bool aligned) {
  const Division<uint32_t> block = map.by_blocks.divide(blockIdx.x);
  const int64_t image = block.quotient;
  const int64_t within = static_cast<int64_t>(block.remainder) * kMapChunk;
  const int count = static_cast<int>(map.elements - within < kMapChunk ? map.elements - within : kMapChunk);
  const Division<int64_t> first = map.by_channels.divide(within);
  return {image * map.elements + within, image * map.pixels + first.quotient, count,
          static_cast<uint32_t>(first.remainder), aligned && count == kMapChunk};
}

// The biases of the vectors of this thread, kRow<T> elements apart, loaded at once. Unused without a bias.
template <typename T, int kRows>
struct Biases {
  Pack<T, kVector<T>> row[kRows];

  __device__ Biases(const MapGrid<T>& map, const MapChunk& chunk, int first) {
    if (map.bias.data == nullptr) return;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const auto at = static_cast<uint32_t>(first + u * kRow<T>);
      row[u] = map.bias.template at<kVector<T>>(map.by_channels.divide(chunk.channel + at).remainder);
    }
  }
};

// The weight of the pixel of this chunk's element `at`.
template <typename T>
__device__ inline Compute<T> weight_at(const MapGrid<T>& map, const MapChunk& chunk, int at) {
  return map.weight[chunk.pixel + map.by_channels.divide(chunk.channel + static_cast<uint32_t>(at)).quotient];
}

template <bool kWhole, bool kMask, typename T>
__device__ inline void relu_chunk(T* x, uint32_t* mask, const MapGrid<T>& map, const MapChunk& chunk, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = chunk.count;
  Pack<T, V> pack[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) pack[u] = load<kWhole, V>(x, first + u * kRow<T>, count, aligned);
  const Biases<T, kRows> bias(map, chunk, first);
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    if (map.bias.data != nullptr) add_bias(pack[u], bias.row[u]);
    const unsigned bits = relu_vector(pack[u]);
    store<kWhole, V>(x, at, count, aligned, pack[u]);
    if constexpr (kMask) {
      const unsigned bytes = gather_bits<V>(bits);
      if (kWhole || at < count) put_bits<1>(mask, at, bytes);
    }
  }
}

template <typename T, bool kMask>
__global__ void __launch_bounds__(kThreads) relu_kernel(T* x, uint32_t* mask, MapGrid<T> map, bool aligned) {
  const MapChunk chunk = find_map_chunk(map, aligned);
  uint32_t* words = kMask ? mask + chunk.begin / 32 : nullptr;
  if (chunk.whole) {
    relu_chunk<true, kMask>(x + chunk.begin, words, map, chunk, true);
  } else {
    relu_chunk<false, kMask>(x + chunk.begin, words, map, chunk, aligned);
  }
}

// Pointers of the distance kernel. kept: sign words, or differences in the map's dtype. kept and mask are null when no
// gradient is required.
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

// Applies bias and ReLU to both sides. Returns this thread's contribution to the sum of weight * distance.
template <Distance kDistance, bool kWhole, bool kKeep, typename T>
__device__ inline double distance_chunk(const Sides<T>& sides, const MapGrid<T>& map, const MapChunk& chunk,
                                        bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = chunk.count;
  Pack<T, V> a[kRows];
  Pack<T, V> b[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    a[u] = load<kWhole, V>(sides.x, first + u * kRow<T>, count, aligned);
    b[u] = load<kWhole, V>(sides.y, first + u * kRow<T>, count, aligned);
  }
  const Biases<T, kRows> bias(map, chunk, first);
  double sum = 0.0;
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    if (map.bias.data != nullptr) add_bias(a[u], bias.row[u]);
    unsigned bits = relu_vector(a[u]);
    store<kWhole, V>(sides.x, at, count, aligned, a[u]);
    if (!sides.target_is_activated) {
      if (map.bias.data != nullptr) add_bias(b[u], bias.row[u]);
      relu_vector(b[u]);
      store<kWhole, V>(sides.y, at, count, aligned, b[u]);
    }
    if (!kWhole && at >= count) a[u] = b[u];  // padding: contributes no distance and no signs
    Compute<T> terms = 0;                     // of one vector, added before the conversion to double
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
      const double weight = map.weight != nullptr ? weight_at(map, chunk, at) : Compute<T>(1);
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
    relu_distance_kernel(Sides<T> sides, double* __restrict__ partial, MapGrid<T> map, bool aligned) {
  allow_overlap();
  const MapChunk chunk = find_map_chunk(map, aligned);
  const Sides<T> here = move_to<kDistance, kKeep>(sides, chunk.begin);
  const double sum = chunk.whole ? distance_chunk<kDistance, true, kKeep>(here, map, chunk, true)
                                 : distance_chunk<kDistance, false, kKeep>(here, map, chunk, aligned);
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total / static_cast<double>(map.elements);
}

// The term that the backward adds before it applies the mask: none, or the derivative of a distance.
enum class Term { kNone, kSigns, kDifferences };

template <typename T, Term kTerm>
struct BackwardArgs {
  T* __restrict__ grad;
  const uint32_t* __restrict__ mask;
  const void* __restrict__ kept;
  Compute<T> coefficient;
};

template <Term kTerm, bool kWhole, typename T>
__device__ inline void relu_backward_chunk(const BackwardArgs<T, kTerm>& args, const MapGrid<T>& map,
                                           const MapChunk& chunk, bool aligned) {
  constexpr int V = kVector<T>;
  constexpr int kRows = kMapChunk / kRow<T>;
  const int first = static_cast<int>(threadIdx.x) * V;
  const int count = chunk.count;
  T* grad = args.grad + chunk.begin;
  const uint32_t* mask = args.mask + chunk.begin / 32;
  Pack<T, V> pack[kRows];
  Pack<T, V> difference[kTerm == Term::kDifferences ? kRows : 1];
  unsigned passed[kRows] = {};
  unsigned positive[kRows] = {};
  unsigned negative[kRows] = {};
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    pack[u] = load<kWhole, V>(grad, at, count, aligned);
    if constexpr (kTerm == Term::kDifferences) {
      difference[u] = load<kWhole, V>(static_cast<const T*>(args.kept) + chunk.begin, at, count, aligned);
    }
    if (!kWhole && at >= count) continue;
    passed[u] = get_bits<1>(mask, at, 0);
    if constexpr (kTerm == Term::kSigns) {
      const uint32_t* signs = static_cast<const uint32_t*>(args.kept) + chunk.begin / 16;
      positive[u] = get_bits<2>(signs, at, 0);
      negative[u] = get_bits<2>(signs, at, 1);
    }
  }
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int at = first + u * kRow<T>;
    Compute<T> coefficient = args.coefficient;
    if constexpr (kTerm != Term::kNone) {
      if (map.weight != nullptr && (kWhole || at < count)) coefficient *= weight_at(map, chunk, at);
    }
#pragma unroll
    for (int c = 0; c < V; ++c) {
      T value = pack[u].value[c];
      if constexpr (kTerm == Term::kSigns) {
        const Compute<T> term = positive[u] >> c & 1u   ? coefficient
                                : negative[u] >> c & 1u ? -coefficient
                                                        : Compute<T>(0) * coefficient;  // NaN as in PyTorch
        value = narrow<T>(widen(value) + term);
      } else if constexpr (kTerm == Term::kDifferences) {
        value = narrow<T>(widen(value) + coefficient * widen(difference[u].value[c]));
      }
      pack[u].value[c] = passed[u] >> c & 1u ? value : narrow<T>(0.0);
    }
    store<kWhole, V>(grad, at, count, aligned, pack[u]);
  }
}

template <typename T, Term kTerm>
__global__ void __launch_bounds__(kThreads)
    relu_backward_kernel(BackwardArgs<T, kTerm> args, MapGrid<T> map, bool aligned) {
  const MapChunk chunk = find_map_chunk(map, aligned);
  if (chunk.whole) {
    relu_backward_chunk<kTerm, true>(args, map, chunk, true);
  } else {
    relu_backward_chunk<kTerm, false>(args, map, chunk, aligned);
  }
}

int64_t block_count(const MapView& map) { return map.batch * map_blocks(map.elements); }

template <typename T, Term kTerm>
int launch_backward(T* grad, const MapView& map, const uint32_t* mask, const void* kept, double coefficient,
                    Stream stream) {
  const BackwardArgs<T, kTerm> args{grad, mask, kept, static_cast<Compute<T>>(coefficient)};
  const bool aligned = is_aligned(grad) && (kTerm != Term::kDifferences || is_aligned(kept));
  return launch_blocks(relu_backward_kernel<T, kTerm>, block_count(map), stream, args, MapGrid<T>(map), aligned);
}

}  // namespace

int relu(void* x, DType type, const MapView& map, uint32_t* mask, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto kernel = mask != nullptr ? relu_kernel<T, true> : relu_kernel<T, false>;
    return launch_blocks(kernel, block_count(map), stream, static_cast<T*>(x), mask, MapGrid<T>(map), is_aligned(x));
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
    return launch_blocks(distance == Distance::kAbsolute ? l1 : mse, block_count(map), stream, sides, partial,
                         MapGrid<T>(map), is_aligned(input) && is_aligned(target));
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
