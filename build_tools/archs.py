"""The GPU architectures to build for: those asked for, else the visible GPUs', as far as this nvcc knows them."""

from __future__ import annotations

import os
import re
import subprocess

from build_tools.messages import BuildError, say

DEFAULT = "8.0;9.0+PTX"
OLDEST = (7, 0)  # the kernels do not compile for older ones


def _capability(arch: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", arch)[:2]
    return int(major), int(minor)


def supported(archs: list[str]) -> list[str]:
    """Those of the architectures that the kernels compile for."""
    return [arch for arch in archs if _capability(arch) >= OLDEST]


def wanted(torch) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, else the visible GPUs with PTX for newer ones, else the default."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not asked and torch.cuda.is_available():
        found = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
        asked = ";".join(f"{major}.{minor}" for major, minor in found) + "+PTX"
    archs = re.split(r"[;, ]+", (asked or DEFAULT).strip("; ,"))
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST must be numbers such as '8.0;9.0+PTX', got {arch!r} in {asked!r}.")
    return archs


def known(nvcc: str) -> list[tuple[int, int]]:
    """The compute capabilities that nvcc has code for, without the variants a and f; empty when it does not tell."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, errors="replace", check=False)
    return [(int(n) // 10, int(n) % 10) for n in re.findall(r"^compute_(\d+)\s*$", listed.stdout, re.MULTILINE)]


def fit(archs: list[str], capabilities: list[tuple[int, int]], nvcc: str) -> list[str]:
    """Replaces what nvcc does not know by what such a GPU runs all the same, and reports it.

    Architectures that the kernels do not support are left out. A GPU newer than nvcc compiles PTX of the newest
    architecture below its own. For one older than all of them there is nothing.

    Args:
        archs: As in TORCH_CUDA_ARCH_LIST.
        capabilities: What nvcc knows, as (major, minor); empty leaves all to nvcc's own messages.
        nvcc: Its name for the message.
    """
    fitted: dict[str, bool] = {}  # architecture -> with PTX
    for arch in archs:
        number, with_ptx = arch.removesuffix("+PTX"), arch.endswith("+PTX")
        major, minor = _capability(number)
        if not supported([arch]):
            say(f"{number} is left out: the CUDA kernels need compute capability 7.0 or newer")
            continue
        if capabilities and (major, minor) not in capabilities:
            older = [capability for capability in capabilities if capability < (major, minor)]
            if not older:
                say(f"{nvcc} does not build for {number} any more; left out")
                continue
            asked, number, with_ptx = number, "{}.{}".format(*max(older)), True
            say(f"{nvcc} does not know {asked}; taking {number}+PTX, which a GPU of {asked} compiles at first use")
        fitted[number] = fitted.get(number, False) or with_ptx
    return [number + "+PTX" * with_ptx for number, with_ptx in fitted.items()]
