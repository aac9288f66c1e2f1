"""Mean absolute and mean squared difference of feature maps."""

from __future__ import annotations

from torch import Tensor

from pix2pixhd.losses.distances.base import Distance, mean_per_image, register


def _per_element(x: Tensor) -> float:
    return max(x.numel(), 1) / max(x.shape[0], 1)


@register
class L1Distance(Distance):
    """``mean(weight · |x − y|)``."""

    name = "l1"

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        difference = (x - target).abs()
        return mean_per_image(difference if weight is None else difference * weight)

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        difference = x - target
        gradient = difference.sign()
        absolute = difference.abs_()
        if weight is not None:
            gradient, absolute = gradient.mul_(weight), absolute.mul_(weight)
        return mean_per_image(absolute), gradient.div_(_per_element(x))


@register
class MSEDistance(Distance):
    """``mean(weight · (x − y)²)``."""

    name = "mse"

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        squared = (x - target).square()
        return mean_per_image(squared if weight is None else squared * weight)

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        difference = x - target
        squared = difference.square()
        if weight is not None:
            difference, squared = difference.mul_(weight), squared.mul_(weight)
        return mean_per_image(squared), difference.mul_(2.0 / _per_element(x))
