"""Checks and conversions of images that the perceptual losses share."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from pix2pixhd.ops.autograd import is_wrapped

__all__ = ["RangeCheck", "check_against_network"]


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


class RangeCheck:
    """A check of image values against the expected range, on the first call only.

    It reads two values from the device once. Later calls, calls in a compiled, traced or captured graph, and calls
    inside ``torch.func`` transforms read nothing.
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
        if torch.compiler.is_compiling() or self._done or images.numel() == 0 or not self._has_values(images):
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

    @staticmethod
    def _has_values(images: Tensor) -> bool:
        """Whether values can be read: not of fake tensors, nor while a graph is traced or captured."""
        if type(images) not in (Tensor, nn.Parameter) or images.is_meta or is_wrapped(images):
            return False
        if torch._C._len_torch_dispatch_stack() > 0:  # make_fx, FakeTensorMode
            return False
        return not (images.is_cuda and torch.cuda.is_current_stream_capturing())
