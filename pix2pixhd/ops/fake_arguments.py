"""Checks of arguments in fake kernels, which would otherwise fail with an IndexError or return a wrong layout.

The kernels check more. During tracing, what they refuse raises their error when the traced program runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_counts(operator: str, **lists: Sequence[Any]) -> None:
    """Check that lists have the same length, and at least one element.

    Raises:
        RuntimeError: If they do not.
    """
    lengths = [len(values) for values in lists.values()]
    if 0 in lengths or len(set(lengths)) != 1:
        names = ", ".join(lists)
        raise RuntimeError(f"pix2pixhd::{operator}: {names} must have the same length of at least 1, got {lengths}")


def check_indices(operator: str, indices: Sequence[int], count: int) -> None:
    """Check that ``wanted`` holds ascending indices.

    Raises:
        RuntimeError: If it does not.
    """
    if any(not 0 <= k < count for k in indices) or any(a >= b for a, b in itertools.pairwise(indices)):
        raise RuntimeError(f"pix2pixhd::{operator}: wanted must hold ascending indices below {count}, got {indices}")


def check_images(operator: str, name: str, images: Tensor) -> None:
    """Check that a tensor has the dimensions of images.

    Raises:
        RuntimeError: If it has not.
    """
    if images.dim() != 4:
        raise RuntimeError(f"pix2pixhd::{operator}: {name} must be images [N, C, H, W], got {images.dim()} dimensions")


def check_padding(operator: str, padding: Sequence[int]) -> None:
    """Check the number of sides of a padding.

    Raises:
        RuntimeError: If it is not 4.
    """
    if len(padding) != 4:
        raise RuntimeError(f"pix2pixhd::{operator}: padding must be (left, right, top, bottom), got {padding}")
