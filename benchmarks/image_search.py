"""The search for the largest image whose training step fits into a memory limit."""

import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Run:
    """A step at one size. The peak, in bytes, is None if the step was stopped because it exceeded the limit."""

    height: int
    limit: int
    fits: bool
    peak: int | None


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest height that fits, 0 if none does. Estimated heights are not confirmed by runs."""

    height: int
    estimated: bool


class Search:
    """Find the largest image height, a multiple of ``step``, for one or several limits.

    The next height is estimated from the peaks of two runs, because memory is nearly linear in the number of pixels.
    The search ends when one run fits and the next height does not. Runs for one limit serve the others.

    Args:
        measure: Runs a step, from the height and the limit in bytes.
        step: Distance between heights.
        peaks_decide: Whether a step fits a limit exactly if its measured peak does. This holds for resident memory but
            not for a GPU's allocator, which also needs room for fragmentation.
    """

    def __init__(self, measure: Callable[[int, int], Run], step: int = 64, peaks_decide: bool = True):
        self.measure, self.step, self.peaks_decide = measure, step, peaks_decide
        self.runs: list[Run] = []

    def largest(self, limit: int, measurable: int | None = None) -> Largest:
        """The largest height for a limit. Limits above ``measurable`` bytes are estimated from smaller runs."""
        if measurable is not None and limit > measurable:
            if not any(run.peak is not None and run.peak > limit / 2 for run in self.runs):
                self.largest(measurable)
            return Largest(self._estimate(limit) or 0, estimated=True)
        while True:
            low, high = self.bounds(limit)
            if high is not None and high - low <= self.step:
                return Largest(low, estimated=False)
            self.runs.append(self.measure(self._next(low, high, limit), limit))

    def bounds(self, limit: int) -> tuple[int, int | None]:
        """The largest height that is known to fit a limit, 0 if none is, and the smallest that is known not to."""
        verdicts = {run.height: self._verdict(run.height, limit) for run in self.runs}
        low = max((height for height, fits in verdicts.items() if fits), default=0)
        return low, min((height for height, fits in verdicts.items() if fits is False), default=None)

    def _next(self, low: int, high: int | None, limit: int) -> int:
        guess = self._estimate(limit) or 2 * max(low, self.step)
        if high is None:
            # An estimate from small images is too high, because the gradients of the weights hide the activations.
            return min(max(guess, low + self.step), 4 * max(low, self.step))
        if not low < guess < high:
            guess = low + self.step if guess <= low else high - self.step
            if (high - low) > 4 * self.step:
                guess = (low + high) // 2 // self.step * self.step
        return max(guess, low + self.step)

    def _estimate(self, limit: int) -> int | None:
        """The height at which a line through the two peaks nearest to the limit reaches it."""
        peaks = {run.height: run.peak for run in self.runs if run.peak is not None}
        nearest = sorted(sorted(peaks, key=lambda height: abs(peaks[height] - limit))[:2])
        if len(nearest) < 2 or peaks[nearest[1]] <= peaks[nearest[0]]:
            return None
        a, b = nearest
        slope = (peaks[b] - peaks[a]) / (b**2 - a**2)
        square = b**2 + (limit - peaks[b]) / slope
        return int(math.sqrt(max(square, 0)) / self.step) * self.step

    def _verdict(self, height: int, limit: int) -> bool | None:
        """Whether a height fits, as far as the runs tell."""
        for run in self.runs:
            if run.height != height:
                continue
            if run.fits and (run.limit <= limit or (self.peaks_decide and run.peak is not None and run.peak <= limit)):
                return True
            if run.peak is not None and self.peaks_decide:
                return run.peak <= limit
            if (not run.fits and run.limit >= limit) or (run.peak is not None and run.peak > limit):
                return False
        return None
