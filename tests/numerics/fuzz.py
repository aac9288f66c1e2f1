"""Draws cases with a new seed for some minutes: ``python -m tests.numerics.fuzz --minutes 5``."""

from __future__ import annotations

import argparse
import collections
import secrets
import sys
import time
import traceback
import warnings

import torch

from .cases import Operator
from .check import Mismatch
from .report import explain
from .table import OPERATORS


def run(operators: list[Operator], seed: int, seconds: float, say=print, reports: int = 3) -> dict[str, int]:
    """Draw cases, report failures, and return the number of failures per operator.

    The operators get equal shares of the time. Of each operator and kind of mismatch, the first failures are shrunk and
    reported; the others have the same cause, as a rule.
    """
    say(f"seed {seed}")
    spent = dict.fromkeys((operator.name for operator in operators), 0.0)
    counts, failures, kinds = collections.Counter(), collections.Counter(), collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        operator = min(operators, key=lambda o: spent[o.name])
        begin = time.process_time()
        index = counts[operator.name]
        counts[operator.name] += 1
        case = operator.case(seed, index)
        try:
            operator.verify(case)
        except Mismatch as mismatch:
            failures[operator.name] += 1
            kinds[operator.name, mismatch.kind] += 1
            if kinds[operator.name, mismatch.kind] <= reports:
                say(explain(operator, case, mismatch, f"seed {seed}, case {index}"))
        except Exception:
            failures[operator.name] += 1
            say(f"{operator.name}, seed {seed}, case {index}: an error of this test\n{traceback.format_exc()}")
        spent[operator.name] += time.process_time() - begin
    for operator in operators:
        say(f"{operator.name:24} {counts[operator.name]:8} cases {failures[operator.name]:6} failures")
    say(f"{sum(counts.values())} cases, {sum(failures.values())} failures, seed {seed}")
    return dict(failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run; a new one by default")
    parser.add_argument("--operators", nargs="*", default=None, help="names; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [o for o in OPERATORS if arguments.operators is None or o.name in arguments.operators]
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    return 1 if run(chosen, seed, 60.0 * arguments.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())
