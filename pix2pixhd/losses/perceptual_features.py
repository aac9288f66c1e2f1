"""The real side's VGG features, kept by the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pix2pixhd.losses.fingerprint import same_weights


@dataclasses.dataclass(frozen=True)
class VGGFeatures:
    """What ``VGGLoss.features(real)`` returns and ``VGGLoss(fake, features)`` takes: the real pictures' maps.

    For the paper's five layers they take 122 numbers per pixel: 244 MiB for a picture of 1024×512 in float32, 122 MiB
    in bfloat16.

    Attributes:
        maps: Per scale of the picture, per layer: ``[N, C, h, w]``, after ReLU.
        shape: Of the pictures.
        made_by: What of the loss they depend on; a loss that differs in it refuses them.
        weights: Fingerprint of the VGG's weights; a loss with other weights refuses them.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import VGGLoss
        >>> criterion = VGGLoss(vgg="random")
        >>> features = criterion.features(torch.zeros(1, 3, 32, 32))
        >>> loss = criterion(torch.ones(1, 3, 32, 32), features)
    """

    maps: tuple[tuple[Tensor, ...], ...]
    shape: torch.Size
    made_by: tuple[Any, ...]
    weights: str = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.maps)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(x.nbytes for scale in self.maps for x in scale)

    def to(self, *args: Any, **kwargs: Any) -> VGGFeatures:
        """As ``Tensor.to``: to a device, say, or to bfloat16 to halve them."""
        maps = tuple(tuple(x.to(*args, **kwargs) for x in scale) for scale in self.maps)
        return dataclasses.replace(self, maps=maps)

    def __getitem__(self, pictures: slice) -> VGGFeatures:
        """Those of some pictures of the batch."""
        if not isinstance(pictures, slice):
            raise TypeError(f"features are taken by slice, features[2:3], got {pictures!r}")
        maps = tuple(tuple(x[pictures] for x in scale) for scale in self.maps)
        return dataclasses.replace(self, maps=maps, shape=torch.Size([len(maps[0][0]), *self.shape[1:]]))

    @staticmethod
    def cat(parts: Sequence[VGGFeatures]) -> VGGFeatures:
        """One batch of several.

        Raises:
            ValueError: If there are none, or they are of pictures of different sizes or of different losses.
        """
        if not parts:
            raise ValueError("parts is empty; pass at least one VGGFeatures")
        first = parts[0]
        for part in parts[1:]:
            if part.shape[1:] != first.shape[1:] or part.made_by != first.made_by:
                raise ValueError(
                    f"parts must be of pictures of one size and of one loss, got {tuple(first.shape)} by "
                    f"{first.made_by} and {tuple(part.shape)} by {part.made_by}"
                )
            if not same_weights(part.weights, first.weights):
                raise ValueError("parts must be of one loss, got features made with different VGG weights")
        maps = tuple(tuple(torch.cat(xs) for xs in zip(*scales, strict=True)) for scales in zip(*parts, strict=True))
        shape = torch.Size([sum(p.shape[0] for p in parts), *first.shape[1:]])
        return dataclasses.replace(first, maps=maps, shape=shape)
