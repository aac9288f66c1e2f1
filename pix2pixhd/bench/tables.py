"""Measured cases as tables and lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.results import BASELINES, TITLES, CaseResult
from pix2pixhd.bench.timing import Ratio, Timing

__all__ = [
    "as_lines",
    "describe",
    "format_ratio",
    "format_share",
    "further_table",
    "memory_table",
    "speed_table",
    "unit_of",
]

# Above it the error of plain PyTorch is printed too: an L1 loss of nearly equal features has gradients whose signs
# depend on rounding, in every implementation.
_NOTICEABLE = 1e-4
_GPU_COLUMNS = ["of a copy", "launches: pix2pixhd / plain / compiled"]


def as_lines(table: Table) -> list[str]:
    """Returns a table as lines of text, one per cell, for terminals on which its columns would be too narrow.

    A row begins with the cells that are left-justified; the others follow with their headers. Empty cells are left out.
    """
    lines = [f"{table.title}"]
    headers = [str(column.header) for column in table.columns]
    first = sum(column.justify == "left" for column in table.columns)
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    names = [""] * first
    for cells in (list(map(str, row)) for row in rows):
        names = [cell or name for cell, name in zip(cells, names, strict=False)]
        pairs = zip(headers[first:], cells[first:], strict=True)
        lines += ["", ", ".join(names), *(f"  {header}: {cell}" for header, cell in pairs if cell)]
    return lines


def unit_of(timing: Timing) -> tuple[str, float]:
    """Returns the unit in which a time is printed, and the factor from seconds."""
    return ("s", 1.0) if timing.median >= 1 else ("ms", 1e3) if timing.median >= 1e-3 else ("µs", 1e6)


def _time(timing: Timing) -> str:
    """Formats a median and its percentiles with one unit."""
    unit, factor = unit_of(timing)
    low, median, high = (f"{factor * x:.3g}" for x in (timing.low, timing.median, timing.high))
    return f"{median} {unit} ({low} to {high})"


def format_ratio(ratio: Ratio) -> str:
    """Formats a ratio with its interval, or the text "not measured" with the interval."""
    if ratio.uncertain:
        return f"not measured ({ratio.low:.2g} to {ratio.high:.2g})"
    if not ratio.has_interval:
        return f"{ratio.value:.2f}×"
    return f"{ratio.value:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def describe(name: str, timings: Mapping[str, Timing]) -> str:
    """Returns one line with the ratios of a case."""
    parts = [f"pix2pixhd {_time(timings['fused'])}"]
    ratios = {what: Ratio.of(timings[what], timings["fused"]) for what in timings if what != "fused"}
    parts += [f"{title} takes {format_ratio(ratios[what])}" for what, title in BASELINES.items() if what in ratios]
    if "limit" in ratios:
        parts.append(f"{ratios['limit'].value:.0%} of the bandwidth limit")
    return f"{name}: " + ", ".join(parts)


def _precisions(results: Sequence[CaseResult]) -> bool:
    """Whether the tables need a column for the dtype."""
    return {result.setup.precision for result in results} != {"float32"}


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for header in left:
        table.add_column(header, overflow="fold")
    for header in right:
        table.add_column(header, justify="right", overflow="fold")
    return table


def _first_cells(result: CaseResult, precisions: bool) -> list[str]:
    return [result.name, result.size, *([result.setup.precision] if precisions else [])]


def _agrees(found: Agreement) -> str:
    text = f"{'yes' if found.agrees else 'unclear' if found.unclear else 'NO'}, {found.error:.0e}"
    return text if found.agrees and found.error <= _NOTICEABLE else f"{text}; plain {found.plain:.0e}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 5e4 else "below 0.1 MB"


def speed_table(results: Sequence[CaseResult]) -> Table:
    """Returns the table of times, one row per case, size and dtype."""
    precisions = _precisions(results)
    over_float32 = any(result.plain_float32 for result in results)
    measured = {
        name: title
        for name, title in BASELINES.items()
        if any(name in (*found.timings, *found.unavailable) for found in results)
    }
    takes = [f"{title} takes" for title in measured.values()] + (["plain float32 takes"] if over_float32 else [])
    takes += ["of the limit"] if any(found.of_limit is not None for found in results) else []
    gpu = any(result.launches for result in results)
    right = ("pix2pixhd", *takes, *(_GPU_COLUMNS if gpu else []), "agrees with float64")
    table = _table("forward and backward", ("case", "size", *(["dtype"] if precisions else [])), right)
    for result in results:
        cells = [_baseline_cell(result, name) for name in measured]
        if over_float32:
            ratio = result.over_plain_float32
            cells.append("–" if ratio is None else format_ratio(ratio))
        if "of the limit" in takes:
            cells.append(format_share(result))
        first = [*_first_cells(result, precisions), _time(result.timings["fused"])]
        table.add_row(*first, *cells, *(_gpu_cells(result) if gpu else []), _agrees(result.agreements["fused"]))
    return table


def _baseline_cell(result: CaseResult, name: str) -> str:
    if name in result.timings:
        return format_ratio(result.speed_up(name))
    return "failed" if name in result.unavailable else "–"


def format_share(result: CaseResult) -> str:
    """Formats the share of the bandwidth or of the matrix-product peak."""
    share = result.of_limit
    if share is None:
        return "–"
    return "not measured" if share.uncertain else f"{share.value:.0%}"


def _gpu_cells(result: CaseResult) -> list[str]:
    launches = [str(result.launches.get(name, "–")) for name in ("fused", *BASELINES)]
    return ["–" if result.of_copy is None else f"{result.of_copy:.0%}", " / ".join(launches)]


def further_table(results: Sequence[CaseResult]) -> Table | None:
    """Returns the table of the other implementations, one row for each; None if there are none."""
    precisions = _precisions(results)
    left = ("case", "size", *(["dtype"] if precisions else []), "implementation")
    gpu = any(result.launches for result in results)
    right = ("time", "relative to pix2pixhd", *(["launches"] if gpu else []), "agrees with float64")
    table = _table("further implementations", left, right)
    for result in results:
        for name in result.timings:
            if name in ("fused", "limit", *BASELINES):
                continue
            cells = [TITLES[name], _time(result.timings[name]), format_ratio(result.speed_up(name))]
            cells += [str(result.launches.get(name, "–"))] if gpu else []
            table.add_row(*_first_cells(result, precisions), *cells, _agrees(result.agreements[name]))
    return table if table.row_count else None


def memory_table(results: Sequence[CaseResult]) -> Table:
    """Returns the table of the memory above that of the inputs, relative to plain PyTorch in the same dtype."""
    precisions = _precisions(results)
    left = ("case", "size", *(["dtype"] if precisions else []), "implementation")
    table = _table(
        "memory above the inputs", left, ("saved for backward", "of plain, same dtype", "peak", "of plain, same dtype")
    )
    for result in results:
        base = result.memory.get("plain", {})
        first = _first_cells(result, precisions)
        for name, found in result.memory.items():
            cells = []
            for what in ("retained", "peak"):
                amount = _megabytes(found[what]) if what in found else "–"
                share = f"{found[what] / base[what]:.1%}" if base.get(what) and name != "plain" else ""
                cells += [amount, share]
            table.add_row(*first, TITLES[name], *cells)
            first = [""] * len(first)
    return table
