"""Checks and preparation of the images that the losses on frozen networks receive."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.losses.perceptual_options import Normalization
from pix2pixhd.ops.autograd import is_wrapped, wider
from pix2pixhd.ops.checks import check_dense, check_tensor

__all__ = [
    "ImageSizeError",
    "RangeCheck",
    "at_scales",
    "check_against_network",
    "check_size",
    "imagenet_normalized",
    "pixel_weights",
    "scaled_to_network",
]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageSizeError(ValueError):
    """Raised for images that are smaller than a network needs."""


def check_against_network(
    name: str, images: Tensor, network: nn.Module, title: str, loss: nn.Module, dtype: torch.dtype | None
) -> torch.dtype:
    """Checks that images are a dense floating-point tensor with the device and the dtype of a network.

    Args:
        name: Name of the images in the message.
        images: The images.
        network: The network.
        title: Its name in the message.
        loss: The loss.
        dtype: Compute dtype of the loss, or None.

    Returns:
        The dtype of the network's first floating-point parameter; float32 if there is none.

    Raises:
        ValueError: If the devices differ.
        TypeError: If the images are not a dense floating-point tensor, or the dtypes differ outside autocast and
            without ``dtype``.
    """
    check_tensor(name, images)
    check_dense(name, images)
    parameter = next((x for x in network.parameters() if x.is_floating_point()), None)
    if parameter is None:
        return torch.float32
    kind = type(loss).__name__
    if parameter.device != images.device:
        raise ValueError(
            f"{name} is on {images.device} and the {title} on {parameter.device}; move the loss: "
            f"{kind}(...).to({str(images.device)!r})"
        )
    converts = dtype is not None or torch.is_autocast_enabled(images.device.type)
    if parameter.dtype != images.dtype and not converts:
        raise TypeError(
            f"{name} is {images.dtype} and the {title} {parameter.dtype}; convert the images, convert the loss "
            f"({kind}(...).to(dtype)), or use autocast"
        )
    return parameter.dtype


def check_size(name: str, images: Tensor, smallest: int, reason: str = "") -> None:
    """Checks that images ``[N, C, H, W]`` are not too small.

    Args:
        name: Name of the images in the message.
        images: The images.
        smallest: Smallest height and width.
        reason: What needs this size, for the message, such as ``" for 3 scales"``.

    Raises:
        ImageSizeError: If they are.
    """
    height, width = images.shape[2:]
    if min(height, width) < smallest:
        raise ImageSizeError(
            f"{name} must be at least {smallest}x{smallest}{reason}, got {height}x{width}; enlarge the images"
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


def imagenet_normalized(images: Tensor) -> Tensor:
    """Applies ImageNet's normalization to images in [0, 1].

    The constants are not buffers because ``DistributedDataParallel`` broadcasts buffers in every forward.
    """
    red_green_blue = zip(images.unbind(1), _MEAN, _STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in red_green_blue], dim=1)


def scaled_to_network(
    images: Tensor, input_range: tuple[float, float], normalize: Normalization, dtype: torch.dtype
) -> Tensor:
    """Rescales images in ``input_range`` to (−1, 1), or normalizes them with ImageNet's mean and standard deviation.

    Args:
        images: Images.
        input_range: Lowest and highest value.
        normalize: ``"none"`` or ``"imagenet"``.
        dtype: Dtype of the parameters of the network. Half-precision images from autocast are normalized in float32.
    """
    low, high = input_range
    if normalize == "imagenet":
        wide = images.to(torch.promote_types(images.dtype, dtype))
        return imagenet_normalized((wide - low) / (high - low))
    if (low, high) != (-1.0, 1.0):
        images = (images - low) * (2.0 / (high - low)) - 1.0
    return images


def at_scales(images: Tensor, scale_weights: Sequence[float]) -> list[Tensor | None]:
    """Returns the images at full, half, quarter size and so on, or None for scales of weight 0."""
    scales: list[Tensor | None] = []
    for level, weight in enumerate(scale_weights):
        if level > 0:
            images = F.interpolate(
                images, scale_factor=0.5, mode="bilinear", align_corners=False, recompute_scale_factor=True
            )
        scales.append(images if weight != 0.0 else None)
    return scales


def pixel_weights(mask: Tensor, images: Tensor) -> Tensor:
    """Checks a mask and returns it as ``[N, 1, H, W]`` in float32 or float64.

    Raises:
        TypeError: If the mask is not a dense tensor.
        ValueError: If the mask has another shape or device than the images, or requires a gradient, or if they are not
            images ``[N, C, H, W]``.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    check_dense("mask", mask)
    if images.dim() != 4:
        raise ValueError(f"mask needs images [N, C, H, W], got an input of shape {tuple(images.shape)}; omit mask")
    size = (len(images), 1, *images.shape[2:])
    whole = mask.view(1, 1, *mask.shape) if mask.dim() == 2 else mask
    if whole.dim() != 4 or whole.shape[1:] != size[1:] or len(whole) not in (1, len(images)):
        raise ValueError(
            f"mask must be [N, 1, H, W], [1, 1, H, W] or [H, W] like the images, {size}, got {tuple(mask.shape)}"
        )
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask requires a gradient, which the loss does not compute; pass mask.detach()")
    if mask.device != images.device:
        raise ValueError(f"mask is on {mask.device} and the images on {images.device}; move one of them with .to()")
    return whole.detach().to(wider(images.dtype)).expand(size)
