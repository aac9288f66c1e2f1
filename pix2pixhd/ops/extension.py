"""Loading of the compiled operators, with every reason kept when one does not load."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from types import ModuleType

import torch

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Part:
    """One compiled part of the package.

    Attributes:
        name: ``"cpu"`` or ``"cuda"``.
        loaded: Whether its operators can be called.
        reason: Why it is not loaded, and what to do; empty when it is.
    """

    name: str
    loaded: bool
    reason: str = ""


_REBUILD = (
    "reinstall this package with `pip install --force-reinstall --no-deps --no-cache-dir`; "
    "`pix2pixhd doctor` tells more"
)


def path(stem: str) -> pathlib.Path:
    """Where a compiled library lies, built or not."""
    return _PACKAGE / f"{stem}.so"


def _load(name: str, stem: str) -> Part:
    file = path(stem)
    if not file.exists():
        return Part(name, False, f"{file.name} was not built; {_REBUILD}")
    try:
        torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
    except OSError as error:
        why = error.__cause__ or error  # torch says that it does not load; the loader's own message says why
        return Part(name, False, f"{file.name} does not load under torch {torch.__version__}: {why}; {_REBUILD}")
    return Part(name, True)


def nvcc_remedy(cuda: str) -> str:
    """How to come to an nvcc for this version of CUDA. From CUDA 13 on the package index has one."""
    toolkit = f"install a CUDA toolkit for CUDA {cuda}"
    return toolkit if int(cuda.split(".")[0]) < 13 else f"{toolkit}, or set PIX2PIXHD_CUDA=1, which fetches nvcc,"


@functools.cache
def cpu() -> Part:
    """Loads the CPU operators (and all schemas) once."""
    return _load("cpu", "_ops")


@functools.cache
def cuda() -> Part:
    """Loads the CUDA operators once; needs the CPU part for the schemas and a CUDA build of torch."""
    if not cpu().loaded:
        return Part("cuda", False, cpu().reason)
    if torch.version.cuda is None:
        return Part("cuda", False, f"torch {torch.__version__} is a build without CUDA")
    if not (_PACKAGE / "_ops_cuda.so").exists():
        why = (
            "the package was built without CUDA kernels (PIX2PIXHD_CUDA=0, no nvcc, or no GPU of compute capability "
            "7.0 or newer)"
        )
        return Part("cuda", False, f"{why}; {nvcc_remedy(torch.version.cuda)} and {_REBUILD}")
    return _load("cuda", "_ops_cuda")


def build_facts() -> ModuleType | None:
    """The module ``pix2pixhd._C`` with the facts of the build; None where it was not built or does not import."""
    try:
        return importlib.import_module("pix2pixhd._C")
    except ImportError:
        return None
