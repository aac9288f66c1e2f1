"""Loading of the compiled operators; if an extension does not load, the reason is recorded."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from types import ModuleType

import torch

from pix2pixhd.errors import install_command

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class ExtensionStatus:
    """Whether one compiled extension of the package is loaded, and if not, why.

    Attributes:
        name: ``"cpu"`` or ``"cuda"``.
        loaded: Whether its operators can be called.
        reason: Why it is not loaded, and the remedy; empty if it is loaded.
    """

    name: str
    loaded: bool
    reason: str = ""


REINSTALL = "--force-reinstall --no-deps --no-cache-dir"


def rebuild() -> str:
    """Return the remedy: how to reinstall this package."""
    return f"reinstall this package: {install_command(options=REINSTALL)}; run `pix2pixhd doctor` for details"


def path(stem: str) -> pathlib.Path:
    """Return the path of a compiled library, whether or not it was built."""
    return _PACKAGE / f"{stem}.so"


# One operator of each family, to recognise a library that was built from older sources.
_FAMILIES = ("multi_l1", "multi_pointwise", "relu_pool", "norm_act")


def _lacks(key: str) -> list[str]:
    """Return the families without kernels for a dispatch key."""
    operators, has_kernel = torch.ops.pix2pixhd, torch._C._dispatch_has_kernel_for_dispatch_key
    return [f for f in _FAMILIES if not (hasattr(operators, f) and has_kernel(f"pix2pixhd::{f}", key))]


def _load(name: str, stem: str) -> ExtensionStatus:
    file = path(stem)
    if not file.exists():
        return ExtensionStatus(name, False, f"{file.name} was not built; {rebuild()}")
    try:
        torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
    except OSError as error:
        why = error.__cause__ or error  # the cause is the dynamic loader's own message
        reason = f"{file.name} does not load with torch {torch.__version__}: {why}; {rebuild()}"
        return ExtensionStatus(name, False, reason)
    if missing := _lacks(name.upper()):
        reason = f"{file.name} was built from older sources, it lacks {', '.join(missing)}; {rebuild()}"
        return ExtensionStatus(name, False, reason)
    return ExtensionStatus(name, True)


def nvcc_remedy(cuda: str) -> str:
    """Say how to install nvcc for this version of CUDA. For CUDA 13 and newer, the package index provides one."""
    toolkit = f"install a CUDA toolkit for CUDA {cuda}"
    return toolkit if int(cuda.split(".")[0]) < 13 else f"{toolkit}, or set PIX2PIXHD_CUDA=1, which downloads nvcc,"


@functools.cache
def cpu() -> ExtensionStatus:
    """Load the CPU operators, and the schemas of all operators, once."""
    return _load("cpu", "_ops")


@functools.cache
def cuda() -> ExtensionStatus:
    """Load the CUDA operators once. Requires the CPU extension, for the schemas, and a CUDA build of torch."""
    if not cpu().loaded:
        return ExtensionStatus("cuda", False, cpu().reason)
    if torch.version.cuda is None:
        return ExtensionStatus("cuda", False, f"torch {torch.__version__} is a build without CUDA")
    if not (_PACKAGE / "_ops_cuda.so").exists():
        why = (
            "the package was built without CUDA kernels (PIX2PIXHD_CUDA=0, no nvcc, or no GPU of compute capability "
            "7.0 or newer)"
        )
        return ExtensionStatus("cuda", False, f"{why}; {nvcc_remedy(torch.version.cuda)} and {rebuild()}")
    return _load("cuda", "_ops_cuda")


def build_facts() -> ModuleType | None:
    """Return ``pix2pixhd._C``, which describes the build; None if it was not built or cannot be imported."""
    try:
        return importlib.import_module("pix2pixhd._C")
    except ImportError:
        return None
