#include "vec_neon.h"
// After the vector types, which the kernels use.
#include "kernels_impl.h"

namespace pix2pixhd::cpu {
constinit const Kernels kNeon = kernel_table("neon");
}  // namespace pix2pixhd::cpu
