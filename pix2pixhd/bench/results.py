"""Measured cases as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch

from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.peak import ComputeLimit
from pix2pixhd.bench.timing import Ratio, Timing
from pix2pixhd.errors import InputError

__all__ = ["BASELINES", "TITLES", "CaseResult", "read_machine", "read_results"]

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
        unavailable: Implementations that could not be measured, with the reason.
        compute: For a network, the time of its convolutions at the rate of matrix products.
    """

    name: str
    setup: Setup
    timings: Mapping[str, Timing]
    agreements: Mapping[str, Agreement]
    memory: Mapping[str, Mapping[str, int]]
    plain_float32: Timing | None = None
    launches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    of_copy: float | None = None
    unavailable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compute: ComputeLimit | None = None

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
    def of_limit(self) -> Ratio | None:
        """Share of the bandwidth or of the matrix-product peak that the fused implementation reaches."""
        if "limit" in self.timings:
            return self.speed_up("limit")
        return None if self.compute is None else self.compute.share(self.timings["fused"])

    @property
    def uncertain(self) -> bool:
        """Whether a ratio varied too much between the rounds to be a measurement."""
        ratios = [self.speed_up(name) for name in self.timings if name != "fused"]
        others = (*ratios, self.over_plain_float32, self.of_limit)
        return any(ratio.uncertain for ratio in others if ratio is not None)

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
            "agrees with float64": {
                name: None if found.unclear else found.agrees for name, found in self.agreements.items()
            },
            # Of the same inputs, which may be others for every implementation.
            "error of plain, its allowance for rounding, largest": {
                name: [found.plain, found.rounding, found.largest] for name, found in self.agreements.items()
            },
            "bytes": {name: dict(found) for name, found in self.memory.items()},
        }
        if self.launches:
            found["kernel launches"] = dict(self.launches)
        if self.of_copy is not None:
            found["share of a device copy's bandwidth"] = self.of_copy
        if self.unavailable:
            found["not measured"] = dict(self.unavailable)
        if self.compute is not None:
            share = _as_json(self.compute.share(self.timings["fused"]))
            found["matrix-product limit"] = {**self.compute.to_json(), "share": share}
        if plain is not None and over_float32 is not None:
            found["seconds of plain float32"] = list(plain.rounds)
            found["plain float32, times as long as fused"] = _as_json(over_float32)
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> CaseResult:
        """Reads what ``to_json`` returned."""
        errors = found["relative error against float64"]
        tolerances = found.get("error of plain, its allowance for rounding, largest", {})
        plain = found.get("seconds of plain float32")
        limit = found.get("matrix-product limit")
        return cls(
            found["case"],
            Setup.from_json(json.dumps(found["setup"])),
            {name: Timing(tuple(rounds)) for name, rounds in found["seconds"].items()},
            {name: Agreement(error, *tolerances.get(name, [errors["plain"]])) for name, error in errors.items()},
            found["bytes"],
            None if plain is None else Timing(tuple(plain)),
            found.get("kernel launches", {}),
            found.get("share of a device copy's bandwidth"),
            found.get("not measured", {}),
            None if limit is None else ComputeLimit.from_json(limit),
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


def read_machine(text: str) -> dict[str, str]:
    """Returns the machine and the versions of a file that ``read_results`` accepts; empty if it does not state them."""
    found = json.loads(text).get("machine")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


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
    product = None if result.compute is None else result.compute.product
    timings = (*result.timings.values(), result.plain_float32, product)
    rounds = [timing.rounds for timing in timings if timing is not None]
    numbers: list[float] = [value for found in result.memory.values() for value in found.values()]
    numbers += [value for found in result.agreements.values() for value in (found.error, found.tolerance)]
    if result.compute is not None:
        numbers += [result.compute.product_flops, result.compute.convolution_flops]
    return (
        {"fused", "plain"} <= result.timings.keys()
        and result.timings.keys() <= TITLES.keys()
        and "fused" in result.agreements
        and all(isinstance(value, int | float) for value in numbers)
        and isinstance(result.setup.dtype, torch.dtype)
        and len({len(times) for times in rounds}) == 1
        and len(rounds[0]) > 0
        and all(1e-9 < seconds < 1e9 for times in rounds for seconds in times)
    )
