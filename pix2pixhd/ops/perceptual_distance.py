"""Distances of two feature maps at a tap of the perceptual loss, forward and backward.

A distance is one entry of ``DISTANCES``. Its operator applies bias and ReLU to both feature maps in place, and returns
the mean per image, the bits of the elements that ReLU passes, and what the backward needs besides: packed signs, or
half the derivative, which ``relu_distance_backward_`` multiplies by a coefficient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pix2pixhd.ops.autograd import wider

__all__ = ["DISTANCES", "Comparison", "Distance"]

# The derivative of LPIPS is about 1 / |x|, which float16 would round to few bits. It is multiplied by this number.
_FLOAT16_SCALE = 1024.0

# (input, target, bias, linear, pixel weights, target is activated, save for backward) -> (mean [N], mask, kept)
_Forward = Callable[[Tensor, Tensor, "Tensor | None", Tensor, "Tensor | None", bool, bool], tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance of the perceptual loss.

    Attributes:
        forward: Calls the operator.
        saves_features: Whether the forward saves a feature map for the backward, or signs.
        over_channels: Whether the mean is taken over channels and pixels, or over pixels alone.
        has_linear: Whether the channels have weights.
    """

    forward: _Forward
    saves_features: bool
    over_channels: bool = True
    has_linear: bool = False

    def kept_scale(self, dtype: torch.dtype) -> float:
        """Factor by which the saved derivatives of feature maps of this dtype are multiplied."""
        return _FLOAT16_SCALE if self.has_linear and dtype == torch.float16 else 1.0


def _difference(squared: bool) -> _Forward:
    def forward(
        x: Tensor, y: Tensor, bias: Tensor | None, _: Tensor, pixels: Tensor | None, activated: bool, pack: bool
    ) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.ops.pix2pixhd.relu_distance_.default(
            x, y, bias, pixels, squared, activated, pack
        )
        return found

    return forward


def _lpips(
    x: Tensor, y: Tensor, bias: Tensor | None, linear: Tensor, pixels: Tensor | None, activated: bool, pack: bool
) -> tuple[Tensor, ...]:
    scale = DISTANCES["lpips"].kept_scale(x.dtype)
    weights = linear.to(wider(x.dtype)).contiguous()
    found: tuple[Tensor, ...] = torch.ops.pix2pixhd.relu_lpips_.default(
        x, y, bias, weights, pixels, activated, scale, pack
    )
    return found


DISTANCES = {
    "l1": Distance(_difference(squared=False), saves_features=False),
    "mse": Distance(_difference(squared=True), saves_features=True),
    "lpips": Distance(_lpips, saves_features=True, over_channels=False, has_linear=True),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the tapped feature maps are compared.

    Attributes:
        layer_weights: One weight per tapped feature map.
        distance: A name in ``DISTANCES``.
        linear: For a distance with weights of the channels, these weights ``[C]`` per tapped feature map.
    """

    layer_weights: Sequence[float]
    distance: str = "l1"
    linear: Sequence[Tensor] = ()

    @property
    def saves_features(self) -> bool:
        """Whether a feature map per tap is saved for the backward, or signs."""
        return DISTANCES[self.distance].saves_features

    def forward(
        self, tap: int, x: Tensor, y: Tensor, bias: Tensor | None, pixels: Tensor | None, activated: bool, pack: bool
    ) -> tuple[Tensor, ...]:
        """Compare the feature maps of one tap; see ``csrc/cpu/kernels.h``."""
        linear = self.linear[tap] if self.linear else x
        return DISTANCES[self.distance].forward(x, y, bias, linear, pixels, activated, pack)

    def coefficient(self, factor: float, x: Tensor) -> float:
        """Factor of what the forward saved, for ``factor`` times the mean per image."""
        distance = DISTANCES[self.distance]
        terms = x[0].numel() if len(x) else 0
        if not distance.over_channels:
            terms //= max(x.shape[1], 1)
        return factor / max(terms, 1) / distance.kept_scale(x.dtype)
