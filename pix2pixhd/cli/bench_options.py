"""The options of ``pix2pixhd bench``, and what is measured with them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re

import torch

from pix2pixhd.bench.case import BASIC, Setup
from pix2pixhd.bench.cases import BANDWIDTH_CASES, CASES, DEFAULT_CASES, LOSSES, evaluates_network
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.device import supported_precisions
from pix2pixhd.bench.run import implementation_names
from pix2pixhd.cli.sizes import image_size
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, check_writable

__all__ = ["SIZE", "STDOUT", "check_outputs", "complete", "groups_of", "parser", "usable_device"]

_PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE = (1024, 512)
# The size of the cases that run networks on a CPU, where they take seconds at 1024x512.
_SMALL_SIZE = (256, 128)
_MINIMUM = 16
_MAXIMUM = 2**16
_IMPLEMENTATIONS = implementation_names(list(CASES), Setup())[2:]
# The sizes at which --all also measures the cost per pixel of one case, on a GPU.
_FURTHER_SIZES = {"VGGLoss": [(512, 256), (2048, 1024)]}
_MINUTES = 8.0
STDOUT = pathlib.Path("-")  # as the file of --json


def usable_device(name: str) -> torch.device:
    """Converts ``--device`` to a device.

    Raises:
        InputError: If it is neither the CPU nor a GPU of this machine.
    """
    if re.fullmatch("cpu|cuda(:[0-9]{1,2})?", name) is None:
        raise InputError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name} cannot be used ({reason}); use cpu") from None
    return device


def _at_least_one(text: str) -> int:
    if re.fullmatch("[0-9]{1,20}", text) is None or not 1 <= int(text) <= _MAXIMUM:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1 and at most {_MAXIMUM}, got {text!r}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text) if re.fullmatch("[0-9.eE+-]+", text) else 0.0  # float also reads digits of other scripts
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= _MAXIMUM:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most {_MAXIMUM}, got {text!r}")
    return minutes


def _file(text: str) -> pathlib.Path:
    if not text or text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"must be the name of a file, got {text!r}")
    return pathlib.Path(text)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Checks that the files of ``--json`` and ``--plot`` can be written.

    Raises:
        InputError: If one of them cannot be written, or both are the same file.
    """
    files = {"--json": arguments.json, "--plot": arguments.plot}
    for option, file in files.items():
        if file is not None and file != STDOUT:
            _check_output(option, file, arguments.force)
    if arguments.json and arguments.plot and arguments.json.resolve() == arguments.plot.resolve():
        raise InputError(f"--json and --plot must be two files, got {arguments.json} for both; rename one of them")


def _check_output(option: str, file: pathlib.Path, force: bool) -> None:
    try:
        folder = file.resolve().parent
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            file.lstat()  # the name can be too long
    except (OSError, RuntimeError) as error:  # Python below 3.13 raises RuntimeError for a loop of symbolic links
        raise InputError(f"{option}: {file} cannot be written ({error}); choose another name") from error
    if not folder.is_dir():
        what = "is not a folder; choose another one" if folder.exists() else "does not exist; create it first"
        raise InputError(f"{option}: the folder {folder} {what}")
    check_replaceable([file], force, option)
    if not file.exists() or file.is_file():  # pipes and terminals are written to directly
        check_writable(folder, option)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    found = argparse.ArgumentParser(
        prog="pix2pixhd bench",
        allow_abbrev=False,
        description="Benchmark forward and backward of the losses and of a network block: this package, plain PyTorch, "
        "torch.compile and the limit of the memory bandwidth. The implementations are timed interleaved in one "
        "process. Prints medians with the 20th and 80th percentiles, speed-ups with 95 % confidence intervals, "
        "whether value and gradients agree with float64, and the memory of each implementation. Takes some minutes on "
        "two CPU cores; on a busy machine much longer. --no-compile and --no-memory shorten it.",
    )
    size = "x".join(map(str, SIZE))
    small = "x".join(map(str, _SMALL_SIZE))
    found.add_argument(
        "--case",
        action="append",
        choices=list(CASES),
        metavar="NAME",
        help=f"case to run; may be repeated (default: all but the vanilla GAN losses): {'; '.join(CASES)}",
    )
    found.add_argument(
        "--size",
        nargs="+",
        action="extend",
        type=image_size(_MINIMUM, _MAXIMUM),
        metavar="WxH",
        help=f"image sizes (default: {size}; for networks on a CPU {small})",
    )
    found.add_argument("--batch", type=_at_least_one, default=1, help="number of images (default: 1)")
    found.add_argument("--num-d", type=_at_least_one, default=2, help="discriminator scales (default: 2)")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument(
        "--dtype",
        nargs="+",
        action="extend",
        choices=list(_PRECISIONS),
        metavar="DTYPE",
        help=f"{', '.join(_PRECISIONS)}; several are measured interleaved; tf32 is float32 with TF32 convolutions, on "
        "a GPU (default: float32)",
    )
    found.add_argument(
        "--implementations",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"what to measure besides fused and plain: {', '.join(_IMPLEMENTATIONS)}; fused and plain are always "
        "measured, and each case is measured in those that it has (default: compiled)",
    )
    found.add_argument(
        "--rounds",
        type=_at_least_one,
        help="timings per implementation (default: 5 to 50, as many as fit into 3 s per case and dtype)",
    )
    found.add_argument(
        "--inside-compile",
        action="store_true",
        help="also measure the losses inside a step that torch.compile compiles: a small network, the fused or the "
        "plain loss, and their backward",
    )
    found.add_argument(
        "--all",
        action="store_true",
        help="measure everything: all cases, implementations and dtypes of the device, also inside a compiled step; "
        "--case, --dtype, --size and --minutes limit it",
    )
    found.add_argument(
        "--minutes",
        type=_minutes,
        help=f"begin no further measurement when about so much time has passed (default: {_MINUTES:g} with --all)",
    )
    found.add_argument("--no-compile", action="store_true", help="skip torch.compile, which needs a C++ compiler")
    found.add_argument("--no-memory", action="store_true", help="skip the memory, measured in child processes")
    found.add_argument(
        "--json",
        type=_file,
        metavar="FILE",
        help="also write all measurements to FILE; with - to stdout, and the tables to stderr",
    )
    found.add_argument("--plot", type=_file, metavar="FILE", help="also draw speed-up and memory over the size")
    found.add_argument(
        "--compare",
        type=_file,
        metavar="FILE",
        help="print what changed since the measurements of a --json FILE: speed-ups, memory and errors, and how "
        "machine and versions differ",
    )
    found.add_argument("--force", action="store_true", help="allow --json and --plot to replace existing files")
    return found


def complete(arguments: argparse.Namespace, device: torch.device) -> None:
    """Sets the options that were not given, which depend on ``--all`` and on the device.

    Raises:
        InputError: If options contradict each other.
    """
    everything = arguments.all
    arguments.case = list(dict.fromkeys(arguments.case or (CASES if everything else DEFAULT_CASES)))
    arguments.dtype = arguments.dtype or (supported_precisions(device) if everything else ["float32"])
    arguments.inside_compile = arguments.inside_compile or (everything and not arguments.no_compile)
    arguments.minutes = arguments.minutes or (_MINUTES if everything else None)
    if arguments.no_compile and "compiled" in (arguments.implementations or []):
        raise InputError("--no-compile and --implementations compiled contradict each other; leave out one of them")
    if not arguments.implementations:
        setup = Setup(device=device)
        arguments.implementations = implementation_names(arguments.case, setup) if everything else list(BASIC)
    if arguments.no_compile:
        arguments.implementations = [name for name in arguments.implementations if name != "compiled"]


def groups_of(arguments: argparse.Namespace, device: torch.device) -> list[tuple[str, list[Setup]]]:
    """Returns what is measured together: a case at one size, in all dtypes.

    Raises:
        InputError: If the device has no such dtype, or no case can be measured inside a compiled step.
    """
    gpu = device.type == "cuda"
    if "tf32" in arguments.dtype and not gpu:
        raise InputError(f"--dtype: tf32 is for GPUs, got --device {device}; use float32")
    names = [(name, _sizes(arguments, name, gpu)) for name in arguments.case]
    if arguments.inside_compile:
        losses = [name for name in arguments.case if name in LOSSES]
        if not losses:
            raise InputError(
                f"--inside-compile needs at least one of the cases {'; '.join(LOSSES)}; add it with --case"
            )
        names += [(name + SUFFIX, _sizes(arguments, name, gpu)) for name in losses]
    if arguments.all and gpu and not arguments.size:
        names += [(name, sizes) for name, sizes in _FURTHER_SIZES.items() if name in arguments.case]
    groups = []
    for name, sizes in names:
        networks = evaluates_network(name)
        precisions = dict.fromkeys(x if networks else x.replace("tf32", "float32") for x in arguments.dtype)
        for width, height in sizes:
            sets = 3 if gpu and name in BANDWIDTH_CASES else 1  # together they exceed the L2 cache
            setup = Setup(width, height, arguments.batch, arguments.num_d, device=device, sets=sets)
            setups = [
                dataclasses.replace(setup, dtype=_PRECISIONS[precision], tf32=precision == "tf32")
                for precision in precisions
            ]
            groups.append((name, setups))
    return groups


def _sizes(arguments: argparse.Namespace, name: str, gpu: bool) -> list[tuple[int, int]]:
    return list(dict.fromkeys(arguments.size or [])) or [SIZE if gpu or not evaluates_network(name) else _SMALL_SIZE]
