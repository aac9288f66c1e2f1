"""``pix2pixhd bench``: benchmarks of the fused losses on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

import pix2pixhd
from pix2pixhd.bench.cases import CASES
from pix2pixhd.bench.timing import Timing, compare
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, write_text

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def run_case(name: str, dtype: torch.dtype, device: torch.device, rounds: int, with_compile: bool) -> dict[str, Timing]:
    """Times the implementations of one of ``CASES``."""
    return compare(CASES[name](dtype=dtype, device=device, with_compile=with_compile), rounds=rounds)


def ratio(timings: dict[str, Timing], baseline: str) -> float:
    """Returns the speed-up over a baseline; for ``limit``, the fraction of the bandwidth limit that is reached."""
    return timings[baseline].median / timings["fused"].median


def describe(name: str, timings: dict[str, Timing]) -> str:
    """Summarizes the measurements of one case in one line."""
    parts = [f"fused {timings['fused'].median * 1e3:.3f} ms"]
    parts += [f"{ratio(timings, name):.2f}x {name}" for name in ("plain", "compiled") if name in timings]
    if "limit" in timings:
        parts.append(f"{100 * ratio(timings, 'limit'):.0f} % of the bandwidth limit")
    return f"{name}: " + ", ".join(parts)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``pix2pixhd bench`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pix2pixhd bench",
        description="Benchmark forward and backward of the losses at the paper's 512p sizes (1024x512, batch 1): fused "
        "kernels, plain PyTorch, torch.compile and the limit of the memory bandwidth. Timings are interleaved in one "
        "process. Prints medians and speed-ups.",
    )
    parser.add_argument(
        "--case", action="append", choices=sorted(CASES), help="case to run; may be repeated (default: all)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float32")
    parser.add_argument("--rounds", type=int, default=15, help="number of timings per implementation (default: 15)")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile, which needs a C++ compiler")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write all measurements to FILE")
    parser.add_argument("--force", action="store_true", help="allow --json to replace an existing file")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json: the folder {arguments.json.resolve().parent} does not exist; create it first")
    if arguments.json is not None:
        check_replaceable([arguments.json], arguments.force, "--json")

    device = _device(arguments.device)
    facts = machine(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"forward + backward, {arguments.dtype}, {arguments.rounds} rounds\n")
    header = f"{'loss':<22} {'fused':>10} {'plain':>10} {'compiled':>10} {'x plain':>8} {'x comp.':>8} {'of limit':>9}"
    print(header)
    print("-" * len(header))
    results = {}
    for name in arguments.case or CASES:
        try:
            timings = run_case(name, _DTYPES[arguments.dtype], device, arguments.rounds, not arguments.no_compile)
        except TorchDynamoException as error:
            raise InputError(
                f"torch.compile failed ({str(error).splitlines()[0]}); install a C++ compiler, or use --no-compile"
            ) from error
        results[name] = {key: dataclasses.asdict(timing) for key, timing in timings.items()}

        def milliseconds(key: str, timings: dict[str, Timing] = timings) -> str:
            return f"{timings[key].median * 1e3:.3f} ms" if key in timings else "-"

        def speed_up(key: str, timings: dict[str, Timing] = timings) -> str:
            return f"{ratio(timings, key):.2f}" if key in timings else "-"

        share = f"{100 * ratio(timings, 'limit'):.0f} %" if "limit" in timings else "-"
        print(
            f"{name:<22} {milliseconds('fused'):>10} {milliseconds('plain'):>10} {milliseconds('compiled'):>10} "
            f"{speed_up('plain'):>8} {speed_up('compiled'):>8} {share:>9}",
            flush=True,
        )
    if arguments.json is not None:
        document = {"machine": facts, "dtype": arguments.dtype, "rounds": arguments.rounds, "seconds": results}
        write_text(arguments.json, json.dumps(document, indent=2) + "\n", force=arguments.force)
        print(f"\nwrote {arguments.json}")
    return 0
