"""Measures memory in a fresh process: ``python -m pix2pixhd.bench.child`` with an implementation and JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence

import torch

from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.cases import make_case
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.memory import memory_of, run_child, trim
from pix2pixhd.errors import out_of_memory

__all__ = ["measure_memory"]


def measure_memory(implementation: str, cases: Sequence[tuple[str, Setup]]) -> list[dict[str, int]]:
    """Measures one implementation of cases in a fresh process.

    Args:
        implementation: ``fused``, ``plain`` or ``compiled``.
        cases: Names and setups; all on one kind of device.

    Returns:
        For each case, bytes above those before the call: ``retained`` between forward and backward, if they are apart,
        and ``peak``. Gradients, which are the result, are included in the peak.
    """
    if not cases:
        return []
    exact = cases[0][1].device.type == "cpu"
    content = json.dumps([[name, setup.to_json()] for name, setup in cases])
    found: list[dict[str, int]] = run_child(["-m", "pix2pixhd.bench.child", implementation, content], exact)
    return found


def _measure(name: str, setup: Setup, implementation: str) -> dict[str, int]:
    memory = memory_of(setup.device.type)
    found = {}

    def between() -> None:
        found["retained"] = memory.now() - before

    if implementation == "compiled" or name.endswith(SUFFIX):  # elsewhere the import alone would take a second
        torch.compiler.reset()  # as in run_case
    run = make_case(name, setup).run_of(implementation, between)
    before = 0
    for _ in range(2):  # the first call compiles, converts weights and loads libraries
        trim()
        memory.reset()
        before = memory.now()
        result = run()
        found["peak"] = memory.peak() - before
        del result
    return found


def main() -> None:
    """Prints the memory of the cases on the command line as JSON.

    Raises:
        SystemExit: If memory runs out, with the reason.
    """
    warnings.simplefilter("ignore")
    todo = [(name, Setup.from_json(setup)) for name, setup in json.loads(sys.argv[2])]
    try:
        print(json.dumps([_measure(name, setup, sys.argv[1]) for name, setup in todo]))
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        sys.exit(f"the child process that measures memory: {reason}")


if __name__ == "__main__":
    main()
