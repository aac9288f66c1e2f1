"""Layers and networks that save little for backward."""

from __future__ import annotations

from pix2pixhd.nn.layers import InstanceNorm2d, InstanceNormAct2d
from pix2pixhd.nn.lean import lean

__all__ = ["InstanceNorm2d", "InstanceNormAct2d", "lean"]
