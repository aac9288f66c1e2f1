"""One part's way through a VGG and back: value and gradient of the perceptual loss, with no activation kept.

Generated and real side run in lockstep; a map goes as soon as the next one is there. For the way back only bits are
kept: which elements a ReLU let through, where a pooled element came from, the signs of the L1 terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.perceptual_scaling import Float16Scale
from pix2pixhd.ops.perceptual_tiling import POOL, RELU, TAP, TAP_POOL, Part, Rows


class Chain(NamedTuple):
    """A network of 3×3 convolutions, and how its maps are compared; tensors in the type and layout of the pass.

    Attributes:
        weights: Of the convolutions, ``[out, in, 3, 3]``, out a multiple of 32.
        biases: Of the convolutions, ``[out]``.
        plan: One letter per convolution, see ``vgg_parts``.
        factors: One number per tapped map.
        squared: Whether maps are compared by squared error, or by L1.
        bias_apart: Whether the bias is added by the operator that follows a convolution. On CUDA a convolution's own
            bias is another pass over its output; on the CPU it costs nothing and is added before rounding.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    plan: str
    factors: Sequence[float]
    squared: bool
    bias_apart: bool


class _Kept(NamedTuple):
    """What the way back needs of one convolution."""

    mask: Tensor | None = None
    distance: Tensor | None = None
    weight: Tensor | None = None
    coefficient: float = 0.0
    codes: Tensor | None = None
    pooled_from: tuple[int, int] = (0, 0)
    cropped_from: tuple[int, int] = (0, 0)  # rows before the first one kept, and of the map that pooling gave


def channels_last(x: Tensor) -> Tensor:
    """``x`` in channels-last memory format; ``x`` itself when it already is."""
    return x.contiguous(memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3×3 convolution of padding 1, in channels-last memory format.

    A convolution may return another format than its input's: cuDNN does in float64, and so do PyTorch's own kernels
    and the path for an empty batch.
    """
    return channels_last(F.conv2d(x, weight, bias, padding=1))


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``convolve(x, weight, None)`` with respect to ``x``.

    It is computed from the weights as they are now. Nothing derived from them is cached, because a write through
    ``.data`` changes them without a trace.
    """
    if gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
        return channels_last(F.conv_transpose2d(gradient, weight, padding=1))
    # A convolution with transposed and flipped weights. On CUDA the transposed convolution may be non-deterministic, on
    # the CPU it is many times slower in half precision; the copy of the weights costs little.
    return convolve(gradient, channels_last(weight.flip(2, 3).transpose(0, 1)), None)


def pixel_weight(weight_map: Tensor | None, x: Tensor, rows: Rows, width: int) -> Tensor | None:
    """The weights of a map's pixels, ``[N, rows, width]``: those of its band, 0 in the margin; None for all 1."""
    if weight_map is None and rows.is_whole:
        return None
    dtype = wider(x.dtype)
    own = slice(rows.own_first - rows.first, rows.own_end - rows.first)
    weight = x.new_zeros((x.shape[0], rows.length, width), dtype=dtype)
    if weight_map is None:
        weight[:, own] = 1.0
    else:
        scaled = F.adaptive_avg_pool2d(weight_map.to(dtype), (rows.height, width))
        weight[:, own] = scaled[:, 0, rows.own_first : rows.own_end]
    return weight


def _activated_rows(features: Tensor, rows: Rows, like: Tensor) -> Tensor:
    part = features[:, :, rows.first : rows.end].to(like.dtype)
    return channels_last(part)


class PartPass:
    """The forward and the backward of one part.

    Args:
        chain: The network.
        part: Which pictures and rows.
        pack: Whether the way back will be gone.
    """

    def __init__(self, chain: Chain, part: Part, pack: bool) -> None:
        self.chain = chain
        self.part = part
        self.pack = pack
        self.trail: list[_Kept] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor | None, features: Sequence[Tensor], weight_map: Tensor | None) -> Tensor:
        """The loss per picture, ``[N]`` in float64.

        Args:
            x: The part's rows of the generated pictures, channels last.
            y: Those of the real pictures; None when their features are given.
            features: The real pictures' tapped maps, after ReLU, or an empty list.
            weight_map: Of the pictures ``[N, 1, H, W]``, all rows, or None.
        """
        chain, ops = self.chain, torch.ops.pix2pixhd
        loss = x.new_zeros(x.shape[0], dtype=torch.float64)
        stage = tap = 0
        for kind, weight, bias in zip(chain.plan, chain.weights, chain.biases, strict=True):
            inner, outer = (None, bias) if chain.bias_apart else (bias, None)
            # One side after the other: the input of a side's convolution goes before the other side's output comes.
            x = convolve(x, weight, inner)
            y = None if y is None else convolve(y, weight, inner)
            kept = _Kept()
            if kind in (TAP, TAP_POOL):
                term, kept = self._compare(x, y, outer, features, weight_map, stage, tap)
                loss += term
                tap += 1
                outer = None  # both maps have it by now
            elif kind == RELU:
                kept = _Kept(ops.relu_mask_.default(x, outer, self.pack))
                if y is not None:
                    ops.relu_mask_.default(y, outer, False)
            if kind in (POOL, TAP_POOL):
                stage += 1
                x, y, kept = self._pool(x, y, outer, kept, stage)
            self.trail.append(kept)
        self.last = x
        return loss

    def _compare(
        self,
        x: Tensor,
        y: Tensor | None,
        bias: Tensor | None,
        features: Sequence[Tensor],
        weight_map: Tensor | None,
        stage: int,
        tap: int,
    ) -> tuple[Tensor, _Kept]:
        rows = self.part.stages[stage]
        target = y if y is not None else _activated_rows(features[tap], rows, x)
        if y is None and bias is not None:  # the operator would add it to both
            x += bias.view(1, -1, 1, 1)
            bias = None
        weight = pixel_weight(weight_map, x, rows, x.shape[3])
        term, mask, distance = torch.ops.pix2pixhd.relu_distance_.default(
            x, target, bias, weight, self.chain.squared, y is None, self.pack
        )
        # The mean is the whole map's, not the part's.
        factor = self.chain.factors[tap] * rows.length / rows.height
        per_picture = max(x[0].numel() if len(x) else 0, 1)
        return factor * term, _Kept(mask, distance, weight, factor / per_picture)

    def _pool(
        self, x: Tensor, y: Tensor | None, bias: Tensor | None, kept: _Kept, stage: int
    ) -> tuple[Tensor, Tensor | None, _Kept]:
        ops = torch.ops.pix2pixhd
        before, after = self.part.stages[stage - 1], self.part.stages[stage]
        size = (x.shape[2], x.shape[3])
        x, codes = ops.relu_pool.default(x, bias, self.pack)
        y = None if y is None else ops.relu_pool.default(y, bias, False)[0]
        skipped = after.first - before.first // 2
        cropped_from = (skipped, x.shape[2])
        x = x[:, :, skipped : skipped + after.length]
        y = None if y is None else y[:, :, skipped : skipped + after.length]
        return x, y, kept._replace(codes=codes, pooled_from=size, cropped_from=cropped_from)

    def backward(self) -> Tensor:
        """The gradient of the part's loss with respect to its rows of the generated images, at least float32."""
        ops, chain = torch.ops.pix2pixhd, self.chain
        if self.last is None:
            raise RuntimeError("backward comes after forward")
        gradient = torch.zeros_like(self.last)
        self.last = None
        scale = self._scale(gradient) if gradient.dtype == torch.float16 else None
        for kind, weight in zip(reversed(chain.plan), reversed(chain.weights), strict=True):
            kept = self.trail.pop()
            if kept.codes is not None:
                gradient = gradient if scale is None else scale.adapt(gradient, len(self.trail))
                gradient = _uncropped(gradient, *kept.cropped_from)
                gradient = ops.relu_pool_backward.default(gradient, kept.codes, *kept.pooled_from)
            if kind in (TAP, TAP_POOL):
                pixels = kept.weight if scale is None else scale.weigh(kept.weight, gradient)
                ops.relu_distance_backward_.default(
                    gradient, kept.mask, kept.distance, pixels, chain.squared, kept.coefficient
                )
            elif kind == RELU:
                ops.relu_backward_.default(gradient, kept.mask)
            del kept
            gradient = input_gradient(gradient, weight)
        return gradient.to(wider(gradient.dtype)) if scale is None else scale.undo(gradient)

    def _scale(self, like: Tensor) -> Float16Scale:
        peaks = [None if kept.distance is None else self._peak(kept, kept.distance, len(like)) for kept in self.trail]
        return Float16Scale(peaks, len(like), like.device)

    def _peak(self, kept: _Kept, distance: Tensor, images: int) -> Tensor:
        """The magnitude ``[N]`` of the largest term that the loss adds to the gradient of a compared map."""
        peak = torch.full((images,), abs(kept.coefficient), device=distance.device)
        if kept.weight is not None:
            peak = peak * torch.linalg.vector_norm(kept.weight, torch.inf, dim=(1, 2))
        if self.chain.squared:
            differences = distance.view(images, max(distance.numel() // max(images, 1), 1))
            peak = peak * 2.0 * torch.linalg.vector_norm(differences, torch.inf, dim=1, dtype=torch.float32)
        return peak


def _uncropped(gradient: Tensor, skipped: int, height: int) -> Tensor:
    """The gradient of all rows that pooling gave: nothing came of those that were left out."""
    if gradient.shape[2] == height:
        return gradient
    n, c, rows, width = gradient.shape
    whole = torch.zeros((n, c, height, width), dtype=gradient.dtype, device=gradient.device).contiguous(
        memory_format=torch.channels_last
    )
    whole[:, :, skipped : skipped + rows] = gradient
    return whole


def run_part(
    pass_: PartPass,
    fake: Tensor,
    real: Tensor | None,
    features: Sequence[Tensor],
    weight_map: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The part's loss per picture, and the gradient of its rows; all arguments but ``pass_`` are the whole batch's."""
    pictures = slice(pass_.part.first, pass_.part.end)
    rows = slice(pass_.part.stages[0].first, pass_.part.stages[0].end)

    def laid_out(x: Any) -> Any:
        return None if x is None else channels_last(x[pictures, :, rows].to(dtype))

    loss = pass_.forward(
        laid_out(fake),
        laid_out(real),
        [maps[pictures] for maps in features],
        None if weight_map is None else weight_map[pictures],
    )
    return loss, pass_.backward() if pass_.pack else None
