"""The GPU architectures to build for: the requested ones or those of the visible GPUs, if nvcc supports them."""

from __future__ import annotations

import os
import re
import subprocess

from build_tools.messages import BuildError, say

DEFAULT = "8.0;9.0+PTX"
OLDEST = (7, 0)  # the kernels do not compile for older architectures


def _capability(arch: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", arch)[:2]
    return int(major), int(minor)


def supported(archs: list[str]) -> list[str]:
    """The architectures that the kernels support."""
    return [arch for arch in archs if _capability(arch) >= OLDEST]


def wanted(torch) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or else the visible GPUs plus PTX for newer ones, or else the default."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not requested and torch.cuda.is_available():
        found = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
        requested = ";".join(f"{major}.{minor}" for major, minor in found) + "+PTX"
    archs = re.split(r"[;, ]+", (requested or DEFAULT).strip("; ,"))
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST must list architectures such as '8.0;9.0+PTX', got {arch!r} in {requested!r}."
            )
    return archs


def known(nvcc: str) -> list[tuple[int, int]]:
    """The compute capabilities that nvcc supports, without the variants a and f. Empty if nvcc does not list them."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, errors="replace", check=False)
    return [(int(n) // 10, int(n) % 10) for n in re.findall(r"^compute_(\d+)\s*$", listed.stdout, re.MULTILINE)]


def fit(archs: list[str], capabilities: list[tuple[int, int]], nvcc: str) -> list[str]:
    """Replace architectures that nvcc does not support by ones that run on the same GPUs, and report it.

    Architectures that the kernels do not support are skipped. A GPU newer than nvcc can compile PTX of the newest
    architecture below its own. An architecture older than all that nvcc supports is skipped.

    Args:
        archs: Architectures in the format of TORCH_CUDA_ARCH_LIST.
        capabilities: The (major, minor) capabilities that nvcc supports. If empty, nothing is replaced.
        nvcc: The name of nvcc in the messages.
    """
    fitted: dict[str, bool] = {}  # architecture -> with PTX
    for arch in archs:
        number, with_ptx = arch.removesuffix("+PTX"), arch.endswith("+PTX")
        major, minor = _capability(number)
        if not supported([arch]):
            say(f"{number} is skipped: the CUDA kernels need compute capability 7.0 or newer")
            continue
        if capabilities and (major, minor) not in capabilities:
            older = [capability for capability in capabilities if capability < (major, minor)]
            if not older:
                say(f"{nvcc} no longer supports {number}; skipped")
                continue
            requested, number, with_ptx = number, "{}.{}".format(*max(older)), True
            say(
                f"{nvcc} does not support {requested}; using {number}+PTX, "
                f"which a GPU of {requested} compiles at first use"
            )
        fitted[number] = fitted.get(number, False) or with_ptx
    return [number + "+PTX" * with_ptx for number, with_ptx in fitted.items()]
