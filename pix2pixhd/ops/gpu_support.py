"""Whether the CUDA kernels of this build support a GPU."""

from __future__ import annotations

import functools
import re

import torch

from pix2pixhd.errors import install_command
from pix2pixhd.ops import extension

# Binary compatibility within a major version holds among discrete GPUs, but not with or among Tegra boards.
_TEGRA = ((5, 3), (6, 2), (7, 2), (8, 7))


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for these architectures run on a GPU of this compute capability.

    The rules of the CUDA programming guide: machine code for X.Y, or for a family, X.Yf, runs on X.Z with Z >= Y. Code
    for a specific architecture, X.Ya, runs on X.Y only, even as PTX. Plain PTX runs on X.Y and every newer GPU.

    Args:
        archs: Architectures as in TORCH_CUDA_ARCH_LIST: numbers with ``a``, ``f`` and ``+PTX``, separated by ``;``.
        capability: Major and minor version, as ``torch.cuda.get_device_capability`` returns them.

    Example:
        >>> covers("8.0;9.0a", (8, 6)), covers("8.0;9.0a", (9, 0)), covers("8.0;9.0a", (10, 0))
        (True, True, False)
    """
    for major, minor, variant, ptx in re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", archs):
        built = (int(major), int(minor))
        if built == capability:
            return True
        on_tegra = built in _TEGRA or capability in _TEGRA
        same_major = built[0] == capability[0] and built < capability
        if variant != "a" and same_major and not on_tegra:
            return True
        if ptx and not variant and built < capability:
            return True
    return False


@functools.cache
def _find_missing(index: int | None) -> str:
    facts = extension.build_facts()
    if facts is None or not facts.cuda_archs or not torch.cuda.is_available():
        return ""  # the architectures are unknown, or nothing will be launched (fake tensors)
    major, minor = torch.cuda.get_device_capability(index)
    if covers(facts.cuda_archs, (major, minor)):
        return ""
    name = torch.cuda.get_device_name(index)
    if (major, minor) < (7, 0):
        return f"the CUDA kernels need compute capability 7.0 or newer, and {name} has {major}.{minor}"
    wanted = f"{facts.cuda_archs};{major}.{minor}"
    return (
        f"the CUDA kernels were built for {facts.cuda_archs}, and {name} has compute "
        f"capability {major}.{minor}; reinstall this package with TORCH_CUDA_ARCH_LIST='{wanted}' "
        f"{install_command(options=extension.REINSTALL)}; run `pix2pixhd doctor` for details"
    )


def missing(index: int | None) -> str:
    """Return why the kernels do not run on this GPU, and the remedy; an empty string if they do. Cached per GPU."""
    return _find_missing(index)


# torch.compile treats the result as a constant instead of tracing the function. torch.compiler.assume_constant_result
# does the same, but imports all of torch.compile first.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
