"""Description of a frozen stack of convolutions, as the perceptual loss evaluates it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# What follows a convolution: a plain ReLU; a ReLU whose feature map enters the loss (a tap); a ReLU and max-pooling; or
# a tap and max-pooling.
RELU, TAP, POOL, TAP_POOL = "r", "t", "p", "b"
POOLED_KINDS = (POOL, TAP_POOL)
TAPPED_KINDS = (TAP, TAP_POOL)


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels-last memory format; ``x`` itself when it already is."""
    return x.contiguous(memory_format=torch.channels_last)


class ConvStack(NamedTuple):
    """A stack of 3×3 convolutions of stride 1 and padding 1, each followed by a ReLU.

    Attributes:
        weights: Convolution weights, ``[out, in, 3, 3]`` each, out a multiple of 32.
        biases: Convolution biases, ``[out]`` each.
        layer_kinds: One character per convolution: ``RELU``, ``TAP``, ``POOL`` or ``TAP_POOL``.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    layer_kinds: str

    @property
    def channels(self) -> list[int]:
        """Number of output channels of each convolution."""
        return [len(bias) for bias in self.biases]

    @property
    def tapped_channels(self) -> list[int]:
        """Number of channels of each tapped feature map."""
        kinds = zip(self.biases, self.layer_kinds, strict=True)
        return [len(bias) for bias, kind in kinds if kind in TAPPED_KINDS]

    def to(self, dtype: torch.dtype) -> ConvStack:
        """Return the stack with parameters of another dtype and weights in channels-last memory format."""
        return ConvStack(
            [channels_last(weight.to(dtype)) for weight in self.weights],
            [bias.to(dtype) for bias in self.biases],
            self.layer_kinds,
        )
