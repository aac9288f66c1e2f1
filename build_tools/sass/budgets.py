"""Rules for all GPU code, and budgets of each kernel, which the committed JSON file holds.

The counts of a budget depend on the compiler, so they are compared only with a library compiled by the same nvcc. The
rules hold for any.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

from build_tools.sass.disassembly import Kernel
from build_tools.sass.kernels import Path, main_path, work_of
from build_tools.sass.prediction import blocks_by_registers

FILE = pathlib.Path(__file__).with_name("budgets.json")
UPDATE = "python -m build_tools.sass --update-budgets"
# Atomic and reduction instructions on shared or global memory. REDUX, a reduction in registers, is not one of them.
_ATOMIC = re.compile(r"(U?ATOM|RED(?!UX)|SUATOM|SURED)")
# Kernels that may use the stack. In all others a stack means spilled registers or an array with variable indices.
STACK = {
    "finish_statistics": "registers that are live across the call of a 64-bit division",
    "norm_parameters": "registers that are live across the call of a 64-bit division",
    "finish_gradient_sums": "registers that are live across the call of a 64-bit division",
}
COLUMNS = ("registers", "stack", "instructions", "per_element", "float64", "load", "store", "local")


@dataclasses.dataclass(frozen=True)
class Row:
    """What the report prints for a kernel. The last columns are of the main path, and 0 for kernels of few threads."""

    registers: int
    stack: int
    instructions: int
    per_element: float
    float64: float
    load: int
    store: int
    local: int


def row(kernel: Kernel) -> Row:
    """The counts of one kernel.

    Raises:
        LookupError: If ``kernels.py`` does not describe it.
    """
    work = work_of(kernel)
    path = main_path(kernel, work) if work else Path(0.0, 0.0, 0, 0, 0.0, 0.0, 0, 0)
    return Row(
        kernel.registers,
        kernel.stack,
        len(kernel.instructions),
        path.instructions,
        path.float64,
        path.load,
        path.store,
        path.local,
    )


def broken_rules(kernels: dict[str, list[Kernel]]) -> list[str]:
    """Violations of what holds for any compiler: no atomics, no spills, vector accesses in vector paths."""
    broken = []
    for arch, own in kernels.items():
        for kernel in own:
            atomics = sorted({i.opcode for i in kernel.instructions if _ATOMIC.match(i.opcode)})
            if atomics:
                broken.append(
                    f"{arch} {kernel.name}: {', '.join(atomics)}; sums must not depend on the order of blocks"
                )
            if kernel.stack and kernel.family not in STACK:
                broken.append(f"{arch} {kernel.name}: {kernel.stack} bytes of stack; registers are spilled")
            work = work_of(kernel)
            if work is None:
                continue
            counts = row(kernel)
            narrow = [size for size in (counts.load, counts.store) if 0 < size < 8]
            unaligned = kernel.family.startswith("relu_pool") and kernel.arguments[1] == "0"
            signs = kernel.family == "l1_forward"  # stores words of signs and one partial sum
            if narrow and not (unaligned or signs):
                broken.append(f"{arch} {kernel.name}: global accesses of {min(narrow)} bytes, expected 8 or 16")
    return broken


def compare(kernels: dict[str, list[Kernel]], budgets: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Regressions and improvements of all kernels whose architecture has budgets.

    A regression is more stack or local memory, fewer resident blocks, narrower accesses, or over 2 % more instructions
    per element (float64 included) or 10 % more in total. So is a kernel without a budget, or a budget without a kernel.
    """
    worse, better = [], []
    for arch, own in kernels.items():
        if arch not in budgets["archs"]:
            continue
        allowed = {name: Row(*values) for name, values in budgets["archs"][arch].items()}
        for kernel in own:
            budget, now = allowed.pop(kernel.name, None), row(kernel)
            name = f"{arch} {kernel.name}"
            if budget is None:
                worse.append(f"{name}: no budget; run {UPDATE}")
                continue
            limits = {
                "stack": (now.stack, budget.stack),
                "local": (now.local, budget.local),
                "per_element": (now.per_element, budget.per_element * 1.02),
                "float64": (now.float64, budget.float64 * 1.02),
                "instructions": (now.instructions, budget.instructions * 1.1),
                "load": (-now.load, -budget.load),
                "store": (-now.store, -budget.store),
                "registers": (-blocks_by_registers(now.registers), -blocks_by_registers(budget.registers)),
            }
            for column, (value, limit) in limits.items():
                if value > limit:
                    worse.append(f"{name}: {column} {getattr(now, column)}, budget {getattr(budget, column)}")
            if now.per_element < 0.98 * budget.per_element or now.stack < budget.stack:
                better.append(f"{name}: per_element {now.per_element}, budget {budget.per_element}")
        worse += [f"{arch} {name}: has a budget but is not in the library; run {UPDATE}" for name in allowed]
    return worse, better


def read() -> dict[str, Any]:
    budgets: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return budgets


def write(kernels: dict[str, list[Kernel]], version: str) -> None:
    """Replace the budgets by the counts of these kernels, one line per kernel."""
    archs = []
    for arch, own in kernels.items():
        lines = [f"      {json.dumps(k.name)}: {json.dumps(list(dataclasses.astuple(row(k))))}" for k in own]
        archs.append(f"    {json.dumps(arch)}: {{\n" + ",\n".join(lines) + "\n    }")
    text = f'{{\n  "nvcc": {json.dumps(version)},\n  "columns": {json.dumps(COLUMNS)},\n  "archs": {{\n'
    FILE.write_text(text + ",\n".join(archs) + "\n  }\n}\n", encoding="utf-8")
