"""Interleaved timing of several implementations in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")
_FEWEST_ROUNDS = 5  # for a confidence interval
# Seconds of a round. Before a shorter one, the implementation is called once without timing: memory that it keeps
# between calls, as in training, was freed for the other implementations.
_SLOW = 0.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of one implementation, one value per round."""

    rounds: tuple[float, ...]

    @property
    def low(self) -> float:
        """The 20th percentile."""
        return self._percentile(0.2)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.rounds)

    @property
    def high(self) -> float:
        """The 80th percentile."""
        return self._percentile(0.8)

    def _percentile(self, share: float) -> float:
        return sorted(self.rounds)[round(share * (len(self.rounds) - 1))]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long one implementation takes as another, with a 95 % confidence interval.

    Attributes:
        value: Ratio of the medians.
        low: Lower end of the interval.
        high: Upper end of the interval.
        rounds: Number of rounds.
    """

    value: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, numerator: Timing, denominator: Timing, samples: int = 2000) -> Ratio:
        """Computes the ratio of two implementations that were timed interleaved.

        The interval is a percentile bootstrap over the rounds (Efron 1979). A round is drawn for both implementations
        together, because the machine's speed changes for both.
        """
        a, b = (torch.tensor(timing.rounds, dtype=torch.float64) for timing in (numerator, denominator))
        drawn = torch.randint(len(a), (samples, len(a)), generator=torch.Generator().manual_seed(0))
        ratios = a[drawn].quantile(0.5, dim=1) / b[drawn].quantile(0.5, dim=1)
        low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(numerator.median / denominator.median, low, high, len(a))

    @property
    def has_interval(self) -> bool:
        """Whether there are enough rounds for the bootstrap. From one round its interval would have width 0."""
        return self.rounds >= _FEWEST_ROUNDS

    @property
    def uncertain(self) -> bool:
        """Whether the interval is wider than a quarter of the value: too wide to be a measurement."""
        return self.high - self.low > 0.25 * self.value


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


def _warm_up(call: Callable[[], object], calls: int) -> float:
    """Calls several times, but a slow function once; returns the seconds of the last call, which is one more."""
    for _ in range(calls):
        once = _seconds(call, 1)
        if once > _SLOW:
            return once
    return _seconds(call, 1)


def compare(
    implementations: Mapping[str, Callable[[], object]],
    rounds: int | None = 15,
    warmup: int = 3,
    min_seconds: float = 3e-2,
    budget: float = 10.0,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Timing]:
    """Time the implementations interleaved (A B C A B C …), so that changes of the machine's speed affect all alike.

    Args:
        implementations: Callables by name. All should do the same work.
        rounds: Timed rounds per implementation. None for as many as fit into ``budget``, from 5 to 50.
        warmup: Untimed calls before the first round (compilation, first touch of memory), besides the one from which
            the length of a round is estimated. Of a function that takes longer than half a second, one is enough.
        min_seconds: Minimum duration of a round. A fast implementation is called repeatedly within a round, so that
            the cache contents left by the previous implementation do not matter.
        budget: Seconds for all rounds together, if ``rounds`` is None.
        progress: Called with what is being done.

    Returns:
        One ``Timing`` per implementation.
    """
    repeats, calls_before, round_seconds = {}, {}, 0.0
    for name, call in implementations.items():
        progress(f"warming up {name}")
        once = _warm_up(call, warmup)
        repeats[name] = max(1, round(min_seconds / max(once, 1e-7)))
        calls_before[name] = 1 if repeats[name] * once < _SLOW else 0
        round_seconds += (repeats[name] + calls_before[name]) * once
    least = _FEWEST_ROUNDS if rounds is None else rounds
    if rounds is None:
        rounds = min(50, max(_FEWEST_ROUNDS, int(budget / round_seconds)))
    end = time.perf_counter() + budget  # on a busy machine a round can take much longer than the first calls
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for done in range(rounds):
        if done >= least and time.perf_counter() > end:
            break
        progress(f"round {done + 1} of {rounds}")
        for name, call in implementations.items():
            for _ in range(calls_before[name]):
                call()
            seconds[name].append(_seconds(call, repeats[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


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
