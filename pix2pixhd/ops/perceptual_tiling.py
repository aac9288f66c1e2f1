"""Tiling of the perceptual loss: splits a batch into tiles whose feature maps fit into a memory limit.

A tile is a group of images of the batch, or a band of rows of one image. A band contributes the loss terms of its own
rows. To compute them exactly as in the whole image, its feature maps extend above and below by as many rows as the
receptive field of the following convolutions covers. This margin shrinks from one pooling to the next, and so does the
overhead of a band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pix2pixhd.ops.conv_stack import POOLED_KINDS, RELU, TAPPED_KINDS


class MemoryLimitError(ValueError):
    """Raised for a ``memory_limit`` that even the smallest tile exceeds."""


class RowSpan(NamedTuple):
    """The rows of a tile's feature maps at one resolution, that is between two poolings.

    Attributes:
        first: First row that is computed, counted in the whole image's feature map.
        end: One past the last computed row.
        own_first: First row that belongs to the band itself.
        own_end: One past the band's last own row.
        height: Number of rows of the whole image's feature map.
    """

    first: int
    end: int
    own_first: int
    own_end: int
    height: int

    @property
    def is_whole(self) -> bool:
        """Whether there is no margin, so that every row contributes to the loss."""
        return self.first == self.own_first and self.end == self.own_end

    @property
    def length(self) -> int:
        """Number of computed rows."""
        return self.end - self.first


class Tile(NamedTuple):
    """A part of the batch that is evaluated at once.

    Attributes:
        first: Index of the first image.
        end: One past the index of the last image.
        stages: Rows of the feature maps, one span per resolution.
    """

    first: int
    end: int
    stages: tuple[RowSpan, ...]


def _convolutions_per_stage(layer_kinds: str) -> list[int]:
    counts = [0]
    for kind in layer_kinds:
        counts[-1] += 1
        if kind in POOLED_KINDS:
            counts.append(0)
    return counts if counts[-1] else counts[:-1]


def _margins(layer_kinds: str) -> list[int]:
    """Return the margin, above and below a band, that the first feature map of each stage needs."""
    margin, margins = 0, []
    for convolutions in reversed(_convolutions_per_stage(layer_kinds)):
        margin = 2 * margin + convolutions
        margins.append(margin)
    return margins[::-1]


def _stages(layer_kinds: str, height: int, top: int, bottom: int) -> tuple[RowSpan, ...]:
    """Return the rows of every stage for the band from ``top`` to ``bottom``.

    Both must be divisible by the product of all poolings, except for a ``bottom`` at the lower edge of the image.
    """
    stages = []
    for level, margin in enumerate(_margins(layer_kinds)):
        own_first, full = top >> level, height >> level
        own_end = full if bottom == height else bottom >> level
        first = max(0, own_first - margin) & ~1  # pooling windows start at even rows
        end = own_end + margin
        end = full if end >= full else end + end % 2
        stages.append(RowSpan(first, min(end, full), own_first, own_end, full))
    return tuple(stages)


def peak_bytes(
    layer_kinds: str,
    channels: Sequence[int],
    rows: Sequence[int],
    width: int,
    itemsize: int,
    saves_features: bool,
    sides: int,
) -> int:
    """Return the peak memory, in bytes, of the feature maps and saved bits of one image's tile.

    Args:
        layer_kinds: One character per convolution, see ``ConvStack``.
        channels: Number of output channels of each convolution.
        rows: Number of rows of the feature maps of each stage.
        width: Width of the image.
        itemsize: Bytes per element.
        saves_features: Whether the distance saves a feature map per tap, or signs (L1).
        sides: 2 when the real image is evaluated too, 1 when its feature maps are given.
    """
    stage, saved, peak, before = 0, 0, 0, 3 * rows[0] * width * itemsize
    backward = 0  # the largest pair of gradients, before and after a convolution
    for kind, count in zip(layer_kinds, channels, strict=True):
        elements = count * rows[stage] * (width >> stage)
        out = elements * itemsize
        # The convolution's output and input, and what the other side holds at that time.
        peak = max(peak, saved + out + before + (sides - 1) * max(before, out))
        backward = max(backward, out + before)
        if kind in TAPPED_KINDS:
            saved += elements // 8 + (elements * itemsize if saves_features else elements // 4)
        if kind in POOLED_KINDS:
            stage += 1
            pooled = count * rows[stage] * (width >> stage) if stage < len(rows) else elements // 4
            peak = max(peak, saved + out + pooled * itemsize + (sides - 1) * out)
            saved += pooled * 3 // 8
            before = pooled * itemsize
        else:
            saved += elements // 8 if kind == RELU else 0
            before = out
    return max(peak, saved + backward)


def plan_tiles(
    layer_kinds: str,
    channels: Sequence[int],
    shape: Sequence[int],
    itemsize: int,
    saves_features: bool,
    sides: int,
    memory_limit: int | None,
) -> list[Tile]:
    """Split images ``[N, C, H, W]`` into as few tiles as the memory limit allows.

    Args:
        layer_kinds: One character per convolution, see ``ConvStack``.
        channels: Number of output channels of each convolution.
        shape: Shape of the images.
        itemsize: Bytes per element.
        saves_features: Whether the distance saves a feature map per tap, or signs (L1).
        sides: 2 when the real image is evaluated too, 1 when its feature maps are given.
        memory_limit: Maximum number of bytes for feature maps and saved bits; None for no limit.

    Raises:
        MemoryLimitError: If even the narrowest band needs more memory.
    """
    images, _, height, width = shape
    whole = _stages(layer_kinds, height, 0, height)

    def needed(stages: Sequence[RowSpan]) -> int:
        return peak_bytes(
            layer_kinds, channels, [rows.length for rows in stages], width, itemsize, saves_features, sides
        )

    if memory_limit is None or images * needed(whole) <= memory_limit:
        return [Tile(0, images, whole)]
    group = memory_limit // needed(whole)
    if group > 0:
        return [Tile(first, min(first + group, images), whole) for first in range(0, images, group)]
    step = 1 << (len(whole) - 1)
    smallest = 0
    for count in range(2, max(height // step, 1) + 1):
        size = -(-height // step // count) * step  # rows of a band; the last one ends at the lower edge
        tops = [top for top in range(0, height, size) if height - top >= step or top == 0]
        bands = [_stages(layer_kinds, height, a, b) for a, b in zip(tops, [*tops[1:], height], strict=True)]
        smallest = max(needed(stages) for stages in bands)
        if smallest <= memory_limit:
            return [Tile(n, n + 1, stages) for n in range(images) for stages in bands]
    raise MemoryLimitError(
        f"memory_limit is {memory_limit / 2**20:.4g} MiB, but images of {height}x{width} need at least "
        f"{math.ceil((smallest or needed(whole)) / 2**20)} MiB in {itemsize * 8}-bit precision; increase memory_limit"
        + (", or use dtype=torch.bfloat16" if itemsize > 2 else "")
    )
