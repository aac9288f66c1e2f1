"""Whether the CUDA kernels of this build run on the GPU at hand."""

from __future__ import annotations

import functools
import re

import torch

from pix2pixhd.ops import extension

# Binary compatibility within a major version holds among the desktop GPUs, not with or among the boards (Tegra).
_BOARDS = ((5, 3), (6, 2), (7, 2), (8, 7))


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for these architectures run on a GPU of this compute capability.

    The rules of the CUDA programming guide: machine code for X.Y runs on X.Z with Z >= Y; that of a family, X.Yf, too;
    what is specific to an architecture, X.Ya, PTX as well, runs on X.Y alone; plain PTX runs on all that is not older.

    Args:
        archs: As in TORCH_CUDA_ARCH_LIST: numbers with ``a``, ``f`` and ``+PTX``, separated by semicolons.
        capability: Major and minor, as ``torch.cuda.get_device_capability`` returns them.

    Example:
        >>> covers("8.0;9.0a", (8, 6)), covers("8.0;9.0a", (9, 0)), covers("8.0;9.0a", (10, 0))
        (True, True, False)
    """
    for major, minor, variant, ptx in re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", archs):
        built = (int(major), int(minor))
        if built == capability:
            return True
        on_boards = built in _BOARDS or capability in _BOARDS
        same_major = built[0] == capability[0] and built < capability
        if variant != "a" and same_major and not on_boards:
            return True
        if ptx and not variant and built < capability:
            return True
    return False


@functools.cache
def _find_missing(index: int | None) -> str:
    facts = extension.build_facts()
    if facts is None or not facts.cuda_archs or not torch.cuda.is_available():
        return ""  # nothing is known, or nothing will be launched: a fake tensor
    major, minor = torch.cuda.get_device_capability(index)
    if covers(facts.cuda_archs, (major, minor)):
        return ""
    name = torch.cuda.get_device_name(index)
    if (major, minor) < (7, 0):
        return f"the CUDA kernels need compute capability 7.0 or newer, and {name} has {major}.{minor}"
    wanted = f"{facts.cuda_archs};{major}.{minor}"
    return (
        f"the CUDA kernels were built for {facts.cuda_archs}, and {name} has compute "
        f"capability {major}.{minor}; reinstall this package with `TORCH_CUDA_ARCH_LIST='{wanted}' pip install "
        "--force-reinstall --no-deps --no-cache-dir`; `pix2pixhd doctor` tells more"
    )


def missing(index: int | None) -> str:
    """Why the kernels do not run on this GPU, and what to do; empty when they do. Asked of CUDA once."""
    return _find_missing(index)


# torch.compile takes the answer for a constant instead of tracing how it is found. This is all that
# torch.compiler.assume_constant_result does, after importing the whole of torch.compile.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
