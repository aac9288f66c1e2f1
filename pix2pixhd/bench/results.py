"""Measured cases as data, as tables and compared with an earlier run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from pix2pixhd.bench.case import Agreement, Setup
from pix2pixhd.bench.timing import Ratio, Timing
from pix2pixhd.errors import InputError

__all__ = ["BASELINES", "CaseResult", "changes", "describe", "memory_table", "read_results", "speed_table"]

# Below it the bootstrap over the rounds gives no 95 % interval: one round gives an interval of width 0.
_FEWEST_ROUNDS = 5
# Above it the error of plain PyTorch is printed too: an L1 loss of nearly equal features has gradients whose signs
# depend on rounding, in every implementation.
_NOTICEABLE = 1e-4
BASELINES = {"plain": "plain PyTorch", "compiled": "torch.compile"}


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """What was measured for one case at one size.

    Attributes:
        name: Name of the case.
        setup: Images and discriminator.
        timings: Times by implementation.
        agreements: Errors against float64 by implementation.
        memory: Bytes retained and at the peak, by implementation; empty if not measured.
    """

    name: str
    setup: Setup
    timings: Mapping[str, Timing]
    agreements: Mapping[str, Agreement]
    memory: Mapping[str, Mapping[str, int]]

    @property
    def size(self) -> str:
        """Width, height and number of images."""
        images = f", batch {self.setup.batch}" if self.setup.batch > 1 else ""
        return f"{self.setup.width}x{self.setup.height}{images}"

    def speed_up(self, baseline: str) -> Ratio:
        """Returns how many times as long as the fused implementation another one takes."""
        return Ratio.of(self.timings[baseline], self.timings["fused"])

    @property
    def uncertain(self) -> bool:
        """Whether a ratio varied too much between the rounds to be a measurement."""
        return any(self.speed_up(name).uncertain for name in self.timings if name != "fused")

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        ratios = {name: dataclasses.asdict(self.speed_up(name)) for name in self.timings if name != "fused"}
        return {
            "case": self.name,
            "setup": json.loads(self.setup.to_json()),
            "seconds": {name: list(timing.rounds) for name, timing in self.timings.items()},
            "times as long as fused": ratios,
            "relative error against float64": {name: found.error for name, found in self.agreements.items()},
            "agrees with float64": {name: found.agrees for name, found in self.agreements.items()},
            "bytes": {name: dict(found) for name, found in self.memory.items()},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> CaseResult:
        """Reads what ``to_json`` returned."""
        errors = found["relative error against float64"]
        return cls(
            found["case"],
            Setup.from_json(json.dumps(found["setup"])),
            {name: Timing(tuple(rounds)) for name, rounds in found["seconds"].items()},
            {name: Agreement(error, errors["plain"]) for name, error in errors.items()},
            found["bytes"],
        )


def read_results(text: str, source: str) -> list[CaseResult]:
    """Reads the cases of a file that ``pix2pixhd bench --json`` wrote.

    Raises:
        InputError: If the text is something else.
    """
    try:
        results = [CaseResult.from_json(case) for case in json.loads(text)["cases"]]
        complete = all(map(_is_complete, results))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _not_written(source) from error
    if not complete:
        raise _not_written(source)
    return results


def _not_written(source: str) -> InputError:
    return InputError(
        f"--compare: {source} was not written by this version of pix2pixhd bench --json; measure again with --json"
    )


def _is_complete(result: CaseResult) -> bool:
    """Whether all implementations have the same number of times, and all times are positive.

    Raises:
        TypeError: If a value has another type, or cannot be a key of ``changes``.
    """
    hash((result.name, result.setup))
    rounds = [timing.rounds for timing in result.timings.values()]
    return (
        {"fused", "plain"} <= result.timings.keys()
        and isinstance(result.setup.dtype, torch.dtype)
        and len({len(times) for times in rounds}) == 1
        and len(rounds[0]) > 0
        and all(0 < seconds < math.inf for times in rounds for seconds in times)
    )


def _time(timing: Timing) -> str:
    """Formats a median and its percentiles with one unit."""
    unit, factor = ("s", 1.0) if timing.median >= 1 else ("ms", 1e3) if timing.median >= 1e-3 else ("µs", 1e6)
    low, median, high = (f"{factor * x:.3g}" for x in (timing.low, timing.median, timing.high))
    return f"{median} {unit} ({low} to {high})"


def _times(ratio: Ratio) -> str:
    if ratio.uncertain:
        return f"not measured ({ratio.low:.2g} to {ratio.high:.2g})"
    return f"{ratio.value:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def describe(name: str, timings: Mapping[str, Timing]) -> str:
    """Returns one line with the ratios of a case."""
    parts = [f"pix2pixhd {_time(timings['fused'])}"]
    ratios = {what: Ratio.of(timings[what], timings["fused"]) for what in timings if what != "fused"}
    parts += [f"{title} takes {_times(ratios[what])}" for what, title in BASELINES.items() if what in ratios]
    if "limit" in ratios:
        parts.append(f"{ratios['limit'].value:.0%} of the bandwidth limit")
    return f"{name}: " + ", ".join(parts)


def speed_table(results: Sequence[CaseResult]) -> Table:
    """Returns the table of times."""
    table = Table(title="forward and backward", title_justify="left")
    headers = ("case", "size", "pix2pixhd", "plain PyTorch takes", "torch.compile takes", "of the limit")
    for header in (*headers, "agrees with float64"):
        table.add_column(header, justify="left" if header in ("case", "size") else "right", overflow="fold")
    for result in results:
        cells = [_times(result.speed_up(name)) if name in result.timings else "–" for name in BASELINES]
        limit = "–"
        if "limit" in result.timings:
            share = result.speed_up("limit")
            limit = "not measured" if share.uncertain else f"{share.value:.0%}"
        found = result.agreements["fused"]
        agrees = f"{'yes' if found.agrees else 'NO'}, {found.error:.0e}"
        if not found.agrees or found.error > _NOTICEABLE:
            agrees += f"; plain {found.plain:.0e}"
        table.add_row(result.name, result.size, _time(result.timings["fused"]), *cells, limit, agrees)
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 5e4 else "below 0.1 MB"


def memory_table(results: Sequence[CaseResult]) -> Table:
    """Returns the table of the memory above that of the inputs."""
    table = Table(title="memory above the inputs", title_justify="left")
    for header in ("case", "size", "implementation", "saved for backward", "", "peak", ""):
        left = header in ("case", "size", "implementation")
        table.add_column(header, justify="left" if left else "right", overflow="fold")
    for result in results:
        base = result.memory.get("plain", {})
        for name, found in result.memory.items():
            cells = []
            for what in ("retained", "peak"):
                amount = _megabytes(found[what]) if what in found else "–"
                share = f"{found[what] / base[what]:.1%}" if base.get(what) and name != "plain" else ""
                cells += [amount, share]
            title = "pix2pixhd" if name == "fused" else BASELINES[name]
            first = name == next(iter(result.memory))
            table.add_row(*((result.name, result.size) if first else ("", "")), title, *cells, end_section=False)
    return table


def changes(results: Sequence[CaseResult], earlier: Sequence[CaseResult]) -> list[str]:
    """Describes which speed-ups changed beyond noise: their 95 % intervals do not overlap.

    Ratios are compared, not times, because the speed of a machine changes from day to day.
    """
    lines = []
    known = {(result.name, result.setup): result for result in earlier}
    for result in results:
        old = known.get((result.name, result.setup))
        if old is None:
            lines.append(f"{result.name}, {result.size}: not in the earlier results with this setup")
            continue
        for baseline in result.timings.keys() & old.timings.keys() - {"fused"}:
            new_ratio, old_ratio = result.speed_up(baseline), old.speed_up(baseline)
            if min(len(found.timings["fused"].rounds) for found in (result, old)) < _FEWEST_ROUNDS:
                verdict = f"not measured, with fewer than {_FEWEST_ROUNDS} rounds"
            elif new_ratio.uncertain or old_ratio.uncertain:
                verdict = "not measured"
            elif new_ratio.low > old_ratio.high:
                verdict = "faster"
            elif new_ratio.high < old_ratio.low:
                verdict = "SLOWER"
            else:
                verdict = "no change beyond noise"
            what = BASELINES.get(baseline, "the bandwidth limit")
            lines.append(
                f"{result.name}, {result.size}, against {what}: {old_ratio.value:.2f}× before, "
                f"{new_ratio.value:.2f}× now: {verdict}"
            )
    return sorted(lines)
