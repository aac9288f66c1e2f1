// The importable module pix2pixhd._C: what was built, for what. It depends on neither torch nor CUDA, so that it still
// answers when the operators do not load.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts of this build of pix2pixhd.";
  m.attr("version") = PIX2PIXHD_VERSION;
  m.attr("torch_version") = PIX2PIXHD_TORCH;  // built against; runs under 2.10 and newer
  m.attr("compiler") = PIX2PIXHD_COMPILER;
  m.attr("instruction_sets") = PIX2PIXHD_INSTRUCTION_SETS;  // comma-separated
  m.attr("cuda_version") = PIX2PIXHD_CUDA;                  // of nvcc; empty without CUDA kernels
  m.attr("cuda_archs") = PIX2PIXHD_CUDA_ARCHS;              // as in TORCH_CUDA_ARCH_LIST
}
