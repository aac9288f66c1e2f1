"""The perceptual loss and its gradient in one forward pass, with no activation kept.

With frozen weights the loss is a scalar function of one picture, so its gradient is one picture: it is computed along
with the value, and nothing else stays until the backward. Generated and real side run in lockstep; a map goes as soon as
the next one is there. For the way back only bits are kept, until the end of the forward: which elements a ReLU let
through, where a pooled element came from, the signs of the L1 terms.

The gradient of a 3×3 convolution of stride 1 and padding 1 is another one, with the weights transposed and mirrored;
these are laid out once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ops = torch.ops.pix2pixhd

# What follows each convolution: a plain ReLU, one whose map is compared, or one with max-pooling.
RELU, TAP, POOL = "r", "t", "p"


def _forward_of_real(y: Tensor, kind: str) -> Tensor:
    if kind == POOL:
        pooled: Tensor = _ops.relu_pool.default(y, False)[0]
        return pooled
    _ops.relu_mask_.default(y, False)
    return y


def _loss_and_gradient(
    fake: Tensor,
    real: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    adjoints: list[Tensor],
    factors: list[float],
    plan: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Value and, where asked for, gradient with respect to ``fake``.

    Args:
        fake: Pictures ``[N, C, H, W]`` in the type that the VGG computes in.
        real: The same for the real side.
        weights: Of the 3×3 convolutions, channels last.
        biases: Of the convolutions.
        adjoints: Transposed and mirrored weights, empty without gradient.
        factors: One per tapped map.
        plan: One letter per convolution.
        with_gradient: Whether a gradient is wanted.
    """
    x = fake.contiguous(memory_format=torch.channels_last)
    y = real.contiguous(memory_format=torch.channels_last)
    # Half gradients are scaled by a power of two: weight / numel alone is below float16's smallest number.
    loss = torch.zeros((), dtype=torch.float64)
    trail: list[tuple[Any, ...]] = []  # what the way back needs, per convolution
    taps = iter(factors)
    last = len(weights) - 1
    for index, kind in enumerate(plan):
        x = F.conv2d(x, weights[index], biases[index], padding=1)
        y = F.conv2d(y, weights[index], biases[index], padding=1)
        if kind == TAP:
            term, signs, mask = _ops.relu_l1_.default(x, y, with_gradient)
            factor = next(taps)
            loss += factor * term
            trail.append((mask, signs, factor / max(x.numel(), 1)))
        elif kind == POOL:
            size = x.shape[2:]
            x, codes = _ops.relu_pool.default(x, with_gradient)
            y = _forward_of_real(y, kind)
            trail.append((codes, size))
        else:
            trail.append((_ops.relu_mask_.default(x, with_gradient),))
            y = _forward_of_real(y, kind)
        if index == last:
            del y
    value = loss.to(torch.float64 if fake.dtype == torch.float64 else torch.float32)
    if not with_gradient:
        return value, fake.new_empty(0)
    gradient = torch.zeros_like(x)
    del x
    for index in range(last, -1, -1):
        kind, kept = plan[index], trail.pop()
        if kind == TAP:
            mask, signs, coefficient = kept
            _ops.relu_l1_backward_.default(gradient, mask, signs, coefficient * _scale(fake.dtype))
        elif kind == POOL:
            codes, size = kept
            gradient = _ops.relu_pool_backward.default(gradient, codes, size[0], size[1])
        else:
            _ops.relu_l1_backward_.default(gradient, kept[0], gradient.new_empty(0, dtype=torch.int32), 0.0)
        gradient = F.conv2d(gradient, adjoints[index], padding=1)
    return value, gradient


def _scale(dtype: torch.dtype) -> float:
    return 2.0**16 if dtype == torch.float16 else 1.0
