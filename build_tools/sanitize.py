"""Run the operators' tests with a CPU library that AddressSanitizer and UndefinedBehaviorSanitizer check.

    python -m build_tools.sanitize                      run the tests of the operators, then the deliberate faults
    python -m build_tools.sanitize tests/losses -k vgg  run other tests, without the faults

The library is built in a copy of the checkout, so that the installed one stays. The sanitizers' libraries are
preloaded, because Python and PyTorch are not built with them. Leaks are not reported, because PyTorch has some.
Alignment is not checked: kernels load float32 vectors from addresses that are multiples of 4, which the instructions
allow.

Each deliberate fault is an error in the sources that a sanitizer must report, or else the run fails.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess  # nosec B404 # runs compilers and tests
import sys
import tempfile
from collections.abc import Sequence

from build_tools.checkout import copy_checkout
from build_tools.messages import BuildError, say

SANITIZE = "-fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=undefined"
TESTS = (
    "tests/ops",
    # The memory of a process includes what the sanitizer holds back, and its allocator does not support fork beside
    # threads.
    "--deselect=tests/ops/test_recycling.py::"
    "test_process_memory_does_not_grow_with_varying_sizes_nor_retain_a_large_gradient",
    "--deselect=tests/ops/test_recycling_safety.py::"
    "test_children_forked_while_another_thread_runs_backward_can_run_backward",
)


@dataclasses.dataclass(frozen=True)
class Fault:
    """An error in a source, tests that run it, and what the sanitizer reports."""

    file: str
    correct: str
    wrong: str
    tests: str
    report: str


FAULTS = (
    Fault(
        "csrc/cpu/kernels_impl.h",
        "for (int64_t i = 0; i < n; ++i) {\n    const C x = widen(input[i]);",
        "for (int64_t i = 0; i <= n; ++i) {\n    const C x = widen(input[i]);",
        "tests/ops/test_pointwise.py",
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/cpu/kernels_impl.h",
        "for (int64_t lane = 0; i + lane < n; ++lane) {\n    const bool positive",
        "for (int64_t lane = 0; i + lane <= n; ++lane) {\n    const bool positive",
        "tests/ops/test_multi_l1.py",
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/cpu/kernels_impl.h",
        "const bool positive = (signs[i / 16] >> lane) & 1u;",
        "const bool positive = (signs[i / 16] >> (lane + 32)) & 1u;",
        "tests/ops/test_multi_l1.py",
        "shift exponent",
    ),
)


def preloaded() -> str:
    """The libraries to preload: those of the sanitizers, and the C++ library that they intercept."""
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)  # nosec B603, B607 # the compiler, as found on PATH
        if not os.path.isabs(found.stdout.strip()):
            raise BuildError(f"g++ has no {name}. On Debian and Ubuntu: apt install libasan8 libubsan1")
        libraries.append(found.stdout.strip())
    return ":".join(libraries)


def build(folder: pathlib.Path) -> None:
    """Builds the CPU library in a copy of the sources."""
    environment = {**os.environ, "CXX": f"g++ {SANITIZE} -fno-omit-frame-pointer -g1", "PIX2PIXHD_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # nosec B603 # the build of the extension
    if done.returncode:
        raise BuildError(f"the library with sanitizers did not compile:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def run_tests(
    folder: pathlib.Path, arguments: Sequence[str], capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a copy of the sources with the sanitizers."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": preloaded(),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PIX2PIXHD_BACKEND": "fused",
    }
    # Without pytest's capture: a sanitizer ends the process, and what was captured would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=capture, text=True, check=False)  # nosec B603 # Python, with arguments of this file


def check_faults(folder: pathlib.Path) -> None:
    """Raises an error if a sanitizer does not report a deliberate fault."""
    for index, fault in enumerate(FAULTS):
        source = folder / fault.file
        correct = source.read_text()
        if correct.count(fault.correct) != 1:
            raise BuildError(f"deliberate fault {index + 1}: {fault.file} does not contain its line exactly once.")
        source.write_text(correct.replace(fault.correct, fault.wrong))
        build(folder)
        done = run_tests(folder, ["-x", fault.tests], capture=True)
        source.write_text(correct)
        if done.returncode == 0 or fault.report not in done.stdout + done.stderr:
            raise BuildError(
                f"deliberate fault {index + 1} in {fault.file} was not reported:\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        say(f"deliberate fault {index + 1} of {len(FAULTS)}: reported as {fault.report}")


def main(arguments: Sequence[str]) -> int:
    """Builds, runs the tests and, without arguments, the deliberate faults. Returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_checkout(folder)
        say("building the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer")
        build(folder)
        code = run_tests(folder, arguments or TESTS).returncode
        if code == 0 and not arguments:
            check_faults(folder)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
