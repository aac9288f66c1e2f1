"""Plots of measured cases over the image size."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pix2pixhd.bench.results import BASELINES, CaseResult
from pix2pixhd.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["check_plottable", "plot"]

_FORMATS = (".png", ".svg", ".pdf")


def check_plottable(path: pathlib.Path) -> None:
    """Checks that a plot can be written.

    Raises:
        InputError: If matplotlib is missing or the file's extension is unknown.
    """
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--plot must end in {', '.join(_FORMATS)}, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("--plot needs matplotlib; install it (pip install matplotlib), or leave out --plot") from error


def plot(results: Sequence[CaseResult], path: pathlib.Path, file_format: str) -> None:
    """Draws speed-up and peak memory of every case, over the image size if a case has several.

    Args:
        results: Measured cases, in any order.
        path: The file to write.
        file_format: ``png``, ``svg`` or ``pdf``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    names = list(dict.fromkeys(result.name for result in results))
    groups = {name: [result for result in results if result.name == name] for name in names}
    draw = _bars if all(len(group) == 1 for group in groups.values()) else _lines
    speed, memory = figure.subplots(1, 2)
    draw(speed, memory, groups)
    figure.savefig(path, format=file_format.lower(), dpi=120)


def _peak_share(result: CaseResult) -> float | None:
    """Returns the peak memory relative to plain PyTorch."""
    base = result.memory.get("plain", {}).get("peak")
    return result.memory["fused"]["peak"] / base if base else None


def _pixels(result: CaseResult) -> int:
    return result.setup.width * result.setup.height * result.setup.batch


def _bars(speed: Axes, memory: Axes, groups: Mapping[str, Sequence[CaseResult]]) -> None:
    cases = [group[0] for group in groups.values()]
    labels = [f"{case.name}\n{case.size}" for case in cases]
    for offset, (baseline, title) in zip((-0.2, 0.2), BASELINES.items(), strict=True):
        chosen = [(row, case.speed_up(baseline)) for row, case in enumerate(cases) if baseline in case.timings]
        if chosen:
            values = [ratio.value for _, ratio in chosen]
            bars = [[r.value - r.low for _, r in chosen], [r.high - r.value for _, r in chosen]]
            speed.barh([row + offset for row, _ in chosen], values, 0.4, xerr=bars, label=f"over {title}", capsize=2)
    speed.set_xscale("log")
    _ratio_ticks(speed.xaxis)
    speed.axvline(1, color="gray", linewidth=1)
    speed.set_title("speed-up, with 95 % confidence intervals")
    speed.set_yticks(range(len(cases)), labels)
    speed.legend()
    memory.set_title("peak memory, relative to plain PyTorch")
    shares = [_peak_share(case) for case in cases]
    drawn = memory.barh(range(len(cases)), [share or 0.0 for share in shares])
    memory.bar_label(drawn, ["not measured" if share is None else f"{share:.2f}" for share in shares], padding=3)
    memory.axvline(1, color="gray", linewidth=1)
    memory.set_xlim(0, 1.15 * max([1.0, *(share for share in shares if share is not None)]))
    memory.set_yticks(range(len(cases)), labels)
    for axis in (speed, memory):
        axis.invert_yaxis()
        axis.grid(alpha=0.3, axis="x")


def _ratio_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis 0.5×, 1×, 2×, 5× instead of with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _lines(speed: Axes, memory: Axes, groups: Mapping[str, Sequence[CaseResult]]) -> None:
    for index, (name, group) in enumerate(groups.items()):
        cases = sorted(group, key=_pixels)
        pixels = [_pixels(case) for case in cases]
        for baseline, style in zip(BASELINES, ("-", "--"), strict=True):
            if all(baseline in case.timings for case in cases):
                ratios = [case.speed_up(baseline) for case in cases]
                bars = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
                label = f"{name}, over {BASELINES[baseline]}"
                values = [ratio.value for ratio in ratios]
                speed.errorbar(pixels, values, yerr=bars, fmt=style + "o", color=f"C{index}", label=label, capsize=3)
        shares = [share for case in cases if (share := _peak_share(case)) is not None]
        if len(shares) == len(cases):
            memory.plot(pixels, shares, "-o", color=f"C{index}", label=name)
    speed.axhline(1, color="gray", linewidth=1)
    speed.set(title="speed-up, with 95 % confidence intervals", yscale="log")
    _ratio_ticks(speed.yaxis)
    memory.set(title="peak memory, relative to plain PyTorch", ylim=(0, None))
    sizes = {_pixels(case): case.size for group in groups.values() for case in group}
    for axis in (speed, memory):
        axis.set(xlabel="image size", xscale="log")
        axis.set_xticks(list(sizes), list(sizes.values()), minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
