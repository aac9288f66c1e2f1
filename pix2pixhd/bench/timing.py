"""Timing of rivals side by side: in turns, in one process, medians and ratios of medians."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of one rival over all rounds: 20th percentile, median, 80th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarises one rival's rounds."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(ordered[round(0.2 * last)], statistics.median(ordered), ordered[round(0.8 * last)])


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call: by events on the current stream where there is a GPU, else by the clock."""
    if torch.cuda.is_available():
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def compare(
    rivals: Mapping[str, Callable[[], object]], rounds: int = 15, warmup: int = 3, min_seconds: float = 3e-2
) -> dict[str, Timing]:
    """Times the rivals in turns, A B C A B C …, so that a drift of the machine's speed touches all of them alike.

    Args:
        rivals: What to call, by name. All should do the same work.
        rounds: How often each is timed.
        warmup: Calls before the first timed one (compilation, first touch of memory).
        min_seconds: A round calls a quick rival as often as it needs to last this long, so that what the rival before
            it left in the caches does not count.

    Returns:
        One ``Timing`` per rival.
    """
    repeats = {}
    for name, call in rivals.items():
        for _ in range(warmup):
            call()
        repeats[name] = max(1, round(min_seconds / max(_seconds(call, 1), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            seconds[name].append(_seconds(call, repeats[name]))
    return {name: Timing.of(values) for name, values in seconds.items()}
