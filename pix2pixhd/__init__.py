"""Fused GAN losses and a training package for pix2pixHD-style image-to-image translation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pix2pixhd.ops.backend import backend

__version__ = "0.1.0"

__all__ = ["__version__", "backend"]


def __getattr__(name: str) -> Any:
    """Import PyTorch only on first use, so that the command line's help does not wait for it."""
    if name in ("backend", "ops"):
        import importlib

        ops = importlib.import_module("pix2pixhd.ops")
        return ops if name == "ops" else ops.backend.backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
