#include "vec_baseline.h"
// After the vector types, which the kernels use.
#include "kernels_impl.h"

namespace pix2pixhd::cpu {
constinit const Kernels kBaseline = kernel_table("baseline");
}  // namespace pix2pixhd::cpu
