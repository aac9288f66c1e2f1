#include "vec_avx512.h"
// After the vector types, which the kernels use.
#include "kernels_impl.h"

namespace pix2pixhd::cpu {
constinit const Kernels kAvx512 = kernel_table("avx512");
}  // namespace pix2pixhd::cpu
