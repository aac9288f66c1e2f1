"""``pix2pixhd bench``: benchmarks of the losses and network blocks on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import json
import os
import pathlib
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from torch._dynamo.exc import TorchDynamoException

import pix2pixhd
from pix2pixhd.bench.case import BASIC, Setup
from pix2pixhd.bench.cases import CASES, DEFAULT_CASES, LOSSES, evaluates_network
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.memory import ChildError, is_measurable
from pix2pixhd.bench.plots import check_plottable, plot
from pix2pixhd.bench.results import CaseResult, changes, read_results
from pix2pixhd.bench.run import add_memory, check_cases, implementation_names, run_case
from pix2pixhd.bench.tables import further_table, memory_table, speed_table
from pix2pixhd.cli.sizes import image_size
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, check_writable, replacing, write_text

_PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIZE = (1024, 512)
# The size of the cases that run networks on a CPU, where they take seconds at 1024x512.
_SMALL_SIZE = (256, 128)
_MINIMUM = 16
_MAXIMUM = 2**16
_BUDGET = 4.0  # seconds of the rounds of one case and dtype
_IMPLEMENTATIONS = implementation_names(list(CASES), Setup())[2:]
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
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


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
        type=image_size(_MINIMUM, _MAXIMUM),
        metavar="WxH",
        help=f"image sizes (default: {size}; for networks on a CPU {small})",
    )
    parser.add_argument("--batch", type=_at_least_one, default=1, help="number of images (default: 1)")
    parser.add_argument("--num-d", type=_at_least_one, default=2, help="discriminator scales (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(_PRECISIONS),
        default=["float32"],
        metavar="DTYPE",
        help=f"{', '.join(_PRECISIONS)}; several are measured interleaved; tf32 is float32 with TF32 convolutions, on "
        "a GPU (default: float32)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        default=list(BASIC),
        metavar="NAME",
        help=f"what to measure besides fused and plain: {', '.join(_IMPLEMENTATIONS)}; fused and plain are always "
        "measured, and each case is measured in those that it has (default: compiled)",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least_one,
        help="timings per implementation (default: 5 to 50, as many as fit into 4 s per case)",
    )
    parser.add_argument(
        "--inside-compile",
        action="store_true",
        help="also measure the losses inside a step that torch.compile compiles: a small network, the fused or the "
        "plain loss, and their backward",
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


def _groups(arguments: argparse.Namespace, device: torch.device) -> list[tuple[str, list[Setup]]]:
    """Returns what is measured together: a case at one size, in all dtypes."""
    if "tf32" in arguments.dtype and device.type != "cuda":
        raise InputError(f"--dtype: tf32 is for GPUs, got --device {device}; use float32")
    names = arguments.case or DEFAULT_CASES
    if arguments.inside_compile:
        losses = [name for name in names if name in LOSSES]
        if not losses:
            raise InputError(
                f"--inside-compile needs at least one of the cases {'; '.join(LOSSES)}; add it with --case"
            )
        names = [*names, *(name + SUFFIX for name in losses)]
    groups = []
    for name in names:
        network = evaluates_network(name)
        precisions = arguments.dtype if network else [x.replace("tf32", "float32") for x in arguments.dtype]
        for width, height in arguments.size or [_SMALL_SIZE if network and device.type == "cpu" else _SIZE]:
            setup = Setup(width, height, arguments.batch, arguments.num_d, device=device)
            setups = [
                dataclasses.replace(setup, dtype=_PRECISIONS[precision], tf32=precision == "tf32")
                for precision in dict.fromkeys(precisions)
            ]
            groups.append((name, setups))
    return groups


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
    groups = _groups(arguments, device)
    implementations = [name for name in arguments.implementations if not (arguments.no_compile and name == "compiled")]
    check_cases([(name, setup) for name, setups in groups for setup in setups], implementations)
    facts = machine(device)
    out = _Output() if sys.stdout.isatty() else _Output(width=_WIDTH)
    out.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    results = _run(arguments, groups, implementations)
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
    for line in _remarks(results, arguments, device):
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
    arguments: argparse.Namespace, groups: Sequence[tuple[str, list[Setup]]], implementations: Sequence[str]
) -> list[CaseResult]:
    """Measures the cases and prints what is being measured on stderr."""
    console = Console(stderr=True)
    results: list[CaseResult] = []
    with console.status("") as status, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        progress = _Progress(console, status)
        for index, (name, setups) in enumerate(groups):
            title = f"[{index + 1}/{len(groups)}] {name}, {setups[0].width}x{setups[0].height}"
            progress.step(title)

            def report(what: str, title: str = title) -> None:
                progress.detail(f"{title}: {what}")

            try:
                results += run_case(name, setups, implementations, arguments.rounds, _BUDGET, report)
            except TorchDynamoException as error:
                raise InputError(
                    f"torch.compile failed ({str(error).splitlines()[0]}); install a C++ compiler, or use --no-compile"
                ) from error
            gc.collect()
        if not arguments.no_memory and is_measurable(results[0].setup.device.type):
            try:
                results = add_memory(results, progress.step)
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
    if device.type == "cpu" and arguments.size is None and any(evaluates_network(result.name) for result in results):
        lines.append(
            f"Cases with networks are scaled down on a CPU; --size {'x'.join(map(str, _SIZE))} measures them in full."
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
