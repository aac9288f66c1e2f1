"""Call every operator of the package with random arguments.

    python -m tests.fuzz_operators --minutes 20      a new seed every time; it is printed
    python -m tests.fuzz_operators --seed 1 --inputs 4000

The outcome of a call must be a correct result or an error with a clear message. What fails is printed as an entry for
``tests/fuzz_operators/regressions.py``.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
GUARDED = "PIX2PIXHD_FUZZ_GUARD"


def _restart_with_guard() -> None:
    """Start again with the guard of allocations preloaded, unless a sanitizer does this or there is no compiler."""
    gxx = shutil.which(os.environ.get("CXX", "g++"))
    if GUARDED in os.environ or "LD_PRELOAD" in os.environ or gxx is None or sys.platform != "linux":
        return
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "guard.so")
        command = [gxx, "-std=c++17", "-O1", "-shared", "-fPIC", str(HERE / "guard.cpp"), "-o", str(library)]
        subprocess.run(command, check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), GUARDED: "1"}
        arguments = [sys.executable, "-m", "tests.fuzz_operators", *sys.argv[1:]]
        sys.exit(subprocess.run(arguments, env=environment, check=False).returncode)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="how long to run")
    parser.add_argument("--inputs", type=int, help="how many calls to make")
    parser.add_argument("--seed", type=int, help="the same seed makes the same calls; default: a new one")
    parser.add_argument("--faults", action="store_true", help="also check that the faulty operators are reported")
    options = parser.parse_args()
    if options.inputs is None and options.minutes == math.inf:
        parser.error("pass --minutes or --inputs")
    return options


def _check_faults() -> int:
    """Print which of the deliberate faults are reported; return the number of the others."""
    from . import campaign, corpus, faults

    campaign.Limits.seconds = 0.3
    missed = 0
    for name, (_, expected) in faults.FAULTS.items():
        calls = {name: [corpus.from_schema(faults.NAMESPACE, name)]}
        found: list[str] = []
        for report in campaign.run(calls, 0, 100, math.inf, faults.NAMESPACE):
            found = [failure.problem for failure in report.failures.values()]
            if any(re.search(expected, problem) for problem in found):
                print(f"deliberate fault {name}: reported")
                break
        else:
            missed += 1
            print(f"deliberate fault {name}: not reported; found {found}")
    return missed


def main() -> int:
    """Run a campaign and print its report; return the exit code."""
    options = _options()
    _restart_with_guard()

    import torch

    torch.set_num_threads(1)  # children of a process with threads cannot use them
    from . import campaign, corpus
    from .regressions import REGRESSIONS
    from .verdict import guard

    calls = corpus.record()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    begin = time.monotonic()
    print(f"seed {seed}, {len(calls)} operators, allocations {'' if guard.active else 'not '}guarded", flush=True)
    failures = campaign.known_failures(REGRESSIONS)
    shown = 0
    for report in campaign.run(calls, seed, options.inputs, begin + 60 * options.minutes):
        new = [*failures, *report.failures.values()][shown:]
        for failure in new:
            print(f"\n    # {failure.found} of seed {seed}\n{failure.test()}", flush=True)
        shown += len(new)
    failures += report.failures.values()
    for name in calls:
        print(f"{name}: {report.accepted[name]} calls accepted, {report.refused[name]} refused")
    unused = [name for name in calls if report.accepted[name] == 0]
    if unused:
        print(f"no valid call of {', '.join(unused)}: add one to tests/fuzz_operators/corpus.py")
    missed = _check_faults() if options.faults else 0
    seconds = time.monotonic() - begin
    print(f"{report.calls} calls in {seconds:.0f} s: {len(failures)} failures, {report.repeated} more like them")
    return 1 if failures or unused or missed else 0


if __name__ == "__main__":
    sys.exit(main())
