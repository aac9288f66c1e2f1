"""Pictures of any size through a generator that needs multiples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["encode_padded", "generate_padded"]


def generate_padded(generator: nn.Module, condition: Tensor, multiple: int) -> Tensor:
    """Repeats the border up to the next size that the generator takes, and cuts the result back.

    Args:
        generator: From ``[N, C, H, W]`` to pictures of the same size.
        condition: The encoded input ``[N, C, H, W]`` of any size.
        multiple: Height and width must become multiples of this, and at least twice as large.

    Returns:
        Pictures of height H and width W.

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


def encode_padded(encoder: nn.Module, picture: Tensor, region: Tensor, multiple: int) -> Tensor:
    """An encoder's features of pictures of any size.

    Args:
        encoder: From pictures and ids to features of the same size.
        picture: ``[N, C, H, W]``.
        region: Ids ``[N, H, W]`` of what features are averaged over.
        multiple: Height and width must become multiples of this, and at least twice as large.

    Returns:
        ``[N, F, H, W]``.

    Example:
        >>> import torch
        >>> from pix2pixhd.models import Encoder
        >>> encoder = Encoder(3, 2, ngf=4, n_downsampling=2)
        >>> encode_padded(encoder, torch.zeros(1, 3, 13, 18), torch.zeros(1, 13, 18, dtype=torch.int32), 4).shape
        torch.Size([1, 2, 13, 18])
    """
    height, width = picture.shape[-2:]
    # Replication of ids goes through float64, which holds any of 32 bits; padding knows no integers.
    ids = _padded(region[:, None].double(), multiple)[:, 0].to(region.dtype)
    output: Tensor = encoder(_padded(picture, multiple), ids)
    return output[..., :height, :width]


def _padded(x: Tensor, multiple: int) -> Tensor:
    height, width = x.shape[-2:]
    below, right = ((-length) % multiple + max(0, 2 * multiple - _up(length, multiple)) for length in (height, width))
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
