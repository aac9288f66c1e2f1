"""Plots of measured cases over the image size."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pix2pixhd.bench.results import TITLES, CaseResult
from pix2pixhd.bench.timing import Ratio
from pix2pixhd.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["check_plottable", "plot"]

_COLORS = {name: f"C{index}" for index, name in enumerate(TITLES)}
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

    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(_label(result), []).append(result)
    draw = _bars if all(len(group) == 1 for group in groups.values()) else _lines
    bars = sum(len(_others(group)) + 1 for group in groups.values()) if draw is _bars else 0
    lines = 0 if bars else sum(len(_others(group)) for group in groups.values())
    figure = Figure(figsize=(12, max(5.0, 0.25 * bars) + 0.2 * lines), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    draw(speed, memory, groups)
    figure.savefig(path, format=file_format.lower(), dpi=120)


def _label(result: CaseResult) -> str:
    precision = result.setup.precision
    return result.name if precision == "float32" else f"{result.name}, {precision}"


def _pixels(result: CaseResult) -> int:
    return result.setup.width * result.setup.height * result.setup.batch


def _others(results: Sequence[CaseResult]) -> list[str]:
    """Returns the implementations with which the fused one is compared."""
    found = dict.fromkeys(name for result in results for name in result.timings)
    return [name for name in TITLES if name in found and name not in ("fused", "limit")]


def _peak_shares(result: CaseResult) -> dict[str, float]:
    """Returns the peak memory relative to plain PyTorch, by implementation."""
    base = result.memory.get("plain", {}).get("peak")
    found = {name: own["peak"] for name, own in result.memory.items() if name != "plain"}
    return {name: peak / base for name, peak in found.items()} if base else {}


def _bars(speed: Axes, memory: Axes, groups: Mapping[str, Sequence[CaseResult]]) -> None:
    cases = [group[0] for group in groups.values()]
    labels = [f"{name}\n{group[0].size}" for name, group in groups.items()]
    names = _others(cases)
    for index, name in enumerate(names):
        found = [(row, case.speed_up(name)) for row, case in enumerate(cases) if name in case.timings]
        for row in _rows([row for row, ratio in found if ratio.uncertain], index, len(names))[0]:
            speed.text(1.02, row, "not measured", verticalalignment="center", fontsize="x-small")
        chosen = [(row, ratio) for row, ratio in found if not ratio.uncertain]
        values = [ratio.value for _, ratio in chosen]
        bars = _error_bars([ratio for _, ratio in chosen])
        rows, height = _rows([row for row, _ in chosen], index, len(names))
        widths = [value - 1 for value in values]
        label, color = f"over {TITLES[name]}", _COLORS[name]
        speed.barh(rows, widths, height, left=1, xerr=bars, label=label, color=color, capsize=2)
    speed.set_xscale("log")
    _ratio_ticks(speed.xaxis)
    speed.axvline(1, color="gray", linewidth=1)
    speed.set_title("speed-up, with 95 % confidence intervals")
    memory.set_title("peak memory, relative to plain PyTorch")
    shares = [_peak_shares(case) for case in cases]
    measured = [name for name in TITLES if any(name in share for share in shares)]
    for index, name in enumerate(measured):
        own = [(row, share[name]) for row, share in enumerate(shares) if name in share]
        rows, height = _rows([row for row, _ in own], index, len(measured))
        values = [share for _, share in own]
        drawn = memory.barh(rows, values, height, label=TITLES[name], color=_COLORS[name])
        memory.bar_label(drawn, [f"{value:.2f}" for value in values], padding=3, fontsize="small")
    for row, share in enumerate(shares):
        if not share:
            memory.text(0.02, row, "not measured", verticalalignment="center")
    memory.set_xlim(0, 1.15 * max([1.0, *(value for share in shares for value in share.values())]))
    memory.axvline(1, color="gray", linewidth=1)
    for axis in (speed, memory):
        axis.set_yticks(range(len(cases)), labels)
        axis.set_ylim(len(cases) - 0.5, -0.5)
        axis.grid(alpha=0.3, axis="x")
        _legend(axis)


def _legend(axis: Axes) -> None:
    """Adds a legend below the axes, if anything was drawn."""
    count = len(axis.get_legend_handles_labels()[1])
    if count:
        columns = 2 if count <= 8 else 1
        axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns)


def _ratio_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis 0.5×, 1×, 2×, 5× instead of with powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _error_bars(ratios: Sequence[Ratio]) -> list[list[float]]:
    """Returns the distances to both ends of the intervals; 0 if there are too few rounds for an interval."""
    return [
        [ratio.value - ratio.low if ratio.has_interval else 0.0 for ratio in ratios],
        [ratio.high - ratio.value if ratio.has_interval else 0.0 for ratio in ratios],
    ]


def _rows(rows: Sequence[int], index: int, count: int) -> tuple[list[float], float]:
    """Returns the positions and the height of the bars of one of several implementations."""
    height = 0.8 / count
    return [row + (index - (count - 1) / 2) * height for row in rows], height


def _lines(speed: Axes, memory: Axes, groups: Mapping[str, Sequence[CaseResult]]) -> None:
    styles = ("-", "--", ":", "-.")
    names = _others([case for group in groups.values() for case in group])
    for index, (label, group) in enumerate(groups.items()):
        cases = sorted(group, key=_pixels)
        pixels = [_pixels(case) for case in cases]
        color = f"C{index}"
        for name, style in zip(names, itertools.cycle(styles), strict=False):
            if all(name in case.timings for case in cases):
                ratios = [case.speed_up(name) for case in cases]
                bars = _error_bars(ratios)
                title = f"{label}, over {TITLES[name]}"
                values = [math.nan if ratio.uncertain else ratio.value for ratio in ratios]
                speed.errorbar(pixels, values, yerr=bars, fmt=style + "o", color=color, label=title, capsize=3)
        shares = [_peak_shares(case) for case in cases]
        measured = [name for name in TITLES if all(name in share for share in shares)]
        for name, style in zip(measured, itertools.cycle(styles), strict=False):
            title = f"{label}, {TITLES[name]}"
            memory.plot(pixels, [share[name] for share in shares], style + "o", color=color, label=title)
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
        _legend(axis)
