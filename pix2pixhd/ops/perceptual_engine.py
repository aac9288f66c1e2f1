"""Forward and backward pass of one tile through a VGG: value and gradient of the perceptual loss, without activations.

The generated and the real image are evaluated in lockstep. A feature map is freed as soon as the next one exists. For
the backward pass only bits are saved: which elements passed a ReLU, the position of each pooled maximum, and the signs
of the L1 terms. The other distances save a feature map per tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.conv_stack import POOLED_KINDS, RELU, TAPPED_KINDS, ConvStack, channels_last
from pix2pixhd.ops.perceptual_distance import Comparison
from pix2pixhd.ops.perceptual_scaling import Float16Scale
from pix2pixhd.ops.perceptual_tiling import RowSpan, Tile


class _Saved(NamedTuple):
    """What one convolution saves for the backward pass."""

    mask: Tensor | None = None
    distance: Tensor | None = None
    weight: Tensor | None = None
    coefficient: float = 0.0
    codes: Tensor | None = None
    pooled_from: tuple[int, int] = (0, 0)
    cropped_from: tuple[int, int] = (0, 0)  # rows cropped at the top of the pooled map, and its height before the crop


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3×3 convolution of padding 1, in channels-last memory format.

    A convolution may return another format than its input's: cuDNN does in float64, and so do PyTorch's own kernels
    and the path for an empty batch.
    """
    return channels_last(F.conv2d(x, weight, bias, padding=1))


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``convolve(x, weight, None)`` with respect to ``x``.

    It is computed from the current weights. Nothing derived from them is cached, because a write through ``.data``
    changes them without a new version.
    """
    if gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
        return channels_last(F.conv_transpose2d(gradient, weight, padding=1))
    # A convolution with transposed and flipped weights. On CUDA the transposed convolution may be non-deterministic. On
    # the CPU it is many times slower in half precision.
    return convolve(gradient, transposed(weight), None)


def transposed(weight: Tensor) -> Tensor:
    """Returns a weight with its channels exchanged and its kernel flipped, in channels-last memory format.

    On small images this copy is a large part of the time. On the CPU PyTorch copies most transposed tensors element by
    element, but matrices in blocks, and rows whole.
    """
    if weight.device.type != "cpu":
        return channels_last(weight.flip(2, 3).transpose(0, 1))
    outputs, inputs, height, width = weight.shape
    matrix = weight.permute(0, 2, 3, 1).reshape(outputs, height * width * inputs).t().contiguous()
    taps = matrix.view(height * width, inputs, outputs).unbind()
    # `flip` would create a third copy.
    return torch.stack(taps[::-1], 1).view(inputs, height, width, outputs).permute(0, 3, 1, 2)


def pixel_weight(weight_map: Tensor | None, x: Tensor, rows: RowSpan, width: int) -> Tensor | None:
    """Return the pixel weights of a tile's feature map, ``[N, rows, width]``, with 0 in the margin.

    None stands for a weight of 1 everywhere.
    """
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


def _rows_of(features: Tensor, rows: RowSpan, like: Tensor) -> Tensor:
    """Return a tile's rows of a given feature map, in the dtype of ``like``."""
    return channels_last(features[:, :, rows.first : rows.end].to(like.dtype))


class TilePass:
    """The forward and the backward pass of one tile.

    Args:
        stack: The network, in the dtype of the pass and with channels-last weights.
        comparison: How the tapped feature maps are compared.
        tile: The tile's images and rows.
        with_gradient: Whether ``backward`` will be called, so that bits must be saved.
    """

    def __init__(self, stack: ConvStack, comparison: Comparison, tile: Tile, with_gradient: bool) -> None:
        self.stack = stack
        self.comparison = comparison
        self.tile = tile
        self.with_gradient = with_gradient
        self._saved: list[_Saved] = []
        self._last: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor | None, features: Sequence[Tensor], weight_map: Tensor | None) -> Tensor:
        """Return the loss per image, ``[N]`` in float64.

        Args:
            x: The tile's rows of the generated images, in channels-last memory format.
            y: The same rows of the real images; None when their feature maps are given.
            features: The real images' tapped feature maps, after ReLU, or an empty list.
            weight_map: Pixel weights of the whole images ``[N, 1, H, W]``, or None.
        """
        stack, ops = self.stack, torch.ops.pix2pixhd
        loss = x.new_zeros(x.shape[0], dtype=torch.float64)
        # On CUDA the operator that follows a convolution adds the bias, because there a convolution's own bias costs
        # another pass over the output. On the CPU it costs nothing and is added before rounding.
        separate_bias = x.device.type != "cpu"
        stage = tap = 0
        for kind, weight, bias in zip(stack.layer_kinds, stack.weights, stack.biases, strict=True):
            inner, outer = (None, bias) if separate_bias else (bias, None)
            # One side after the other: the input of one side's convolution is freed before the other output exists.
            x = convolve(x, weight, inner)
            y = None if y is None else convolve(y, weight, inner)
            saved = _Saved()
            if kind in TAPPED_KINDS:
                term, saved = self._compare(x, y, outer, features, weight_map, stage, tap)
                loss += term
                tap += 1
                outer = None  # both feature maps already include the bias
            elif kind == RELU:
                saved = _Saved(ops.relu_mask_.default(x, outer, self.with_gradient))
                if y is not None:
                    ops.relu_mask_.default(y, outer, False)
            if kind in POOLED_KINDS:
                stage += 1
                x, y, saved = self._pool(x, y, outer, saved, stage)
            self._saved.append(saved)
        self._last = x
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
    ) -> tuple[Tensor, _Saved]:
        rows = self.tile.stages[stage]
        target = y if y is not None else _rows_of(features[tap], rows, x)
        if y is None and bias is not None:  # the operator would add the bias to both sides
            x += bias.view(1, -1, 1, 1)
            bias = None
        weight = pixel_weight(weight_map, x, rows, x.shape[3])
        term, mask, distance = self.comparison.forward(tap, x, target, bias, weight, y is None, self.with_gradient)
        # The mean is taken over the whole feature map, not over the tile.
        factor = self.comparison.layer_weights[tap] * rows.length / rows.height
        return factor * term, _Saved(mask, distance, weight, self.comparison.coefficient(factor, x))

    def _pool(
        self, x: Tensor, y: Tensor | None, bias: Tensor | None, saved: _Saved, stage: int
    ) -> tuple[Tensor, Tensor | None, _Saved]:
        ops = torch.ops.pix2pixhd
        before, after = self.tile.stages[stage - 1], self.tile.stages[stage]
        size = (x.shape[2], x.shape[3])
        x, codes = ops.relu_pool.default(x, bias, self.with_gradient)
        y = None if y is None else ops.relu_pool.default(y, bias, False)[0]
        skipped = after.first - before.first // 2
        cropped_from = (skipped, x.shape[2])
        x = x[:, :, skipped : skipped + after.length]
        y = None if y is None else y[:, :, skipped : skipped + after.length]
        return x, y, saved._replace(codes=codes, pooled_from=size, cropped_from=cropped_from)

    def backward(self) -> Tensor:
        """Return the gradient of the tile's loss with respect to its rows of the generated images.

        Its dtype is float32, or float64 for a pass in float64.

        Raises:
            RuntimeError: If ``forward`` has not been called before.
        """
        ops, stack, squared = torch.ops.pix2pixhd, self.stack, self.comparison.saves_features
        if self._last is None:
            raise RuntimeError("TilePass.backward must be called after TilePass.forward")
        gradient = torch.zeros_like(self._last)
        self._last = None
        scale = self._scale(gradient) if gradient.dtype == torch.float16 else None
        for kind, weight in zip(reversed(stack.layer_kinds), reversed(stack.weights), strict=True):
            saved = self._saved.pop()
            if saved.codes is not None:
                gradient = gradient if scale is None else scale.adapt(gradient, len(self._saved))
                gradient = _uncropped(gradient, *saved.cropped_from)
                gradient = ops.relu_pool_backward.default(gradient, saved.codes, *saved.pooled_from)
            if kind in TAPPED_KINDS:
                pixels = saved.weight if scale is None else scale.weigh(saved.weight, gradient)
                ops.relu_distance_backward_.default(
                    gradient, saved.mask, saved.distance, pixels, squared, saved.coefficient
                )
            elif kind == RELU:
                ops.relu_backward_.default(gradient, saved.mask)
            del saved  # free its memory before the convolution allocates
            gradient = input_gradient(gradient, weight)
        return gradient.to(wider(gradient.dtype)) if scale is None else scale.undo(gradient)

    def _scale(self, like: Tensor) -> Float16Scale:
        images = len(like)
        peaks = [None if s.distance is None else self._peak(s, s.distance, images) for s in self._saved]
        return Float16Scale(peaks, images, like.device)

    def _peak(self, saved: _Saved, distance: Tensor, images: int) -> Tensor:
        """Return the magnitude ``[N]`` of the largest term that the loss adds to a compared feature map's gradient."""
        peak = torch.full((images,), abs(saved.coefficient), device=distance.device, dtype=torch.float32)
        if saved.weight is not None:
            peak = peak * torch.linalg.vector_norm(saved.weight, torch.inf, dim=(1, 2))
        if self.comparison.saves_features:
            differences = distance.view(images, max(distance.numel() // max(images, 1), 1))
            peak = peak * 2.0 * torch.linalg.vector_norm(differences, torch.inf, dim=1, dtype=torch.float32)
        return peak


def _uncropped(gradient: Tensor, skipped: int, height: int) -> Tensor:
    """Return the gradient of all pooled rows; it is 0 for rows that were cropped."""
    if gradient.shape[2] == height:
        return gradient
    n, c, rows, width = gradient.shape
    whole = torch.zeros((n, c, height, width), dtype=gradient.dtype, device=gradient.device).contiguous(
        memory_format=torch.channels_last
    )
    whole[:, :, skipped : skipped + rows] = gradient
    return whole


def run_tile(
    tile_pass: TilePass,
    fake: Tensor,
    real: Tensor | None,
    features: Sequence[Tensor],
    weight_map: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Return the tile's loss per image and, if required, the gradient of its rows.

    All arguments but ``tile_pass`` are those of the whole batch.
    """
    tile = tile_pass.tile
    images = slice(tile.first, tile.end)
    rows = slice(tile.stages[0].first, tile.stages[0].end)

    loss = tile_pass.forward(
        channels_last(fake[images, :, rows].to(dtype)),
        None if real is None else channels_last(real[images, :, rows].to(dtype)),
        [feature_map[images] for feature_map in features],
        None if weight_map is None else weight_map[images],
    )
    return loss, tile_pass.backward() if tile_pass.with_gradient else None
