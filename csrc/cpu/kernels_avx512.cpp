#include "vec_avx512.h"
// After the vector types, which the kernels use.
#include "kernels_impl.h"

namespace pix2pixhd::cpu {
const Kernels kAvx512 = {
    "avx512",          l1_forward,         l1_backward,
    pointwise_forward, pointwise_backward, relu,
    relu_distance,     relu_backward,      relu_distance_backward,
    relu_pool,         relu_pool_backward, norm_statistics,
    norm_act,          norm_act_sums,      norm_act_backward,
};
}  // namespace pix2pixhd::cpu
