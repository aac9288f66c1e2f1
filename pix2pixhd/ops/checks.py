"""Checks of the tensors that losses receive, with messages that name the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pix2pixhd.ops.scalars import Number, all_constant, is_constant

HALF = (torch.float16, torch.bfloat16)
_FLOATS = {torch.float32, torch.float64, *HALF}
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _FLOATS}


def _label(name: str, index: int | None) -> str:
    return name if index is None else f"{name}[{index}]"


def check_tensor(name: str, tensor: object, index: int | None = None) -> None:
    """Checks that an argument is a tensor of a supported dtype.

    Args:
        name: The argument's name in error messages.
        tensor: The argument.
        index: Its index in the list of that name; None for a single tensor.

    Raises:
        TypeError: If it is not. The message names the argument and what was passed.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{_label(name, index)} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        remedy = ".dequantize()" if tensor.is_quantized else ".float()"
        raise TypeError(
            f"{_label(name, index)} must be float32, float64, float16 or bfloat16, got {tensor.dtype}; "
            f"convert it with {remedy}"
        )


def check_dense(name: str, tensor: Tensor, index: int | None = None) -> None:
    """Rejects sparse, nested and other tensors that are not stored as plain strided memory.

    The losses over many tensors call this only after a failure, to explain it. Called first, it would take a
    noticeable part of the time of a small loss.

    Raises:
        TypeError: For such a tensor. The message names the argument, its kind and how to convert it.
    """
    if tensor.is_nested:
        raise TypeError(
            f"{_label(name, index)} must be a dense tensor, got a nested one; pass tensor.unbind() as a list"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{_label(name, index)} must be a dense tensor, got one of layout {tensor.layout}; call .to_dense()"
        )


def check_all_dense(name: str, tensors: Sequence[Tensor]) -> None:
    """Calls ``check_dense`` for each tensor of a list."""
    for k, tensor in enumerate(tensors):
        check_dense(name, tensor, k)


def check_shapes(names: tuple[str, str], input: Tensor, target: Tensor, index: int | None = None) -> None:
    """Checks that an input and a target, with these two names, have the same shape.

    Raises:
        ValueError: If they have not. The message names both.
    """
    if input.shape != target.shape:
        raise ValueError(
            f"{_label(names[1], index)} must have the shape of {_label(names[0], index)}, {tuple(input.shape)}, got "
            f"{tuple(target.shape)}; broadcasting is not supported"
        )


def check_devices(names: tuple[str, str], input: Tensor, target: Tensor, index: int | None = None) -> None:
    """Checks that an input and a target, with these two names, are on the same device.

    Raises:
        ValueError: If they are not. The message names both.
    """
    if input.device != target.device:
        raise ValueError(
            f"{_label(names[1], index)} is on {target.device} and {_label(names[0], index)} on {input.device}; "
            "move both to one device"
        )


def check_list(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Calls ``check_tensor`` for each tensor and returns the tensors as a new list.

    Raises:
        TypeError: If the argument is not a list of floating-point tensors.
        ValueError: If the list is empty, or the tensors are on several devices.
    """
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}; wrap a single one: [tensor]")
    if not tensors:
        raise ValueError(f"{name} is empty; pass at least one tensor")
    device = getattr(tensors[0], "device", None)
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS:
            check_tensor(name, tensor, k)  # raises the error
        if tensor.device != device:
            raise ValueError(f"{name}[{k}] is on {tensor.device} and {name}[0] on {device}; move all to one device")
    return list(tensors)


def check_labels(labels: list[Number], tensors: Sequence[Tensor]) -> None:
    """Rejects finite labels that the dtype of their tensor cannot represent, as ``torch.full_like`` does.

    Raises:
        ValueError: For such a label. The message names the label and the range.
    """
    if all_constant(labels) and max(map(abs, labels)) <= _LARGEST[torch.float16]:
        return  # the usual case, for speed
    for k, (label, tensor) in enumerate(zip(labels, tensors, strict=True)):
        if is_constant(label) and _LARGEST[tensor.dtype] < abs(label) < math.inf:
            raise ValueError(
                f"target[{k}] is {label:g}, and preds[{k}] is {tensor.dtype}, which represents numbers up to "
                f"{_LARGEST[tensor.dtype]:g}; choose a smaller label, or convert the predictions with .float()"
            )
