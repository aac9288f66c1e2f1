#include "vec_avx2.h"
// After the vector types, which the kernels use.
#include "kernels_impl.h"

namespace pix2pixhd::cpu {
constinit const Kernels kAvx2 = kernel_table("avx2");
}  // namespace pix2pixhd::cpu
