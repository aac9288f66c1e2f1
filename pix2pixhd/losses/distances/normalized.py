"""Distances of feature vectors that are normalized to unit length over the channels: cosine and LPIPS."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pix2pixhd.losses.distances.base import Distance, mean_per_image, register
from pix2pixhd.ops import reference


def _normalized_backward(gradient: Tensor, x: Tensor, norm: Tensor, inverse: Tensor, axis: int) -> Tensor:
    """Returns the gradient with respect to ``x``, given the gradient with respect to ``x / (‖x‖ + eps)``."""
    along = (gradient * x).sum(axis, keepdim=True)
    return gradient.mul_(inverse).sub_(x * (along * inverse.square() / norm))


@register
class CosineDistance(Distance):
    """``mean_p(weight · (1 − cos(x_p, y_p)))`` over the positions p; the cosine of a zero vector is 0."""

    name = "cosine"

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        product = reference.unit_normalised(x, axis, 0.0) * reference.unit_normalised(target, axis, 0.0)
        distance = 1.0 - product.sum(axis, keepdim=True)
        return mean_per_image(distance if weight is None else distance * weight)

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        norm, inverse = reference.inverse_norm(x, axis, 0.0)
        unit = reference.unit_normalised(target, axis, 0.0)
        distance = 1.0 - (x * unit).sum(axis, keepdim=True).mul_(inverse)
        factor: Tensor | float = -1.0 / max(distance[0].numel() if len(x) else 1, 1)
        if weight is not None:
            distance, factor = distance * weight, weight * factor
        return mean_per_image(distance), _normalized_backward(unit.mul_(factor), x, norm, inverse, axis)


@register
class LPIPSDistance(Distance):
    """``mean_p(weight · Σ_c l_c · (x̂_pc − ŷ_pc)²)``, where ``x̂ = x / (‖x‖ + eps)`` over the channels.

    This is the distance of LPIPS (arXiv 1801.03924). Zero vectors stay zero and have gradient 0; the gradient of the
    ``lpips`` package's formula is NaN there.

    Args:
        linear: Channel weights l, ``[C]``, or None for 1.
        eps: Added to the norm.
    """

    name = "lpips"

    def __init__(self, linear: Tensor | None = None, eps: float = 1e-10) -> None:
        self.linear = None if linear is None else linear.detach().flatten()
        self.eps = eps

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> None:
        """Moves the channel weights."""
        if self.linear is not None:
            self.linear = function(self.linear)

    def check_channels(self, x: Tensor, axis: int) -> None:
        """Raises a ``ValueError`` if a feature map has another number of channels than there are weights."""
        if self.linear is not None and self.linear.numel() != x.shape[axis]:
            raise ValueError(
                f"linear must have one number per channel of its feature map, {x.shape[axis]}, got "
                f"{self.linear.numel()}; pass other weights, or a network with these channels"
            )

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        self.check_channels(x, axis)
        distance = reference.lpips_map(x, target, self.linear, axis, self.eps)
        return mean_per_image(distance if weight is None else distance * weight)

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        self.check_channels(x, axis)
        norm, inverse = reference.inverse_norm(x, axis, self.eps)
        difference = (x * inverse).sub_(reference.unit_normalised(target, axis, self.eps))
        gradient = difference
        if self.linear is not None:
            gradient = difference * reference.along_axis(self.linear, x, axis)
        distance = (gradient * difference).sum(axis, keepdim=True)
        factor: Tensor | float = 2.0 / max(distance[0].numel() if len(x) else 1, 1)
        if weight is not None:
            distance, factor = distance * weight, weight * factor
        return mean_per_image(distance), _normalized_backward(gradient.mul_(factor), x, norm, inverse, axis)
