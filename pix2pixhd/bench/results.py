"""Measured cases as data, and compared with an earlier run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pix2pixhd.bench.case import Agreement, Setup
from pix2pixhd.bench.timing import Ratio, Timing
from pix2pixhd.errors import InputError

__all__ = ["BASELINES", "TITLES", "CaseResult", "changes", "read_results"]

BASELINES = {"plain": "plain PyTorch", "compiled": "torch.compile"}
TITLES = {
    "fused": "pix2pixhd",
    **BASELINES,
    "limit": "the bandwidth limit",
    "checkpoint": "plain PyTorch, checkpoints",
    "features": "pix2pixhd, precomputed features",
    "bounded": "pix2pixhd, memory limit",
    "lpips": "lpips package",
    "torchmetrics": "torchmetrics",
    "fused-graph": "pix2pixhd, CUDA graph",
    "plain-graph": "plain PyTorch, CUDA graph",
}
# Variants of this package. A change of one of them is no change of the fused implementation's speed.
_OWN = ("features", "bounded", "fused-graph")


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """What was measured for one case at one size.

    Attributes:
        name: Name of the case.
        setup: Images and discriminator.
        timings: Times by implementation.
        agreements: Errors against float64 by implementation.
        memory: Bytes retained and at the peak, by implementation; empty if not measured.
        plain_float32: Times of plain PyTorch in float32, from the same rounds, if this is another dtype.
        launches: On a GPU, kernel launches by implementation.
        of_copy: On a GPU, share of the bandwidth of a copy that the fused implementation reaches, if it has a limit.
    """

    name: str
    setup: Setup
    timings: Mapping[str, Timing]
    agreements: Mapping[str, Agreement]
    memory: Mapping[str, Mapping[str, int]]
    plain_float32: Timing | None = None
    launches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    of_copy: float | None = None

    @property
    def size(self) -> str:
        """Width, height and number of images."""
        images = f", batch {self.setup.batch}" if self.setup.batch > 1 else ""
        return f"{self.setup.width}x{self.setup.height}{images}"

    def speed_up(self, baseline: str) -> Ratio:
        """Returns how many times as long as the fused implementation another one takes."""
        return Ratio.of(self.timings[baseline], self.timings["fused"])

    @property
    def over_plain_float32(self) -> Ratio | None:
        """How many times as long as the fused implementation plain PyTorch takes in float32."""
        return None if self.plain_float32 is None else Ratio.of(self.plain_float32, self.timings["fused"])

    @property
    def uncertain(self) -> bool:
        """Whether a ratio varied too much between the rounds to be a measurement."""
        ratios = [self.speed_up(name) for name in self.timings if name != "fused"]
        return any(ratio.uncertain for ratio in (*ratios, self.over_plain_float32) if ratio is not None)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        ratios = {name: _as_json(self.speed_up(name)) for name in self.timings if name != "fused"}
        plain = self.plain_float32
        over_float32 = self.over_plain_float32
        found = {
            "case": self.name,
            "setup": json.loads(self.setup.to_json()),
            "seconds": {name: list(timing.rounds) for name, timing in self.timings.items()},
            "times as long as fused": ratios,
            "relative error against float64": {name: found.error for name, found in self.agreements.items()},
            "agrees with float64": {name: found.agrees for name, found in self.agreements.items()},
            "bytes": {name: dict(found) for name, found in self.memory.items()},
        }
        if self.launches:
            found["kernel launches"] = dict(self.launches)
        if self.of_copy is not None:
            found["share of a device copy's bandwidth"] = self.of_copy
        if plain is not None and over_float32 is not None:
            found["seconds of plain float32"] = list(plain.rounds)
            found["plain float32, times as long as fused"] = _as_json(over_float32)
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> CaseResult:
        """Reads what ``to_json`` returned."""
        errors = found["relative error against float64"]
        plain = found.get("seconds of plain float32")
        return cls(
            found["case"],
            Setup.from_json(json.dumps(found["setup"])),
            {name: Timing(tuple(rounds)) for name, rounds in found["seconds"].items()},
            {name: Agreement(error, errors["plain"]) for name, error in errors.items()},
            found["bytes"],
            None if plain is None else Timing(tuple(plain)),
            found.get("kernel launches", {}),
            found.get("share of a device copy's bandwidth"),
        )


def _as_json(ratio: Ratio) -> dict[str, Any]:
    return {**dataclasses.asdict(ratio), "measured": not ratio.uncertain}


def read_results(text: str, source: str) -> list[CaseResult]:
    """Reads the cases of a file that ``pix2pixhd bench --json`` wrote.

    Raises:
        InputError: If the text is something else.
    """
    try:
        results = [CaseResult.from_json(case) for case in json.loads(text)["cases"]]
        complete = all(map(_is_complete, results))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise _not_written(source) from error
    if not results or not complete:
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
    rounds = [timing.rounds for timing in (*result.timings.values(), result.plain_float32) if timing is not None]
    return (
        {"fused", "plain"} <= result.timings.keys()
        and result.timings.keys() <= TITLES.keys()
        and isinstance(result.setup.dtype, torch.dtype)
        and len({len(times) for times in rounds}) == 1
        and len(rounds[0]) > 0
        and all(1e-9 < seconds < 1e9 for times in rounds for seconds in times)
    )


def changes(results: Sequence[CaseResult], earlier: Sequence[CaseResult]) -> list[str]:
    """Describes which speed-ups changed beyond noise: their 95 % intervals do not overlap.

    Ratios are compared, not times, because the speed of a machine changes from day to day.
    """
    lines = []
    known = {(result.name, result.setup): result for result in earlier}
    for result in results:
        old = known.get((result.name, result.setup))
        what = f"{result.name}, {result.size}, {result.setup.precision}"
        if old is None:
            lines.append(f"{what}: not in the earlier results with this setup")
            continue
        for baseline in result.timings.keys() & old.timings.keys() - {"fused", *_OWN}:
            new_ratio, old_ratio = result.speed_up(baseline), old.speed_up(baseline)
            if not (new_ratio.has_interval and old_ratio.has_interval):
                verdict = "not measured, with too few rounds"
            elif new_ratio.uncertain or old_ratio.uncertain:
                verdict = "not measured"
            elif new_ratio.low > old_ratio.high:
                verdict = "faster"
            elif new_ratio.high < old_ratio.low:
                verdict = "SLOWER"
            else:
                verdict = "no change beyond noise"
            lines.append(
                f"{what}, against {TITLES[baseline]}: {old_ratio.value:.2f}× before, "
                f"{new_ratio.value:.2f}× now: {verdict}"
            )
    return sorted(lines)
