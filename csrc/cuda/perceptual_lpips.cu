// The tap of LPIPS: bias and ReLU of two feature maps, their distance, and half its derivative; see perceptual.h.
//
// A group of lanes of one warp shares a pixel, so that the sums over its channels need shuffles only. Memory traffic:
// both feature maps are read once and written once, and the derivative is written once. A lane keeps its channels in
// registers, up to kHeldChannels of a pixel; channels beyond are read again from the caches.
#include "perceptual.cuh"

namespace pix2pixhd::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kHeldChannels = 512;  // of VGG's last feature maps

template <typename T>
struct LpipsArgs {
  T* __restrict__ x;
  T* __restrict__ y;
  bool target_is_activated;
  ChannelVector<Compute<T>> linear;
  ChannelVector<T> bias;
  const Compute<T>* __restrict__ weight;
  Compute<T> kept_scale;
  T* __restrict__ kept;         // null when no gradient is required,
  uint32_t* __restrict__ mask;  // as is this
  int channels;
  int64_t pixels;     // per image,
  Divisor by_blocks;  // as are these
  bool aligned;
};

// The sum over the lanes of a group, in all of them. All lanes of the warp must call it.
template <int kGroup, typename C>
__device__ inline C group_sum(C value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  return __shfl_sync(kFullWarp, value, static_cast<int>(threadIdx.x) % kWarp / kGroup * kGroup);
}

// One pixel. Lane `lane` of a group has the vectors lane, lane + kGroup and so on of its channels. A group smaller than
// a warp has one vector per lane, see relu_lpips below.
template <int kGroup, bool kKeep, typename T>
struct Pixel {
  static constexpr int V = kVector<T>;
  static constexpr int kStep = kGroup * V;  // from one vector of a lane to its next
  static constexpr int kHeld = kGroup < kWarp ? 1 : kHeldChannels / (kWarp * V);
  using C = Compute<T>;
  const LpipsArgs<T>& args;
  int64_t begin;  // the pixel's first element
  bool exists;
  int first;  // the lane's first channel

  Pack<T, V> a[kHeld];
  Pack<T, V> b[kHeld];

  __device__ bool has(int c) const { return exists && c < args.channels; }

  __device__ int count() const { return exists ? args.channels : 0; }

  // Loads a vector of both feature maps. Zero beyond the pixel.
  __device__ void load_both(int c, Pack<T, V>& u, Pack<T, V>& v) const {
    u = load<false, V>(args.x + begin, c, count(), args.aligned);
    v = load<false, V>(args.y + begin, c, count(), args.aligned);
  }

  __device__ Pack<T, V> load_bias(int c) const {
    Pack<T, V> bias;
    if (args.bias.data != nullptr && has(c)) bias = args.bias.template at<V>(static_cast<uint32_t>(c));
    return bias;
  }

  // Applies bias and ReLU, unless they have been applied.
  __device__ void activate(int c, Pack<T, V>& u, Pack<T, V>& v, const Pack<T, V>& bias) const {
    const bool with_bias = args.bias.data != nullptr && has(c);
    if (with_bias) add_bias(u, bias);
    const unsigned bits = relu_vector(u);
    store<false, V>(args.x + begin, c, count(), args.aligned, u);
    if (!args.target_is_activated) {
      if (with_bias) add_bias(v, bias);
      relu_vector(v);
      store<false, V>(args.y + begin, c, count(), args.aligned, v);
    }
    if constexpr (kKeep) {
      const unsigned bytes = gather_bits<V>(bits);
      if (has(c)) put_bits<1>(args.mask, begin + c, bytes);
    }
  }

  // Loads and activates the lane's vectors that stay in registers: all loads precede the first store, because the
  // compiler must assume that a store may change what follows it.
  __device__ void load_held() {
    Pack<T, V> bias[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (k * kStep >= args.channels) break;
      load_both(first + k * kStep, a[k], b[k]);
      bias[k] = load_bias(first + k * kStep);
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (k * kStep >= args.channels) break;
      activate(first + k * kStep, a[k], b[k], bias[k]);
    }
  }

  // Calls f(channel, vector of x, vector of y) for the lane's vectors. All lanes make the same number of calls.
  template <bool kFirstPass, typename F>
  __device__ void for_each(F&& f) {
    if constexpr (kFirstPass) load_held();
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (k * kStep >= args.channels) break;
      f(first + k * kStep, a[k], b[k]);
    }
    if constexpr (kGroup == kWarp) {
      for (int k = kHeld; k * kStep < args.channels; ++k) {
        const int c = first + k * kStep;
        Pack<T, V> u;
        Pack<T, V> v;
        load_both(c, u, v);
        if constexpr (kFirstPass) activate(c, u, v, load_bias(c));
        f(c, u, v);
      }
    }
  }

  // Returns the pixel's distance, in all lanes of its group.
  __device__ C run() {
    C square_x = 0;
    C square_y = 0;
    for_each<true>([&](int, const Pack<T, V>& u, const Pack<T, V>& v) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const C p = widen(u.value[i]);
        const C q = widen(v.value[i]);
        square_x += p * p;
        square_y += q * q;
      }
    });
    const C norm = sqrt(group_sum<kGroup>(square_x));
    const C scale_x = C(1) / (norm + C(kLpipsEps));
    const C scale_y = C(1) / (sqrt(group_sum<kGroup>(square_y)) + C(kLpipsEps));
    C distance = 0;
    C along = 0;  // the sum of linear * (u - v) * u over the normalised channels
    for_each<false>([&](int c, const Pack<T, V>& u, const Pack<T, V>& v) {
      if (!has(c)) return;
      const Pack<C, V> linear = args.linear.template at<V>(static_cast<uint32_t>(c));
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const C p = widen(u.value[i]) * scale_x;
        const C difference = p - widen(v.value[i]) * scale_y;
        const C weighted = linear.value[i] * difference;
        distance += weighted * difference;
        along += weighted * p;
      }
    });
    distance = group_sum<kGroup>(distance);
    if constexpr (kKeep) {
      along = group_sum<kGroup>(along);
      // Zero, not NaN, for a norm of zero.
      const C radial = norm > C(kLpipsTiny) ? along / norm * scale_x * args.kept_scale : C(0);
      const C outer = scale_x * args.kept_scale;
      for_each<false>([&](int c, const Pack<T, V>& u, const Pack<T, V>& v) {
        if (!has(c)) return;
        const Pack<C, V> linear = args.linear.template at<V>(static_cast<uint32_t>(c));
        Pack<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const C p = widen(u.value[i]);
          const C difference = p * scale_x - widen(v.value[i]) * scale_y;
          out.value[i] = narrow_finite<T>(outer * (linear.value[i] * difference) - radial * p);
        }
        store<false, V>(args.kept + begin, c, args.channels, args.aligned, out);
      });
    }
    return distance;
  }
};

// Resident blocks per multiprocessor, from which the compiler derives the register limit: two have enough loads in
// flight. ptxas would spill registers to fit a third, and in float64 the second.
template <typename T>
constexpr int kResidentBlocks = sizeof(T) == 8 ? 1 : 2;

template <typename T, int kGroup, bool kKeep>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<T>)
    relu_lpips_kernel(LpipsArgs<T> args, double* __restrict__ partial) {
  allow_overlap();
  constexpr int kAtOnce = kThreads / kGroup;
  const Division<uint32_t> block = args.by_blocks.divide(blockIdx.x);
  const int64_t image = block.quotient;
  const int64_t first_pixel = static_cast<int64_t>(block.remainder) * kLpipsPixels;
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  double sum = 0.0;
  for (int step = 0; step < kLpipsPixels && first_pixel + step < args.pixels; step += kAtOnce) {
    const int64_t within = first_pixel + step + static_cast<int>(threadIdx.x) / kGroup;
    const bool exists = within < args.pixels;
    const int64_t pixel = image * args.pixels + (exists ? within : 0);
    Pixel<kGroup, kKeep, T> one{args, pixel * args.channels, exists, lane * kVector<T>, {}, {}};
    const Compute<T> distance = one.run();
    if (!exists || lane != 0) continue;
    const double weight = args.weight != nullptr ? args.weight[pixel] : Compute<T>(1);
    sum += weight * static_cast<double>(distance);
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total / static_cast<double>(args.pixels);
}

template <typename T, int kGroup>
int launch(const LpipsArgs<T>& args, double* partial, int64_t batch, Stream stream) {
  const auto kernel = args.kept != nullptr ? relu_lpips_kernel<T, kGroup, true> : relu_lpips_kernel<T, kGroup, false>;
  return launch_blocks(kernel, batch * lpips_blocks(args.pixels), stream, args, partial);
}

}  // namespace

int relu_lpips(void* input, void* target, bool target_is_activated, DType type, const MapView& map, const void* linear,
               double kept_scale, void* kept, uint32_t* mask, double* partial, Stream stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const int64_t pixels = map.channels > 0 ? map.elements / map.channels : 0;
    const LpipsArgs<T> args{static_cast<T*>(input),
                            static_cast<T*>(target),
                            target_is_activated,
                            ChannelVector<C>(linear),
                            ChannelVector<T>(map.bias),
                            static_cast<const C*>(map.weight),
                            static_cast<C>(kept_scale),
                            static_cast<T*>(kept),
                            mask,
                            static_cast<int>(map.channels),
                            pixels,
                            Divisor(lpips_blocks(pixels)),
                            is_aligned(input) && is_aligned(target) && (kept == nullptr || is_aligned(kept))};
    const int64_t vectors = map.channels / kVector<T>;
    if (vectors <= 8) return launch<T, 8>(args, partial, map.batch, stream);
    if (vectors <= 16) return launch<T, 16>(args, partial, map.batch, stream);
    return launch<T, kWarp>(args, partial, map.batch, stream);
  });
}

}  // namespace pix2pixhd::cuda
