"""Precomputed features of real images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pix2pixhd.losses.fingerprint import fingerprint, same_weights

# Names and values of the options of a loss that determine its features.
Identity: TypeAlias = tuple[tuple[str, Any], ...]

_Features = TypeVar("_Features", bound="FrozenFeatures")


def check_pair(
    first: str, images: Any, second: str, target: Any, kind: type[FrozenFeatures], broadcast: bool = False
) -> None:
    """Check that images are compared with images, or precomputed features, of their shape.

    Args:
        first: Name of the images in the message.
        images: The images.
        second: Name of what they are compared with.
        target: What they are compared with.
        kind: Class of the features that the loss returns.
        broadcast: Whether one of the batches may be a single image.

    Raises:
        TypeError: If an argument is neither a tensor nor, for the second one, features of this class.
        ValueError: If the shapes differ.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{first} must be a tensor, got {type(images).__name__}")
    check_target(second, target, kind)
    expands = broadcast and images.shape[1:] == target.shape[1:] and 1 in (*images.shape[:1], *target.shape[:1])
    if images.shape != target.shape and not expands:
        single = ", or be a batch of one image" if broadcast else ""
        raise ValueError(
            f"{second} must have the shape of {first}, {tuple(images.shape)}{single}, got {tuple(target.shape)}"
        )


def same_batch(images: Tensor, target: Tensor | _Features) -> tuple[Tensor, Tensor | _Features]:
    """Expand a batch of one image, or of its features, to the size of the other batch."""
    if images.shape == target.shape:
        return images, target
    count = images.shape[0] if target.shape[0] == 1 else target.shape[0]
    if images.shape[0] != count:
        images = images.expand(count, *images.shape[1:])
    return images, target if target.shape[0] == count else target.expand(count, *target.shape[1:])


def check_target(name: str, target: Any, kind: type[FrozenFeatures]) -> None:
    """Check that a target is a tensor of images, or precomputed features of a class.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(target, (Tensor, kind)):
        raise TypeError(
            f"{name} must be a tensor, or {kind.__name__} from this loss's features(), got {type(target).__name__}"
        )


def _written(options: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options) or "fewer options"


def check_features(
    name: str, features: FrozenFeatures, identity: Identity, network: nn.Module, title: str = "VGG"
) -> None:
    """Check that features were computed by a loss with these options and weights.

    Args:
        name: Name of the argument in the message.
        features: The features.
        identity: The options of the loss that determine the features.
        network: The loss's network.
        title: Its name in the message.

    Raises:
        ValueError: If they were not.
    """
    remedy = "recompute them with this loss's features()"
    if features.made_by != identity:
        theirs = [option for option in features.made_by if option not in identity]
        own = [option for option in identity if option not in features.made_by]
        raise ValueError(
            f"{name} contains features of a loss with {_written(theirs)}, but this loss has {_written(own)}; {remedy}"
        )
    if not same_weights(features.weights, fingerprint(network)):
        raise ValueError(f"{name} contains features computed with other {title} weights; {remedy}")


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """What a loss compares with, for real images: returned by its ``features`` and accepted in place of ``real``.

    Attributes:
        maps: Feature maps, or what the distance keeps of them (Gram matrices ``[N, C, C]``), per image scale and term.
        shape: Shape of the images.
        made_by: Names and values of the loss's options that determine the features. A loss with others rejects them.
        weights: Fingerprint of the network's weights. A loss with other weights rejects the features.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import FrozenFeatureLoss
        >>> criterion = FrozenFeatureLoss(torch.nn.Conv2d(3, 8, 3))
        >>> features = criterion.features(torch.zeros(2, 3, 32, 32))
        >>> features.nbytes
        57600
        >>> loss = criterion(torch.ones(1, 3, 32, 32), features[:1])
    """

    maps: tuple[tuple[Tensor, ...], ...]
    shape: torch.Size
    made_by: Identity
    weights: str = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.maps)

    @property
    def nbytes(self) -> int:
        """Size of the feature maps in bytes."""
        return sum(x.nbytes for scale in self.maps for x in scale)

    def to(self: _Features, *args: Any, **kwargs: Any) -> _Features:
        """Converts all feature maps with ``Tensor.to``, for example to another device or to bfloat16."""
        maps = tuple(tuple(x.to(*args, **kwargs) for x in scale) for scale in self.maps)
        return dataclasses.replace(self, maps=maps)

    def __getitem__(self: _Features, images: slice) -> _Features:
        """Selects a slice of the batch."""
        if not isinstance(images, slice):
            raise TypeError(f"features must be indexed with a slice, as in features[2:3], got {images!r}")
        maps = tuple(tuple(x[images] for x in scale) for scale in self.maps)
        count = len(next(x for scale in maps for x in scale))  # scales of weight 0 have no feature maps
        return dataclasses.replace(self, maps=maps, shape=torch.Size([count, *self.shape[1:]]))

    def expand(self: _Features, *shape: int) -> _Features:
        """Expands the features of one image to a batch, without a copy. ``shape`` is the new shape of the images."""
        maps = tuple(tuple(x.expand(shape[0], *x.shape[1:]) for x in scale) for scale in self.maps)
        return dataclasses.replace(self, maps=maps, shape=torch.Size(shape))

    @staticmethod
    def cat(parts: Sequence[_Features]) -> _Features:
        """Concatenates features along the batch dimension.

        Raises:
            ValueError: If ``parts`` is empty, or the parts differ in image size, loss options or network weights.
        """
        if not parts:
            raise ValueError("parts is empty; pass at least one features object")
        first = parts[0]
        for part in parts[1:]:
            if part.shape[1:] != first.shape[1:] or part.made_by != first.made_by:
                raise ValueError(
                    "parts must have the same image size and come from the same loss, got "
                    f"{tuple(first.shape)} from a loss with {_written(first.made_by)}, and {tuple(part.shape)} from "
                    f"one with {_written(part.made_by)}; recompute them with one loss's features()"
                )
            if not same_weights(part.weights, first.weights):
                raise ValueError("parts must come from the same loss, got features computed with different weights")
        maps = tuple(tuple(torch.cat(xs) for xs in zip(*scales, strict=True)) for scales in zip(*parts, strict=True))
        shape = torch.Size([sum(p.shape[0] for p in parts), *first.shape[1:]])
        return dataclasses.replace(first, maps=maps, shape=shape)


@dataclasses.dataclass(frozen=True)
class VGGFeatures(FrozenFeatures):
    """VGG feature maps of real images, returned by ``VGGLoss.features(real)`` and accepted in place of ``real``.

    For the paper's five layers they hold 122 values per pixel: 244 MiB for a 1024×512 image in float32, and 122 MiB in
    bfloat16.

    Attributes:
        maps: Feature maps ``[N, C, h, w]`` after ReLU, per image scale and per layer.
        shape: Shape of the images.
        made_by: Names and values of the loss's options that determine the features. A loss with others rejects them.
        weights: Fingerprint of the VGG weights. A loss with other weights rejects the features.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import VGGLoss
        >>> criterion = VGGLoss(vgg="random")
        >>> features = criterion.features(torch.zeros(1, 3, 32, 32))
        >>> loss = criterion(torch.ones(1, 3, 32, 32), features)
    """
