"""Pictures of any size through a generator that needs multiples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["generate_padded"]


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
    below, right = ((-length) % multiple + max(0, 2 * multiple - _up(length, multiple)) for length in (height, width))
    if below or right:
        condition = F.pad(condition, (0, right, 0, below), mode="replicate")
    output: Tensor = generator(condition)
    return output[..., :height, :width]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
