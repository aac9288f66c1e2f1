"""Checks of the losses' tensors, with messages that name the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pix2pixhd.ops.scalars import Number, is_constant

HALF = (torch.float16, torch.bfloat16)
_FLOATS = {torch.float32, torch.float64, *HALF}
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _FLOATS}


def check_tensor(name: str, tensor: object) -> None:
    """Refuses what is not a tensor of a supported dtype.

    Raises:
        TypeError: Names the argument and what it is.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}; convert it with .float()"
        )


def check_pair(input_name: str, input: Tensor, target_name: str, target: Tensor) -> None:
    """Refuses two tensors of different shapes, or on different devices.

    Raises:
        ValueError: Names both.
    """
    if input.shape != target.shape:
        raise ValueError(
            f"{target_name} must have the shape of {input_name}, {tuple(input.shape)}, got {tuple(target.shape)}; "
            "broadcasting is not done"
        )
    if input.device != target.device:
        raise ValueError(
            f"{target_name} is on {target.device} and {input_name} on {input.device}; move both to one device"
        )


def check_list(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as a list of its own, after ``check_tensor`` of each.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For an empty list, or tensors on several devices.
    """
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}; wrap a single one: [tensor]")
    if not tensors:
        raise ValueError(f"{name} is empty; pass at least one tensor")
    for k, tensor in enumerate(tensors):
        check_tensor(f"{name}[{k}]", tensor)
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"{name}[{k}] is on {tensor.device} and {name}[0] on {tensors[0].device}; move all to one device"
            )
    return list(tensors)


def check_labels(labels: Sequence[Number], tensors: Sequence[Tensor]) -> None:
    """Refuses finite labels that the dtype of their tensor cannot hold, as ``torch.full_like`` does.

    Raises:
        ValueError: Names the label and the range.
    """
    for k, (label, tensor) in enumerate(zip(labels, tensors, strict=True)):
        if is_constant(label) and _LARGEST[tensor.dtype] < abs(label) < math.inf:
            raise ValueError(
                f"target[{k}] is {label:g}, and preds[{k}] is {tensor.dtype}, which holds numbers up to "
                f"{_LARGEST[tensor.dtype]:g}; choose a smaller label, or convert the predictions with .float()"
            )
