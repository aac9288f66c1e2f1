"""``pix2pixhd bench``: benchmarks of the losses and network blocks on this machine."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from torch._dynamo.exc import TorchDynamoException

import pix2pixhd
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.cases import evaluates_network
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.device import copy_bandwidth
from pix2pixhd.bench.memory import ChildError, is_measurable
from pix2pixhd.bench.plots import check_plottable, plot
from pix2pixhd.bench.results import CaseResult, changes, read_results
from pix2pixhd.bench.run import add_memory, check_cases, run_case
from pix2pixhd.bench.tables import further_table, memory_table, speed_table
from pix2pixhd.cli.bench_options import SIZE, complete, groups_of, parser, usable_device
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, check_writable, replacing, write_text

_BUDGET = 3.0  # seconds of the rounds of one case and dtype
# The part of --minutes after which no case is begun, and the part after which no memory is measured.
_CASES_UNTIL, _MEMORY_UNTIL = 0.6, 0.85
_WIDTH = 150  # of the tables where the output is not a terminal


def _processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the properties of the machine and the software that affect the measurements."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "pix2pixhd": pix2pixhd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["cuda"] = torch.version.cuda
        facts["built for"] = pix2pixhd._C.cuda_archs or "the CPU"
        facts["nvcc"] = pix2pixhd._C.cuda_version
        facts["L2 MB"] = properties.L2_cache_size >> 20
        facts["SMs"] = properties.multi_processor_count
    return facts


def _read_earlier(path: pathlib.Path) -> list[CaseResult]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"--compare: there is no file {path}; measure with --json {path} first") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--compare: {path} is not a text file; choose one that pix2pixhd bench --json wrote"
        ) from error
    except OSError as error:
        raise InputError(f"--compare: {path} cannot be read ({error.strerror})") from error
    return read_results(text, str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``pix2pixhd bench`` and returns the exit code."""
    command = parser()
    arguments = command.parse_args(argv)
    for option in ("json", "plot"):
        file: pathlib.Path | None = getattr(arguments, option)
        if file is not None:
            if not file.resolve().parent.is_dir():
                command.error(f"--{option}: the folder {file.resolve().parent} does not exist; create it first")
            check_replaceable([file], arguments.force, f"--{option}")
            if not os.path.exists(file):
                check_writable(file.resolve().parent, f"--{option}")
    if arguments.json and arguments.plot and arguments.json.resolve() == arguments.plot.resolve():
        command.error(f"--json and --plot must be two files, got {arguments.json} for both; rename one of them")
    if arguments.plot is not None:
        check_plottable(arguments.plot)
    earlier = None if arguments.compare is None else _read_earlier(arguments.compare)

    device = usable_device(arguments.device)
    complete(arguments, device)
    groups = groups_of(arguments, device)
    check_cases([(name, setup) for name, setups in groups for setup in setups], arguments.implementations)
    facts = machine(device)
    out = _Output() if sys.stdout.isatty() else _Output(width=_WIDTH)
    out.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    results, left_out = _run(arguments, groups, device)
    if arguments.json is not None:
        source = {"date": f"{datetime.date.today()}", "command": shlex.join(["pix2pixhd", "bench", *_measuring(argv)])}
        document = {"machine": {**facts, **source}, "cases": [result.to_json() for result in results]}
        write_text(arguments.json, json.dumps(document, indent=1) + "\n", force=arguments.force)
    if arguments.plot is not None:
        with replacing(arguments.plot, force=arguments.force) as part:
            plot(results, part, arguments.plot.suffix[1:])
    out.print(speed_table(results))
    further = further_table(results)
    if further is not None:
        out.print(further)
    if any(result.memory for result in results):
        out.print(memory_table(results))
    for line in (*_remarks(results, arguments, device), *left_out):
        out.print(line, highlight=False)
    if earlier is not None:
        out.print(f"\nchanges since {arguments.compare}:", *changes(results, earlier), sep="\n", highlight=False)
    for file in (arguments.json, arguments.plot):
        if file is not None:
            out.print(f"wrote {file}", highlight=False, soft_wrap=True)
    return 0


def _measuring(argv: Sequence[str] | None) -> list[str]:
    """Returns the arguments without those that name files."""
    kept = []
    arguments = iter(sys.argv[2:] if argv is None else argv)
    for argument in arguments:
        if argument in ("--json", "--plot", "--compare"):
            next(arguments, None)
        elif not argument.startswith(("--json=", "--plot=", "--compare=", "--force")):
            kept.append(argument)
    return kept


class _Output(Console):
    """Stdout. It may be closed early, as by ``head``: what is printed then is dropped, and the files are written."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer


class _Progress:
    """Prints on stderr what is being done: as one changing line, or elsewhere than on a terminal a line per step."""

    def __init__(self, console: Console, status: Status) -> None:
        self.console, self.status = console, status

    def step(self, text: str) -> None:
        """Prints a step that takes seconds or longer."""
        self.status.update(text.replace("[", "\\["))
        if not self.console.is_terminal:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Prints a part of a step, on a terminal only."""
        self.status.update(text.replace("[", "\\["))


def _run(
    arguments: argparse.Namespace, groups: Sequence[tuple[str, list[Setup]]], device: torch.device
) -> tuple[list[CaseResult], list[str]]:
    """Measures the cases, prints what is being measured on stderr, and returns also what was left out."""
    console = Console(stderr=True)
    results: list[CaseResult] = []
    left_out = []
    begin, limit = time.monotonic(), math.inf if arguments.minutes is None else 60 * arguments.minutes
    with console.status("") as status, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        warnings.filterwarnings("ignore", message=".*'pretrained' is deprecated|.*other than a weight enum")
        progress = _Progress(console, status)
        bandwidth = None
        if device.type == "cuda":
            progress.step("measuring the bandwidth of a copy")
            bandwidth = copy_bandwidth(device)
        for index, (name, setups) in enumerate(groups):
            title = f"[{index + 1}/{len(groups)}] {name}, {setups[0].width}x{setups[0].height}"
            if results and time.monotonic() - begin > _CASES_UNTIL * limit:
                left_out.append(f"not measured within {arguments.minutes:g} minutes: {title}")
                continue
            progress.step(title)

            def report(what: str, title: str = title) -> None:
                progress.detail(f"{title}: {what}")

            try:
                results += run_case(
                    name, setups, arguments.implementations, arguments.rounds, _BUDGET, report, bandwidth
                )
            except TorchDynamoException as error:
                raise InputError(
                    f"torch.compile failed ({str(error).splitlines()[0]}); install a C++ compiler, or use --no-compile"
                ) from error
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if not arguments.no_memory and is_measurable(device.type):
            try:
                results = add_memory(results, progress.step, begin + _MEMORY_UNTIL * limit)
            except ChildError:
                print(
                    "the memory could not be measured, see the error above; --no-memory leaves it out", file=sys.stderr
                )
    return results, left_out


def _remarks(results: Sequence[CaseResult], arguments: argparse.Namespace, device: torch.device) -> list[str]:
    lines = [
        "2.00× means that the other implementation takes twice as long as pix2pixhd. In parentheses: 20th and 80th "
        "percentile of the times, 95 % confidence interval of the ratios.",
        "agrees with float64: yes if the relative error of value and gradients is at most twice that of plain PyTorch "
        "in the same dtype.",
    ]
    if any("limit" in result.timings for result in results):
        lines.append("of the limit: time to read both sides and write one gradient, relative to pix2pixhd's time.")
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
    if any(not found.agrees for result in results for found in result.agreements.values()):
        lines.append("NO: the error against float64 is more than twice that of plain PyTorch. Please report this.")
    if not arguments.no_memory and not is_measurable(device.type):
        lines.append("The memory of a process cannot be measured on this system.")
    if device.type == "cpu" and arguments.size is None and any(evaluates_network(result.name) for result in results):
        lines.append(
            f"Cases with networks are scaled down on a CPU; --size {'x'.join(map(str, SIZE))} measures them in full."
        )
    return lines + [_inside_compile(result) for result in results if result.name.endswith(SUFFIX)]


def _inside_compile(result: CaseResult) -> str:
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
