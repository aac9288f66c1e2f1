"""Distance of Gram matrices, the style loss."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pix2pixhd.losses.distances.base import Distance, mean_per_image, register

GramCriterion = Literal["mse", "l1"]


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    """Returns the feature map as matrices ``[N, C, positions]``."""
    return x.movedim(axis, 1).flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def gram_matrix(x: Tensor, axis: int = 1) -> Tensor:
    """Returns the Gram matrices ``G = F Fᵀ / (C · positions)``, ``[N, C, C]``, of feature maps F (arXiv 1603.08155).

    Args:
        x: Feature maps, for example ``[N, C, h, w]``.
        axis: Dimension of the channels.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses.distances import gram_matrix
        >>> gram_matrix(torch.ones(1, 2, 4, 4))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    matrix = _as_matrix(x, axis)
    return matrix @ matrix.transpose(1, 2) / max(matrix.shape[1] * matrix.shape[2], 1)


@register
class GramDistance(Distance):
    """Mean squared or absolute difference of the Gram matrices; only ``[N, C, C]`` is kept of the target.

    Args:
        criterion: ``"mse"`` or ``"l1"``.

    Raises:
        ValueError: If the criterion is unknown.
    """

    name = "gram"
    masked = False

    def __init__(self, criterion: GramCriterion = "mse") -> None:
        if criterion not in get_args(GramCriterion):
            raise ValueError(f"criterion must be {' or '.join(get_args(GramCriterion))}, got {criterion!r}")
        self.criterion = criterion

    def target(self, y: Tensor, axis: int) -> Tensor:
        """Returns the Gram matrices of the target."""
        return gram_matrix(y, axis)

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        difference = gram_matrix(x, axis) - target
        return mean_per_image(difference.square() if self.criterion == "mse" else difference.abs())

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        matrix = _as_matrix(x, axis)
        channels, size = matrix.shape[1], max(matrix.shape[1] * matrix.shape[2], 1)
        difference = matrix @ matrix.transpose(1, 2) / size - target
        if self.criterion == "mse":
            value, slope = mean_per_image(difference.square()), 2.0 * difference
        else:
            value, slope = mean_per_image(difference.abs()), difference.sign()
        slope = (slope + slope.transpose(1, 2)) / (max(channels**2, 1) * size)
        gradient = torch.bmm(slope, matrix)
        moved = x.movedim(axis, 1) if x.dim() > 2 else x
        gradient = gradient.view(moved.shape)
        return value, gradient.movedim(1, axis) if x.dim() > 2 else gradient
