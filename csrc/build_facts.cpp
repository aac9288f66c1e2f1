// The Python module pix2pixhd._C: versions, compiler and targets of this build. It depends on neither torch nor CUDA,
// so it can be imported even when the operators cannot be loaded.
#include <pybind11/pybind11.h>

// It has only constants, so it does not need the global interpreter lock of a free-threaded Python.
PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Build information of pix2pixhd.";
  m.attr("version") = PIX2PIXHD_VERSION;
  m.attr("torch_version") = PIX2PIXHD_TORCH;  // at build time; the operators run with torch 2.10 and newer
  m.attr("compiler") = PIX2PIXHD_COMPILER;
  m.attr("instruction_sets") = PIX2PIXHD_INSTRUCTION_SETS;  // comma-separated
  m.attr("cuda_version") = PIX2PIXHD_CUDA;                  // version of nvcc; empty without CUDA kernels
  m.attr("cuda_archs") = PIX2PIXHD_CUDA_ARCHS;              // format of TORCH_CUDA_ARCH_LIST
}
