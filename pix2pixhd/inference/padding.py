"""Padding, so that images of any size fit networks that require multiples of a size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["encode_padded", "generate_padded"]


def generate_padded(generator: nn.Module, condition: Tensor, multiple: int) -> Tensor:
    """Generates images of any size: pads the input by replication and crops the output.

    Args:
        generator: A network that maps ``[N, C, H, W]`` to images of the same size.
        condition: The encoded input ``[N, C, H, W]`` of any size.
        multiple: Height and width are padded to multiples of this number, and to at least twice this number.

    Returns:
        Images of height H and width W.

    Example:
        >>> import torch
        >>> from pix2pixhd.models import GlobalGenerator
        >>> generator = GlobalGenerator(4, 3, ngf=4, n_downsampling=2, n_blocks=0)
        >>> generate_padded(generator, torch.zeros(1, 4, 13, 18), multiple=4).shape
        torch.Size([1, 3, 13, 18])
    """
    height, width = condition.shape[-2:]
    output: Tensor = generator(_padded(condition, multiple))
    return output[..., :height, :width]


def encode_padded(encoder: nn.Module, image: Tensor, region: Tensor, multiple: int) -> Tensor:
    """Computes an encoder's features of images of any size: pads the image by replication and crops the features.

    Args:
        encoder: A network that maps images and ids to features of the same size.
        image: Images ``[N, C, H, W]``.
        region: Ids ``[N, H, W]`` of the regions over which features are averaged.
        multiple: Height and width are padded to multiples of this number, and to at least twice this number.

    Returns:
        Features ``[N, F, H, W]``.

    Example:
        >>> import torch
        >>> from pix2pixhd.models import Encoder
        >>> encoder = Encoder(3, 2, ngf=4, n_downsampling=2)
        >>> encode_padded(encoder, torch.zeros(1, 3, 13, 18), torch.zeros(1, 13, 18, dtype=torch.int32), 4).shape
        torch.Size([1, 2, 13, 18])
    """
    height, width = image.shape[-2:]
    # F.pad does not support integers. Ids are converted to float64, which represents all 32-bit integers exactly.
    ids = _padded(region[:, None].double(), multiple)[:, 0].to(region.dtype)
    output: Tensor = encoder(_padded(image, multiple), ids)
    return output[..., :height, :width]


def _padded(x: Tensor, multiple: int) -> Tensor:
    height, width = x.shape[-2:]
    below, right = (max(_round_up(length, multiple), 2 * multiple) - length for length in (height, width))
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
