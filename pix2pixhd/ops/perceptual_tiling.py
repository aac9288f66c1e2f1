"""How the perceptual loss cuts pictures into parts whose maps fit into a bound on memory.

A part is some pictures of the batch, or a band of rows of one picture. A band's terms of the loss are those of its own
rows; to compute them as the whole picture would, its maps reach further up and down, by as many rows as the
convolutions behind them look. That margin shrinks from pooling to pooling, and with it what a band costs extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# What follows each convolution of the network: a plain ReLU; one whose map is compared; one with max-pooling; or both.
RELU, TAP, POOL, TAP_POOL = "r", "t", "p", "b"
_POOLS = (POOL, TAP_POOL)
_TAPS = (TAP, TAP_POOL)


class MemoryLimitError(ValueError):
    """A ``memory_limit`` that even the smallest part exceeds."""


class Rows(NamedTuple):
    """Rows of the maps between two poolings.

    Attributes:
        first: The first row that is there, of the whole picture's map.
        end: One past the last.
        own_first: The first row of the band proper.
        own_end: One past its last.
        height: Rows of the whole picture's map.
    """

    first: int
    end: int
    own_first: int
    own_end: int
    height: int

    @property
    def is_whole(self) -> bool:
        """Whether there is no margin: every row counts."""
        return self.first == self.own_first and self.end == self.own_end

    @property
    def length(self) -> int:
        """Rows that are there."""
        return self.end - self.first


class Part(NamedTuple):
    """Pictures ``first`` to ``end`` of the batch; for each stage between poolings the rows of its maps."""

    first: int
    end: int
    stages: tuple[Rows, ...]


def _convolutions_per_stage(plan: str) -> list[int]:
    counts = [0]
    for kind in plan:
        counts[-1] += 1
        if kind in _POOLS:
            counts.append(0)
    return counts if counts[-1] else counts[:-1]


def _margins(plan: str) -> list[int]:
    """Rows above and below a band that each stage's first map must have for all that comes after to be right."""
    margin, margins = 0, []
    for convolutions in reversed(_convolutions_per_stage(plan)):
        margin = 2 * margin + convolutions
        margins.append(margin)
    return margins[::-1]


def _stages(plan: str, height: int, top: int, bottom: int) -> tuple[Rows, ...]:
    """The rows of every stage for the band from ``top`` to ``bottom``, which every pooling halves, or the edge."""
    stages = []
    for level, margin in enumerate(_margins(plan)):
        own_first, full = top >> level, height >> level
        own_end = full if bottom == height else bottom >> level
        first = max(0, own_first - margin) & ~1  # pooling's windows begin at even rows
        end = own_end + margin
        end = full if end >= full else end + end % 2
        stages.append(Rows(first, min(end, full), own_first, own_end, full))
    return tuple(stages)


def peak_bytes(
    plan: str, channels: Sequence[int], rows: Sequence[int], width: int, itemsize: int, squared: bool, sides: int
) -> int:
    """The most bytes that maps and bits of one picture's part take at a time.

    Args:
        plan: One letter per convolution.
        channels: Of each convolution's output.
        rows: Of each stage's maps.
        width: Of the picture.
        itemsize: Bytes of a number.
        squared: Whether differences are kept, or signs.
        sides: 2 when the real side is computed too, 1 when its features are given.
    """
    stage, kept, peak, before = 0, 0, 0, 3 * rows[0] * width * itemsize
    most = 0  # of the way back: a gradient before and after its convolution
    for kind, count in zip(plan, channels, strict=True):
        elements = count * rows[stage] * (width >> stage)
        out = elements * itemsize
        # The convolution's output beside its input, and what the other side has at that time.
        peak = max(peak, kept + out + before + (sides - 1) * max(before, out))
        most = max(most, out + before)
        if kind in _TAPS:
            kept += elements // 8 + (elements * itemsize if squared else elements // 4)
        if kind in _POOLS:
            stage += 1
            pooled = count * rows[stage] * (width >> stage) if stage < len(rows) else elements // 4
            peak = max(peak, kept + out + pooled * itemsize + (sides - 1) * out)
            kept += pooled * 3 // 8
            before = pooled * itemsize
        else:
            kept += elements // 8 if kind == RELU else 0
            before = out
    return max(peak, kept + most)


def plan_parts(
    plan: str,
    channels: Sequence[int],
    shape: Sequence[int],
    itemsize: int,
    squared: bool,
    sides: int,
    memory_limit: int | None,
) -> list[Part]:
    """Cuts pictures ``[N, C, H, W]`` into as few parts as the bound allows.

    Args:
        plan: One letter per convolution.
        channels: Of each convolution's output.
        shape: Of the pictures.
        itemsize: Bytes of a number.
        squared: Whether differences are kept, or signs.
        sides: 2 when the real side is computed too, 1 when its features are given.
        memory_limit: Most bytes for maps and bits, or None for no bound.

    Raises:
        MemoryLimitError: If the narrowest band needs more.
    """
    pictures, _, height, width = shape
    whole = _stages(plan, height, 0, height)

    def needed(stages: Sequence[Rows]) -> int:
        return peak_bytes(plan, channels, [rows.length for rows in stages], width, itemsize, squared, sides)

    if memory_limit is None or pictures * needed(whole) <= memory_limit:
        return [Part(0, pictures, whole)]
    group = memory_limit // needed(whole)
    if group > 0:
        return [Part(first, min(first + group, pictures), whole) for first in range(0, pictures, group)]
    step = 1 << (len(whole) - 1)
    smallest = 0
    for count in range(2, max(height // step, 1) + 1):
        size = -(-height // step // count) * step  # rows of a band; the last one ends with the picture
        tops = [top for top in range(0, height, size) if height - top >= step or top == 0]
        bands = [_stages(plan, height, a, b) for a, b in zip(tops, [*tops[1:], height], strict=True)]
        smallest = max(needed(stages) for stages in bands)
        if smallest <= memory_limit:
            return [Part(n, n + 1, stages) for n in range(pictures) for stages in bands]
    raise MemoryLimitError(
        f"memory_limit is {memory_limit / 2**20:.0f} MiB, and pictures of {height}x{width} need at least "
        f"{(smallest or needed(whole)) / 2**20:.0f} MiB in {itemsize * 8}-bit numbers; raise it"
        + (", or take dtype=torch.bfloat16" if itemsize > 2 else "")
    )
