"""Options and image preparation that the losses on frozen networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.checks import check_dense
from pix2pixhd.ops.scalars import numbers, one_number

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
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
    number = one_number("memory_limit", memory_limit)
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


def pixel_weights(mask: Tensor, fake: Tensor) -> Tensor:
    """Checks a mask and returns it as ``[N, 1, H, W]`` in float32 or float64.

    Raises:
        ValueError: If the mask has another shape or device than the images, or requires a gradient.
    """
    check_dense("mask", mask)
    size = (len(fake), 1, *fake.shape[2:])
    whole = mask.view(1, 1, *mask.shape) if mask.dim() == 2 else mask
    if whole.dim() != 4 or whole.shape[1:] != size[1:] or len(whole) not in (1, len(fake)):
        raise ValueError(
            f"mask must be [N, 1, H, W], [1, 1, H, W] or [H, W] like the images, {size}, got {tuple(mask.shape)}"
        )
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask requires a gradient, which the loss does not compute; pass mask.detach()")
    if mask.device != fake.device:
        raise ValueError(f"mask is on {mask.device} and fake on {fake.device}; move one to the other's with .to()")
    return whole.detach().to(wider(fake.dtype)).expand(size)
