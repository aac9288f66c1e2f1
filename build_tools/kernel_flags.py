"""The compiler's flags for C++ sources, and those of the CPU kernels for each instruction set."""

from __future__ import annotations

CXX_FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNDEBUG"]
# -ffp-contract=off: the same rounding with every instruction set. -fno-trapping-math changes no value; it lets GCC
# vectorise conditions as selects. -Wno-maybe-uninitialized: GCC 12 warns about its own AVX-512 header.
KERNEL_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# csrc/cpu/dispatch.cpp asks the processor for each of these at run time.
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]


def instruction_sets(machine: str) -> dict[str, list[str]]:
    """The instruction sets to compile ``csrc/cpu/kernels_NAME.cpp`` for, and their flags.

    Args:
        machine: As of ``platform.machine()``, for example x86_64 or aarch64.
    """
    machine = machine.lower()
    if machine in ("x86_64", "amd64"):
        return {"baseline": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
    if machine in ("aarch64", "arm64"):
        return {"baseline": [], "neon": []}  # a part of the base architecture
    return {"baseline": []}
