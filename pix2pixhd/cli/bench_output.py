"""What ``pix2pixhd bench`` prints, and the files that it writes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from rich.table import Table

from pix2pixhd.bench.cases import evaluates_network
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.memory import is_measurable
from pix2pixhd.bench.plots import plot
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.tables import as_lines, further_table, memory_table, speed_table
from pix2pixhd.cli.bench_options import SIZE, STDOUT
from pix2pixhd.errors import InputError
from pix2pixhd.files import replacing, write_text

__all__ = ["Output", "Progress", "inside_compile", "print_tables", "remarks", "write_files"]

_WIDTH = 150  # of the tables where the output is not a terminal
_NARROW = 80  # columns of a terminal below which the cells of the tables are printed as lines


class Output(Console):
    """Stdout, or stderr if the JSON goes to stdout.

    It may be closed early, as by ``head``: what is printed then is dropped, and the files are written.

    Args:
        stderr: Whether to print on stderr.
    """

    def __init__(self, stderr: bool = False) -> None:
        terminal = (sys.stderr if stderr else sys.stdout).isatty()
        super().__init__(stderr=stderr, width=None if terminal else _WIDTH)

    def on_broken_pipe(self) -> None:
        """Drops what is printed from now on."""
        self.quiet = True
        _drop(self.file)  # what is still in the buffer

    def table(self, table: Table) -> None:
        """Prints a table, or on a narrow terminal its cells as lines."""
        if self.width >= _NARROW:
            self.print(table)
        else:
            self.print(*as_lines(table), sep="\n", highlight=False, markup=False)


def _drop(file: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Progress:
    """Prints on stderr what is being done: as one changing line, or elsewhere than on a terminal a line per step."""

    def __init__(self, console: Console, status: Status) -> None:
        self.console, self.status = console, status

    def step(self, text: str) -> None:
        """Prints a step that takes seconds or longer."""
        self.status.update(text.replace("[", "\\["))
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Prints a part of a step, on a terminal only."""
        self.status.update(text.replace("[", "\\["))


def print_tables(out: Output, results: Sequence[CaseResult]) -> None:
    """Prints the measurements."""
    out.table(speed_table(results))
    further = further_table(results)
    if further is not None:
        out.table(further)
    if any(result.memory for result in results):
        out.table(memory_table(results))


def write_files(
    arguments: argparse.Namespace, machine: Mapping[str, Any], results: Sequence[CaseResult]
) -> tuple[list[str], list[str]]:
    """Writes the files of ``--json`` and ``--plot``, each of them also if the other one cannot be written.

    Returns:
        What was written, and what was not and why.
    """
    document = {"machine": machine, "cases": [result.to_json() for result in results]}
    text = json.dumps(document, indent=1) + "\n"

    def write_json(file: pathlib.Path) -> None:
        if file == STDOUT:
            _print_json(text)
        else:
            write_text(file, text, force=arguments.force)

    def write_plot(file: pathlib.Path) -> None:
        with replacing(file, force=arguments.force) as part:
            plot(results, part, file.suffix[1:])

    written, failed = [], []
    write: Callable[[pathlib.Path], None]
    for option, file, write in (("--json", arguments.json, write_json), ("--plot", arguments.plot, write_plot)):
        if file is None:
            continue
        try:
            write(file)
        except InputError as error:
            failed.append(f"{option}: {error}")
        else:
            written += [] if file == STDOUT else [f"wrote {file}"]
    return written, failed


def _print_json(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        raise InputError(f"cannot write to stdout ({error.strerror}); give a file instead of -") from error


def remarks(results: Sequence[CaseResult], arguments: argparse.Namespace, device: torch.device) -> list[str]:
    """Returns the explanations of the tables."""
    lines = [
        "2.00× means that the other implementation takes twice as long as pix2pixhd. In parentheses: 20th and 80th "
        "percentile of the times, 95 % confidence interval of the ratios.",
        "agrees with float64: yes if the relative error of value and gradients is at most twice that of plain PyTorch "
        "in the same dtype, or rounding. Other inputs are drawn where signs and masks that depend on rounding decide.",
    ]
    if any("limit" in result.timings for result in results):
        lines.append(
            "of the limit, losses: time to read both sides and write one gradient, relative to pix2pixhd's time."
        )
    if any(result.compute for result in results):
        lines.append(
            "of the limit, networks: time of the operations of pix2pixhd's convolutions, forward and backward, at the "
            "rate of torch.mm in the same dtype, relative to pix2pixhd's time."
        )
    if any(result.launches for result in results):
        lines.append(
            "of a copy: bytes that must be read and written, per second, relative to a copy of a large tensor on this "
            "GPU. launches: kernels per call, forward and backward."
        )
    if any(result.uncertain for result in results):
        lines.append(
            "NOT MEASURED: the times varied too much from round to round. Probably something else runs on this "
            "machine; stop it and measure again, with more --rounds or a larger --size."
        )
    agreements = [found for result in results for found in result.agreements.values()]
    if any(found.unclear for found in agreements):
        lines.append(
            "unclear: in float32 plain PyTorch's own error is so large that an error of 1 % would not be found; "
            "choose a larger --size."
        )
    if any(not found.agrees and not found.unclear for found in agreements):
        lines.append(
            "NO: the error against float64 is more than twice that of plain PyTorch, for most of the inputs that were "
            "drawn. Please report this."
        )
    for reason in dict.fromkeys(reason for result in results for reason in result.unavailable.values()):
        lines.append(f"failed: torch.compile failed ({reason}); install a C++ compiler, or use --no-compile.")
    if not arguments.no_memory and not is_measurable(device.type):
        lines.append("The memory of a process cannot be measured on this system.")
    if device.type == "cpu" and arguments.size is None and any(evaluates_network(result.name) for result in results):
        lines.append(
            f"Cases with networks are scaled down on a CPU; --size {'x'.join(map(str, SIZE))} measures them in full."
        )
    return lines + [inside_compile(result) for result in results if result.name.endswith(SUFFIX)]


def inside_compile(result: CaseResult) -> str:
    """Describes whether the fused loss costs fusion inside a compiled step."""
    title, ratio = f"{result.name}, {result.size}, {result.setup.precision}: ", result.speed_up("plain")
    if ratio.uncertain:
        return title + "not measured."
    if ratio.high < 1:
        return title + (
            f"the fused loss costs fusion. With the plain loss, which torch.compile computes together with the layer "
            f"before it, the step takes {ratio.value:.0%} of the time; there, use pix2pixhd.backend('reference')."
        )
    if ratio.low > 1:
        return title + f"faster with the fused loss; the plain loss takes {ratio.value:.2f} times as long."
    return title + "no difference between the fused and the plain loss beyond noise."
