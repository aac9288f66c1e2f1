"""``pix2pixhd bench``: benchmarks of the losses and network blocks on this machine."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import math
import pathlib
import platform
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

import pix2pixhd
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.comparison import changes, differences
from pix2pixhd.bench.device import copy_bandwidth
from pix2pixhd.bench.memory import ChildError, is_measurable
from pix2pixhd.bench.plots import check_plottable
from pix2pixhd.bench.results import CaseResult, read_machine, read_results
from pix2pixhd.bench.run import add_memory, check_cases, run_case, why_not_compiled
from pix2pixhd.cli.bench_options import STDOUT, check_outputs, complete, groups_of, parser, usable_device
from pix2pixhd.cli.bench_output import Output, Progress, print_tables, remarks, write_files
from pix2pixhd.errors import InputError

_BUDGET = 3.0  # seconds of the rounds of one case and dtype
# The part of --minutes after which no case is begun, and the part after which no memory is measured.
_CASES_UNTIL, _MEMORY_UNTIL = 0.6, 0.85


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


def _read_earlier(path: pathlib.Path) -> tuple[list[CaseResult], dict[str, str]]:
    """Returns the measurements of a file, and the facts about the machine."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"--compare: there is no file {path}; measure with --json {path} first") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--compare: {path} is not a text file; choose one that pix2pixhd bench --json wrote"
        ) from error
    except OSError as error:
        raise InputError(f"--compare: {path} cannot be read ({error.strerror}); choose a readable file") from error
    return read_results(text, str(path)), read_machine(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``pix2pixhd bench`` and returns the exit code."""
    arguments = parser().parse_args(argv)
    check_outputs(arguments)
    if arguments.plot is not None:
        check_plottable(arguments.plot)
    earlier = None if arguments.compare is None else _read_earlier(arguments.compare)

    device = usable_device(arguments.device)
    complete(arguments, device)
    groups = groups_of(arguments, device)
    check_cases([(name, setup) for name, setups in groups for setup in setups], arguments.implementations)
    facts = machine(device)
    out = Output(stderr=arguments.json == STDOUT)
    out.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    results: list[CaseResult] = []
    left_out: list[str] = []
    try:
        with _stopping_on_sigterm():
            _run(arguments, groups, device, results, left_out)
    except BaseException:
        if results:
            print_tables(out, results)
            out.print("The measurement did not end: cases are missing, and no file is written.", highlight=False)
        raise
    if not results:
        raise InputError("nothing could be measured: " + "; ".join(left_out))
    print_tables(out, results)
    for line in (*remarks(results, arguments, device), *left_out):
        out.print(line, highlight=False, markup=False)
    if earlier is not None:
        before, before_facts = earlier
        out.print(f"\nchanges since {arguments.compare}:", highlight=False, markup=False)
        lines = [*differences(facts, results, before_facts, before), *changes(results, before)]
        out.print(*lines, sep="\n", highlight=False, markup=False)
    source = {
        "date": f"{datetime.date.today()}",
        "command": shlex.join(["pix2pixhd", "bench", *measuring(sys.argv[2:] if argv is None else argv)]),
    }
    written, failed = write_files(arguments, {**facts, **source}, results)
    for line in written:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise InputError("; ".join(failed))
    return 0


def measuring(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without those that name files."""
    kept = []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--json", "--plot", "--compare"):
            next(arguments, None)
        elif not argument.startswith(("--json=", "--plot=", "--compare=", "--force")):
            kept.append(argument)
    return kept


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Raises SystemExit on SIGTERM, so that child processes end too, which are in sessions of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    arguments: argparse.Namespace,
    groups: Sequence[tuple[str, list[Setup]]],
    device: torch.device,
    results: list[CaseResult],
    left_out: list[str],
) -> None:
    """Measures the cases and prints on stderr what is being measured.

    Args:
        arguments: The arguments of the command.
        groups: What is measured together.
        device: The device.
        results: Receives each case when it is complete.
        left_out: Receives what is not measured, and why.
    """
    console = Console(stderr=True)
    begin, limit = time.monotonic(), math.inf if arguments.minutes is None else 60 * arguments.minutes
    with console.status("") as status, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        warnings.filterwarnings("ignore", message=".*'pretrained' is deprecated|.*other than a weight enum")
        progress = Progress(console, status)
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
                left_out.append(
                    f"not measured: {title}: torch.compile failed ({why_not_compiled(error)}); install a C++ compiler"
                )
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if results and not arguments.no_memory and is_measurable(device.type):
            try:
                results[:] = add_memory(results, progress.step, begin + _MEMORY_UNTIL * limit)
            except ChildError:
                print(
                    "the memory could not be measured, see the error above; --no-memory leaves it out", file=sys.stderr
                )
