"""Options that the losses on frozen networks share, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from pix2pixhd.ops.scalars import numbers, one_number

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)

Normalization = Literal["none", "imagenet"]
ImageReduction = Literal["mean", "none"]


def check_one_of(name: str, value: object, kind: Any) -> None:
    """Checks that an option is one of the values of a ``Literal``.

    Raises:
        ValueError: If it is not.
    """
    if value not in get_args(kind):
        raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, got {value!r}")


def check_range(input_range: Sequence[float]) -> tuple[float, float]:
    """Checks and returns the range of the image values.

    Raises:
        ValueError: If it is not two increasing numbers.
    """
    if isinstance(input_range, (str, int, float)) or len(input_range) != 2 or input_range[0] >= input_range[1]:
        raise ValueError(f"input_range must be (lowest, highest), for example (-1, 1) or (0, 1), got {input_range!r}")
    return float(input_range[0]), float(input_range[1])


def check_memory_limit(memory_limit: Any) -> int | None:
    """Checks and returns a limit in bytes.

    Raises:
        ValueError: If it is not a whole number above 0.
    """
    if memory_limit is None:
        return None
    number = 0.0 if isinstance(memory_limit, bool) else one_number("memory_limit", memory_limit)
    if number <= 0 or not number.is_integer():  # also rejects inf and NaN
        raise ValueError(f"memory_limit must be a whole number of bytes above 0, or None, got {memory_limit}")
    return int(min(number, 2**62))  # the operators take a 64-bit integer


def check_compute_dtype(dtype: torch.dtype | None) -> None:
    """Checks the compute dtype of a network.

    Raises:
        ValueError: If it is none of float32, bfloat16, float16 and None.
    """
    if dtype is not None and dtype not in _PRECISIONS:
        raise ValueError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")


def check_scale_weights(scale_weights: Any) -> list[float]:
    """Checks and returns the weights of the image scales.

    Raises:
        ValueError: If all are 0.
    """
    found = numbers("scale_weights", scale_weights)
    if not any(found):
        raise ValueError(f"scale_weights must have one number per scale, not all 0, got {found!r}")
    return found
