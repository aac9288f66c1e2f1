"""Checks and conversions of images that the perceptual losses share."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pix2pixhd.ops.autograd import is_wrapped, wider
from pix2pixhd.ops.checks import check_dense
from pix2pixhd.ops.scalars import one_number

__all__ = ["RangeCheck", "check_against_network", "check_memory_limit", "compute_dtype", "pixel_weights"]

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Check the option ``dtype`` of a loss.

    Raises:
        ValueError: If the operators do not compute in it.
    """
    if dtype is not None and dtype not in _PRECISIONS:
        raise ValueError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")
    return dtype


def check_memory_limit(memory_limit: Any) -> int | None:
    """Check the option ``memory_limit`` of a loss.

    Raises:
        ValueError: If it is not a positive whole number or None.
    """
    if memory_limit is None:
        return None
    number = one_number("memory_limit", memory_limit)
    if number <= 0 or not number.is_integer():  # also rejects inf and NaN
        raise ValueError(f"memory_limit must be a whole number of bytes above 0, or None, got {memory_limit}")
    return int(min(number, 2**62))  # the operators take a 64-bit integer


def check_against_network(
    name: str, images: Tensor, network: nn.Module, title: str, loss: str, dtype: torch.dtype | None
) -> None:
    """Check that images have the device and the dtype of a network.

    Args:
        name: Name of the images in the message.
        images: The images.
        network: The network.
        title: Its name in the message.
        loss: Name of the loss's class.
        dtype: Compute dtype of the loss, or None.

    Raises:
        ValueError: If the devices differ.
        TypeError: If the dtypes differ, outside autocast and without ``dtype``.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        return
    if parameter.device != images.device:
        raise ValueError(
            f"{name} is on {images.device} and the {title} on {parameter.device}; move the loss: "
            f"{loss}(...).to({str(images.device)!r})"
        )
    converts = dtype is not None or torch.is_autocast_enabled(images.device.type)
    if parameter.dtype != images.dtype and not (converts and images.is_floating_point()):
        raise TypeError(
            f"{name} is {images.dtype} and the {title} {parameter.dtype}; convert the images, convert the loss "
            f"({loss}(...).to(dtype)), or use autocast"
        )


def pixel_weights(mask: Tensor, images: Tensor) -> Tensor:
    """Return a mask as pixel weights ``[N, 1, H, W]`` without a gradient.

    Args:
        mask: ``[N, 1, H, W]``, ``[1, 1, H, W]`` or ``[H, W]``.
        images: The images ``[N, C, H, W]``.

    Raises:
        ValueError: If the mask has another size or device, or requires a gradient.
    """
    check_dense("mask", mask)
    size = (len(images), 1, *images.shape[2:])
    whole = mask.view(1, 1, *mask.shape) if mask.dim() == 2 else mask
    if whole.dim() != 4 or whole.shape[1:] != size[1:] or len(whole) not in (1, len(images)):
        raise ValueError(
            f"mask must be [N, 1, H, W], [1, 1, H, W] or [H, W] like the images, {size}, got {tuple(mask.shape)}"
        )
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask requires a gradient, which the loss does not compute; pass mask.detach()")
    if mask.device != images.device:
        raise ValueError(f"mask is on {mask.device} and images on {images.device}; move one to the other's with .to()")
    return whole.detach().to(wider(images.dtype)).expand(size)


class RangeCheck:
    """A check of image values against the expected range, on the first call only.

    It reads two values from the device once. Later calls, calls in a compiled or captured graph, and calls inside
    ``torch.func`` transforms read nothing.
    """

    _TOLERANCE = 0.1  # of the width of the range: resized photographs exceed it slightly

    def __init__(self) -> None:
        self._done = False

    def __call__(self, name: str, images: Tensor, low: float, high: float, remedy: str) -> None:
        """Warn if the values contradict the range.

        Args:
            name: Name of the images in the message.
            images: The images.
            low: Lowest expected value.
            high: Highest expected value.
            remedy: What to pass instead; ``{low}`` and ``{high}`` are replaced by a range that suits the values.
        """
        if torch.compiler.is_compiling() or self._done or is_wrapped(images) or images.is_meta or images.numel() == 0:
            return
        if images.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        self._done = True
        smallest, largest = (float(value) for value in torch.stack(torch.aminmax(images.detach())).tolist())
        width = high - low
        if smallest < low - self._TOLERANCE * width or largest > high + self._TOLERANCE * width:
            suits = (0, 255) if largest > 2.0 else (-1, 1) if smallest < 0.0 else (0, 1)
        elif low < 0.0 <= smallest and 0.5 * high < largest <= high and largest - smallest > 0.25 * high:
            suits = (0, 1)
        else:
            return
        warnings.warn(
            f"pix2pixhd: {name} has values from {smallest:.3g} to {largest:.3g}, but images in [{low:g}, {high:g}] are "
            f"expected; {remedy.format(low=suits[0], high=suits[1])}",
            UserWarning,
            stacklevel=4,
        )
