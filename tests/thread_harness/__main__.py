"""Check the CPU operators and their loop over threads for races: all dtypes, instruction sets and deliberate faults.

python -m tests.thread_harness
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

from . import build


def main() -> int:
    """Build, run the tests, then each fault; return the exit code."""
    gxx = build.compiler()
    if gxx is None:
        print("g++ does not link ThreadSanitizer. On Debian and Ubuntu: apt install libtsan2")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        builder = build.Builder(pathlib.Path(folder), gxx, short=False)
        done = build.run(builder.build())
        print(done.stdout + done.stderr, flush=True)
        if done.returncode != 0:
            return 1
        for fault in build.FAULTS:
            done = build.run(builder.build_with_fault(fault), fault.test)
            if "data race" not in done.stderr:
                print(f"deliberate fault, {fault.name}: not reported\n{done.stdout}{done.stderr}")
                return 1
            print(f"deliberate fault, {fault.name}: reported as a data race", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
