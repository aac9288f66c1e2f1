"""Interleaved timing of several implementations in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of one implementation over all rounds: 20th percentile, median, 80th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise the rounds of one implementation."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(ordered[round(0.2 * last)], statistics.median(ordered), ordered[round(0.8 * last)])


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call, measured by CUDA events on the current stream or, without a GPU, by the clock."""
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
    implementations: Mapping[str, Callable[[], object]], rounds: int = 15, warmup: int = 3, min_seconds: float = 3e-2
) -> dict[str, Timing]:
    """Time the implementations interleaved (A B C A B C …), so that changes of the machine's speed affect all alike.

    Args:
        implementations: Callables by name. All should do the same work.
        rounds: Timed rounds per implementation.
        warmup: Untimed calls before the first round (compilation, first touch of memory).
        min_seconds: Minimum duration of a round. A fast implementation is called repeatedly within a round, so that
            the cache contents left by the previous implementation do not matter.

    Returns:
        One ``Timing`` per implementation.
    """
    repeats = {}
    for name, call in implementations.items():
        for _ in range(warmup):
            call()
        repeats[name] = max(1, round(min_seconds / max(_seconds(call, 1), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(rounds):
        for name, call in implementations.items():
            seconds[name].append(_seconds(call, repeats[name]))
    return {name: Timing.of(values) for name, values in seconds.items()}


def capture(run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture a call as a CUDA graph, after three warm-up calls on a side stream.

    Returns:
        The graph, and the captured call's result, whose memory each replay overwrites.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
