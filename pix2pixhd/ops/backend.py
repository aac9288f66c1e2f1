"""Selection of the implementation: the fused operators or plain PyTorch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from pix2pixhd.ops import extension, gpu_support
from pix2pixhd.ops.autograd import forward_mode_active

NAMES = ("auto", "fused", "reference")


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


_current: str = _checked(os.environ.get("PIX2PIXHD_BACKEND", "auto") or "auto", "PIX2PIXHD_BACKEND")
_warned: set[str] = set()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Select the implementation of every loss inside a ``with`` block.

    The setting applies to the whole process, like ``torch.backends`` flags. Its initial value is the environment
    variable ``PIX2PIXHD_BACKEND``, or ``"auto"``.

    Args:
        name: ``"auto"`` uses the fused operators where they can run. Elsewhere it uses plain PyTorch, with one warning
            that gives the reason. ``"fused"`` uses the fused operators or raises an error. ``"reference"`` uses plain
            PyTorch.

    Raises:
        ValueError: If ``name`` is none of the three.

    Example:
        >>> import pix2pixhd, torch
        >>> from pix2pixhd.functional import multi_l1_loss
        >>> with pix2pixhd.backend("reference"):
        ...     loss = multi_l1_loss([torch.ones(2)], [torch.zeros(2)])
    """
    global _current
    previous = _current
    _current = _checked(name, "backend")
    try:
        yield
    finally:
        _current = previous


def is_reference() -> bool:
    """Whether plain PyTorch is selected."""
    return _current == "reference"


# Why the fused operators cannot run on a device type; empty if they can. Determined at import, because torch.compile
# would trace it into every graph.
_REASONS: dict[str, str] = {"cpu": extension.cpu().reason, "cuda": extension.cuda().reason}


def unavailable(device: torch.device) -> str:
    """Return why the fused operators cannot run on this device; an empty string if they can."""
    reason = _REASONS.get(device.type, f"there are no fused kernels for {device.type} tensors")
    # Not at import: querying a GPU initializes CUDA.
    return gpu_support.missing(device.index) if device.type == "cuda" and not reason else reason


def use_fused_if_loaded(tensor: Tensor) -> bool:
    """As ``use_fused``, but without a warning or an error where the device's operators are not loaded."""
    return not _REASONS.get(tensor.device.type, "no kernels") and use_fused(tensor)


def use_fused(tensor: Tensor) -> bool:
    """Whether the fused operators are used for this tensor under the current backend."""
    if _current == "reference":
        return False
    # torch.func and forward-mode AD differentiate the plain formulas.
    if not torch.compiler.is_compiling() and (forward_mode_active() or torch._C._are_functorch_transforms_active()):
        return False
    reason = unavailable(tensor.device)
    if not reason:
        return True
    if _current == "fused":
        raise RuntimeError(f"backend('fused') was requested, but {reason}")
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"pix2pixhd: the losses on {tensor.device.type} run in plain PyTorch, which is slower and takes more "
            f"memory: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
    return False
