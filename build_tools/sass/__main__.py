"""``python -m build_tools.sass``: print the report, and compare it with the budgets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys

from build_tools.messages import BuildError, say
from build_tools.sass import budgets
from build_tools.sass.disassembly import Kernel
from build_tools.sass.kernels import ROOT
from build_tools.sass.library import LIBRARY, compile_kernels, read_library
from build_tools.sass.prediction import GPUS, Prediction, predictions

DOCUMENT = ROOT / "docs" / "performance.md"
TABLE = re.compile(r"\| predicted, not measured \|.*?\|\n(?!\|)", re.DOTALL)
HEADER = ("regs", "stack", "instr", "instr/elem", "f64/elem", "load B", "store B", "local")


def print_kernels(kernels: dict[str, list[Kernel]]) -> None:
    for arch, own in kernels.items():
        print(f"\n{arch:<42}" + "".join(f"{name:>11}" for name in HEADER))
        for kernel in own:
            values = dataclasses.astuple(budgets.row(kernel))
            print(f"{kernel.name:<42}" + "".join(f"{value:>11}" for value in values))


def markdown(table: dict[str, dict[str, dict[str, Prediction]]]) -> str:
    """The table of docs/performance.md."""
    gpus = [gpu.name for gpu in GPUS if any(gpu.name in row for rows in table.values() for row in rows.values())]
    lines = ["| predicted, not measured | dtype | " + " | ".join(gpus) + " |", "|---" * (len(gpus) + 2) + "|"]
    for label, rows in table.items():
        for dtype, row in rows.items():
            cells = [
                f"{row[gpu].share:.0%}" + ("" if row[gpu].bound == "memory" else f", {row[gpu].bound}") for gpu in gpus
            ]
            lines.append(f"| {label} | {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("%", " %") + "\n"


def update(kernels: dict[str, list[Kernel]], version: str) -> None:
    """Replace the budgets and the table of docs/performance.md.

    Raises:
        BuildError: If the library is for other architectures than the budgets, or if the document has no table.
    """
    archs = list(budgets.read()["archs"])
    if sorted(kernels) != sorted(archs):
        raise BuildError(
            f"the budgets are for {', '.join(archs)} and the library is for {', '.join(kernels)}. Build with the "
            "default: TORCH_CUDA_ARCH_LIST= python setup.py build_ext --inplace"
        )
    text, count = TABLE.subn(lambda _: markdown(predictions(kernels)), DOCUMENT.read_text(encoding="utf-8"))
    if count != 1:
        raise BuildError(f"docs/{DOCUMENT.name} must contain one table with the header 'predicted, not measured'.")
    DOCUMENT.write_text(text, encoding="utf-8")
    budgets.write(kernels, version)
    print(f"\nWrote {budgets.FILE.name} and the table of docs/{DOCUMENT.name}.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m build_tools.sass", description=__doc__)
    parser.add_argument("--library", type=pathlib.Path, default=LIBRARY, help="default: the one that was built")
    parser.add_argument("--archs", nargs="+", default=[], metavar="ARCH", help="compile for these too, such as sm_89")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the counts and predictions")
    parser.add_argument(
        "--update-budgets", action="store_true", help="replace the budgets, and the table in docs/performance.md"
    )
    arguments = parser.parse_args()
    for arch in arguments.archs:
        if not re.fullmatch(r"sm_\d+[af]?", arch):
            parser.error(f"--archs must be architectures such as sm_89, got {arch!r}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    kernels, version = read_library(arguments.library)
    built = dict(kernels)
    missing = [arch for arch in arguments.archs if arch not in kernels]
    if missing:
        say(f"compiling for {', '.join(missing)}, about a minute each")
        kernels |= compile_kernels(missing)[0]
    print_kernels(kernels)
    table = predictions(kernels)
    print(f"\nPredicted share of a device copy's bandwidth, and what else bounds it:\n\n{markdown(table)}", end="")
    if arguments.json:
        report = {
            "nvcc": version,
            "archs": {a: {k.name: dataclasses.asdict(budgets.row(k)) for k in own} for a, own in kernels.items()},
            "predictions": {
                label: {t: {gpu: dataclasses.asdict(p) for gpu, p in row.items()} for t, row in rows.items()}
                for label, rows in table.items()
            },
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    worse = budgets.broken_rules(kernels)
    if arguments.update_budgets and not worse:
        update(built, version)
    elif not worse and budgets.read()["nvcc"] != version:
        print(f"\nBudgets not compared: they are for nvcc {budgets.read()['nvcc']}, the library is from {version}.")
    elif not worse:
        regressions, better = budgets.compare(built, budgets.read())
        worse = regressions
        without = [arch for arch in built if arch not in budgets.read()["archs"]]
        if without:
            print(f"\nBudgets not compared for {', '.join(without)}: there are none.")
        if better:
            print(f"\nBetter than the budget; to keep it, run {budgets.UPDATE}:\n  " + "\n  ".join(better))
    if worse:
        print("\nWorse than the rules or budgets allow:\n  " + "\n  ".join(worse))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
