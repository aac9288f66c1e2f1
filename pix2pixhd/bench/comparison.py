"""What changed since an earlier run of the benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch

from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.results import TITLES, CaseResult

__all__ = ["changes", "differences"]

# Variants of this package. A change of one of them is no change of the fused implementation's speed.
_OWN = ("features", "bounded", "fused-graph")
# What is a change of memory: resident memory is counted in pages, and libraries allocate some of their own.
_MEMORY_SHARE, _MEMORY_BYTES = 0.03, 5e5
# Of the facts about a machine, those that say when and how it was measured.
_OTHER_FACTS = ("date", "command")


def differences(
    machine: Mapping[str, object],
    results: Sequence[CaseResult],
    earlier_machine: Mapping[str, object],
    earlier: Sequence[CaseResult],
) -> list[str]:
    """Describes how machine, versions, threads and device of two runs differ, which changes ratios too."""
    if not earlier_machine:
        return [
            "The earlier file does not state its machine and versions, so that other reasons for changes are unknown."
        ]
    now, before = (
        {key: str(value) for key, value in facts.items() if key not in _OTHER_FACTS}
        for facts in (machine, earlier_machine)
    )
    now["device"], before["device"] = _devices(results), _devices(earlier)
    found = [
        f"{key} ({before.get(key, 'not stated')} before, {now.get(key, 'not stated')} now)"
        for key in dict.fromkeys((*now, *before))
        if now.get(key) != before.get(key)
    ]
    if not found:
        return ["Machine, versions, threads and device are those of the earlier measurements."]
    return [f"DIFFERENT FROM THE EARLIER MEASUREMENTS: {'; '.join(found)}. Changes below can be due to this."]


def _devices(results: Sequence[CaseResult]) -> str:
    return ", ".join(sorted({result.setup.device.type for result in results}))


def changes(results: Sequence[CaseResult], earlier: Sequence[CaseResult]) -> list[str]:
    """Describes which speed-ups changed beyond noise, and which memory and errors against float64 changed.

    Ratios are compared, not times, because the speed of a machine changes from day to day. They changed if their 95 %
    intervals do not overlap. All ratios are listed, but only those of the others that changed.
    """
    known = {_key(result): result for result in earlier}
    lines, pairs = [], []
    for result in results:
        old = known.get(_key(result))
        if old is None:
            lines.append(f"{_title(result)}: not in the earlier results with this setup")
        else:
            pairs.append((result, old))
    for result, old in pairs:
        lines += _speed_changes(result, old)
    if not pairs:
        return sorted(lines)
    memory = [line for result, old in pairs for line in _memory_changes(result, old)]
    errors = [line for result, old in pairs for line in _agreement_changes(result, old)]
    if not any(result.memory.keys() & old.memory.keys() for result, old in pairs):
        memory = ["memory: not measured in both runs"]
    no_memory = f"memory: no change by more than {_MEMORY_SHARE:.0%} and {_MEMORY_BYTES / 1e6:g} MB"
    return [
        *sorted(lines),
        *(memory or [no_memory]),
        *(errors or ["agreement with float64: no change beyond rounding"]),
    ]


def _key(result: CaseResult) -> tuple[str, Setup]:
    """What is compared: the same case with the same images, on any device."""
    return result.name, dataclasses.replace(result.setup, device=torch.device("cpu"), sets=1)


def _title(result: CaseResult) -> str:
    return f"{result.name}, {result.size}, {result.setup.precision}"


def _speed_changes(result: CaseResult, old: CaseResult) -> Iterator[str]:
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
        yield (
            f"{_title(result)}, against {TITLES[baseline]}: {old_ratio.value:.2f}× before, "
            f"{new_ratio.value:.2f}× now: {verdict}"
        )


def _memory_changes(result: CaseResult, old: CaseResult) -> Iterator[str]:
    for name in TITLES:
        now, before = result.memory.get(name, {}), old.memory.get(name, {})
        for what, title in (("retained", "memory saved for backward"), ("peak", "peak memory")):
            if what not in now or what not in before:
                continue
            difference = now[what] - before[what]
            if abs(difference) > max(_MEMORY_BYTES, _MEMORY_SHARE * before[what]):
                verdict = "MORE" if difference > 0 else "less"
                yield (
                    f"{_title(result)}, {title} of {TITLES[name]}: {before[what] / 1e6:.1f} MB before, "
                    f"{now[what] / 1e6:.1f} MB now: {verdict}"
                )


def _agreement_changes(result: CaseResult, old: CaseResult) -> Iterator[str]:
    """Compares errors by the criterion for errors against float64: twice the other one's, and rounding."""
    for name in TITLES:
        now, before = result.agreements.get(name), old.agreements.get(name)
        if now is None or before is None:
            continue
        if now.unclear or before.unclear:
            continue
        if now.agrees != before.agrees:
            verdict = "agrees again" if now.agrees else "NO LONGER AGREES with float64"
        elif now.error > Agreement(now.error, before.error, before.rounding).tolerance:
            verdict = "LARGER"
        elif before.error > Agreement(before.error, now.error, now.rounding).tolerance:
            verdict = "smaller"
        else:
            continue
        yield (
            f"{_title(result)}, error of {TITLES[name]} against float64: {before.error:.0e} before, {now.error:.0e} "
            f"now: {verdict}"
        )
