"""``pix2pixhd bench``: benchmarks of the losses and network blocks on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

import pix2pixhd
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.cases import CASES, DEFAULT_CASES, NETWORK_CASES, check_images
from pix2pixhd.bench.child import measure_memory
from pix2pixhd.bench.memory import ChildError, is_measurable
from pix2pixhd.bench.plots import check_plottable, plot
from pix2pixhd.bench.results import CaseResult, changes, memory_table, read_results, speed_table
from pix2pixhd.bench.timing import compare
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, check_writable, replacing, write_text

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIZE = (1024, 512)
# The size of the cases that run networks on a CPU, where they take seconds at 1024x512.
_SMALL_SIZE = (256, 128)
_MINIMUM = 16
_MAXIMUM = 2**16
_BUDGET = 4.0  # seconds of the rounds of one case
_WIDTH = 150  # of the tables where the output is not a terminal


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the properties of the machine and the software that affect the measurements."""
    facts: dict[str, Any] = {
        "pix2pixhd": pix2pixhd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def run_case(
    name: str,
    setup: Setup,
    rounds: int | None = None,
    with_compile: bool = True,
    budget: float = 10.0,
    report: Callable[[str], object] = print,
) -> CaseResult:
    """Measures times and errors of one of ``CASES``.

    Args:
        name: Name of the case.
        setup: Images and discriminator.
        rounds: Rounds per implementation, or None for as many as fit into ``budget`` seconds.
        with_compile: Whether to measure ``torch.compile`` too.
        budget: Seconds for the rounds.
        report: Called with what is being done.

    Returns:
        The measurements.
    """
    case = CASES[name](setup)
    implementations = case.implementations(with_compile)
    report("warming up" + (" and compiling" if with_compile else ""))
    slow = name in NETWORK_CASES and setup.device.type == "cpu"
    timings = compare(
        implementations,
        rounds,
        warmup=1 if slow else 3,
        budget=budget,
        progress=lambda done, count: report(f"round {done + 1} of {count}"),
    )
    report("comparing with float64")
    agreements = case.agreement([implementation for implementation in timings if implementation != "limit"])
    return CaseResult(name, setup, timings, agreements, {})


def add_memory(results: Sequence[CaseResult], report: Callable[[str], object] = print) -> list[CaseResult]:
    """Measures the memory of all implementations, each in a process of its own, and returns results with it."""
    memory: list[dict[str, dict[str, int]]] = [{} for _ in results]
    for implementation in ("fused", "plain", "compiled"):
        chosen = [index for index, result in enumerate(results) if implementation in result.timings]
        report(f"measuring the memory of {implementation}, in a process of its own")
        found = measure_memory(implementation, [(results[index].name, results[index].setup) for index in chosen])
        for index, own in zip(chosen, found, strict=True):
            memory[index][implementation] = own
    return [dataclasses.replace(result, memory=own) for result, own in zip(results, memory, strict=True)]


def _device(name: str) -> torch.device:
    """Converts ``--device`` to a device.

    Raises:
        InputError: If it is neither the CPU nor a GPU of this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu, cuda or cuda:N, got {name}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name} cannot be used ({reason}); use cpu") from None
    return device


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+x\d+", text):
        raise argparse.ArgumentTypeError(f"must be width x height, such as 1024x512, got {text!r}")
    width, height = (int(side) for side in text.split("x"))
    if min(width, height) < _MINIMUM or max(width, height) > _MAXIMUM:
        raise argparse.ArgumentTypeError(
            f"must be at least {_MINIMUM}x{_MINIMUM} and at most {_MAXIMUM}x{_MAXIMUM}, got {text!r}"
        )
    return width, height


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAXIMUM:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1 and at most {_MAXIMUM}, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd bench",
        description="Benchmark forward and backward of the losses and of a network block: this package, plain PyTorch, "
        "torch.compile and the limit of the memory bandwidth. The implementations are timed interleaved in one "
        "process. Prints medians with the 20th and 80th percentiles, speed-ups with 95 % confidence intervals, "
        "whether value and gradients agree with float64, and the memory of each implementation. Takes some minutes on "
        "two CPU cores, half of them for torch.compile.",
    )
    size = "x".join(map(str, _SIZE))
    small = "x".join(map(str, _SMALL_SIZE))
    parser.add_argument(
        "--case",
        action="append",
        choices=list(CASES),
        metavar="NAME",
        help=f"case to run; may be repeated (default: all but the vanilla GAN losses): {'; '.join(CASES)}",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=_size,
        metavar="WxH",
        help=f"image sizes (default: {size}; for networks on a CPU {small})",
    )
    parser.add_argument("--batch", type=_at_least_one, default=1, help="number of images (default: 1)")
    parser.add_argument("--num-d", type=_at_least_one, default=2, help="discriminator scales (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float32")
    parser.add_argument(
        "--rounds",
        type=_at_least_one,
        help="timings per implementation (default: 5 to 50, as many as fit into 4 s per case)",
    )
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile, which needs a C++ compiler")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory, measured in child processes")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write all measurements to FILE")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="also draw speed-up and memory over the size")
    parser.add_argument(
        "--compare", type=pathlib.Path, metavar="FILE", help="say what changed since the measurements of a --json FILE"
    )
    parser.add_argument("--force", action="store_true", help="allow --json and --plot to replace existing files")
    return parser


def _setups(arguments: argparse.Namespace, name: str, device: torch.device) -> list[Setup]:
    small = name in NETWORK_CASES and device.type == "cpu"
    sizes = arguments.size or [_SMALL_SIZE if small else _SIZE]
    dtype = _DTYPES[arguments.dtype]
    return [Setup(width, height, arguments.batch, arguments.num_d, dtype, device) for width, height in sizes]


def _read_earlier(path: pathlib.Path) -> list[CaseResult]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--compare: {path} cannot be read ({error})") from error
    return read_results(text, str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``pix2pixhd bench`` and returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for option in ("json", "plot"):
        file: pathlib.Path | None = getattr(arguments, option)
        if file is not None:
            if not file.resolve().parent.is_dir():
                parser.error(f"--{option}: the folder {file.resolve().parent} does not exist; create it first")
            check_replaceable([file], arguments.force, f"--{option}")
            if not os.path.exists(file):
                check_writable(file.resolve().parent, f"--{option}")
    if arguments.json and arguments.plot and arguments.json.resolve() == arguments.plot.resolve():
        parser.error(f"--json and --plot must be two files, got {arguments.json} for both; rename one of them")
    if arguments.plot is not None:
        check_plottable(arguments.plot)
    earlier = None if arguments.compare is None else _read_earlier(arguments.compare)

    device = _device(arguments.device)
    todo = [(name, setup) for name in arguments.case or DEFAULT_CASES for setup in _setups(arguments, name, device)]
    for name, setup in todo:
        check_images(name, setup)
    facts = machine(device)
    out = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    out.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    results = _run(arguments, todo)
    out.print(speed_table(results))
    if any(result.memory for result in results):
        out.print(memory_table(results))
    for line in _remarks(results, arguments, device):
        out.print(line, highlight=False)
    if earlier is not None:
        out.print(f"\nchanges since {arguments.compare}:", *changes(results, earlier), sep="\n", highlight=False)
    if arguments.json is not None:
        document = {"machine": facts, "cases": [result.to_json() for result in results]}
        write_text(arguments.json, json.dumps(document, indent=1) + "\n", force=arguments.force)
        print(f"wrote {arguments.json}")
    if arguments.plot is not None:
        with replacing(arguments.plot, force=arguments.force) as part:
            plot(results, part, arguments.plot.suffix[1:])
        print(f"wrote {arguments.plot}")
    return 0


def _run(arguments: argparse.Namespace, todo: Sequence[tuple[str, Setup]]) -> list[CaseResult]:
    """Measures the cases and prints what is being measured on stderr."""
    console = Console(stderr=True)
    results = []
    with console.status("") as status, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        for index, (name, setup) in enumerate(todo):
            title = f"[{index + 1}/{len(todo)}] {name}, {setup.width}x{setup.height}"
            if not console.is_terminal:
                print(title, file=sys.stderr, flush=True)

            def report(what: str, title: str = title) -> None:
                status.update(f"{title}: {what}".replace("[", "\\["))

            try:
                results.append(run_case(name, setup, arguments.rounds, not arguments.no_compile, _BUDGET, report))
            except TorchDynamoException as error:
                raise InputError(
                    f"torch.compile failed ({str(error).splitlines()[0]}); install a C++ compiler, or use --no-compile"
                ) from error
            gc.collect()
        if not arguments.no_memory and is_measurable(todo[0][1].device.type):
            try:
                results = add_memory(results, status.update)
            except ChildError:
                print(
                    "the memory could not be measured, see the error above; --no-memory leaves it out", file=sys.stderr
                )
    return results


def _remarks(results: Sequence[CaseResult], arguments: argparse.Namespace, device: torch.device) -> list[str]:
    lines = [
        "2.00× means that the other implementation takes twice as long as pix2pixhd. In parentheses: 20th and 80th "
        "percentile of the times, 95 % confidence interval of the ratios.",
    ]
    if any("limit" in result.timings for result in results):
        lines.append("of the limit: time to read both sides and write one gradient, relative to pix2pixhd's time.")
    if any(result.uncertain for result in results):
        lines.append(
            "NOT MEASURED: the times varied too much from round to round. Probably something else runs on this machine;"
            " stop it and measure again, or increase --rounds."
        )
    if any(not found.agrees for result in results for found in result.agreements.values()):
        lines.append("NO: the error against float64 is more than twice that of plain PyTorch. Please report this.")
    if not arguments.no_memory and not is_measurable(device.type):
        lines.append("The memory of a process cannot be measured on this system.")
    if device.type == "cpu" and arguments.size is None and any(result.name in NETWORK_CASES for result in results):
        lines.append(
            f"Cases with networks are scaled down on a CPU; --size {'x'.join(map(str, _SIZE))} measures them in full."
        )
    return lines
