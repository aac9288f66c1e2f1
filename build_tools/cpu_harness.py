"""Build and run ``tests/cpu_harness``: the CPU kernels against plain loops, without Python and torch.

    python -m build_tools.cpu_harness            on this machine
    python -m build_tools.cpu_harness --arm      for 64-bit Arm, with a cross compiler and qemu-user
    python -m build_tools.cpu_harness --no-bmi   on an emulated processor with AVX2 but without BMI

The sums of some instruction sets have the same order, so that they have the same bits. The runs print a digest of the
bits, which ``--arm`` compares: baseline of both machines, and NEON with AVX2.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from build_tools.kernel_flags import CXX_FLAGS, KERNEL_FLAGS, instruction_sets
from build_tools.messages import BuildError, say

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "cpu_harness"
# The same order of sums: NEON is written to add as AVX2 does.
SAME_BITS = (("baseline", "baseline"), ("neon", "avx2"))


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the harness: the counts of one instruction set and the digest of its sums."""

    cases: int
    checks: int
    failed: int
    digest: str


def build(folder: pathlib.Path, cxx: Sequence[str], machine: str, optimize: str = "") -> pathlib.Path:
    """Compile the kernels and the harness.

    Args:
        folder: For the objects and the executable.
        cxx: The compiler.
        machine: The processor that it compiles for, as of ``platform.machine()``.
        optimize: Replaces the optimization of the kernels, for example ``-O0``.
    """
    flags = [*CXX_FLAGS, *KERNEL_FLAGS, *([optimize] if optimize else [])]
    csrc = ROOT / "csrc" / "cpu"
    jobs = {csrc / f"kernels_{name}.cpp": [*flags, *own] for name, own in instruction_sets(machine).items()}
    jobs[csrc / "dispatch.cpp"] = CXX_FLAGS
    plain = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra"]
    jobs |= dict.fromkeys([*sorted(TESTS.glob("*.cpp")), ROOT / "tests/cuda_harness/checks.cpp"], plain)

    def compile_one(job: tuple[pathlib.Path, list[str]]) -> str:
        target = str(folder / f"{job[0].stem}.o")
        _run([*cxx, *job[1], "-c", str(job[0]), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, jobs.items()))
    executable = folder / "kernels"
    _run([*cxx, *objects, "-o", str(executable)])
    return executable


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def run(command: Sequence[str], shapes: int, seed: int, names: Sequence[str] = ("all",)) -> dict[str, Result]:
    """Run the harness. Returns the results by instruction set; raises an error if a check failed."""
    done = subprocess.run([*command, str(shapes), str(seed), *names], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found = re.findall(r"^(\w+): (\d+) cases, (\d+) checks, (\d+) failed, digest (\w+)$", done.stdout, re.MULTILINE)
    return {name: Result(int(cases), int(checks), int(bad), digest) for name, cases, checks, bad, digest in found}


def native_compiler() -> list[str]:
    """g++ or another compiler of this machine."""
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler was found (g++, c++, clang++). On Debian and Ubuntu: apt install g++")


def find_emulator(machine: str) -> str:
    """qemu-user for this machine."""
    for name in (f"qemu-{machine}", f"qemu-{machine}-static"):
        if shutil.which(name):
            return name
    raise BuildError(f"qemu-{machine} was not found. On Debian and Ubuntu: apt install qemu-user-static")


def arm_compiler() -> list[str]:
    """A cross compiler for 64-bit Arm: GCC, or Clang from the package ziglang."""
    if shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++"]
    probe = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    raise BuildError(
        "no compiler for 64-bit Arm was found. On Debian and Ubuntu: apt install g++-aarch64-linux-gnu; "
        "or: pip install ziglang"
    )


def check_arm(folder: pathlib.Path, shapes: int, seed: int) -> dict[str, Result]:
    """Run the kernels for 64-bit Arm, and compare the bits of their sums with this machine's."""
    (folder / "arm").mkdir()
    (folder / "native").mkdir()
    executable = build(folder / "arm", [*arm_compiler(), "-static"], "aarch64")
    arm = run([find_emulator("aarch64"), str(executable)], shapes, seed)
    native = run([str(build(folder / "native", native_compiler(), platform.machine()))], shapes, seed)
    for own, other in SAME_BITS:
        if other in native and arm[own].digest != native[other].digest:
            raise BuildError(f"the sums of {own} on Arm do not have the bits of {other} on this machine.")
        if other in native:
            say(f"{own} on Arm and {other} on {platform.machine()}: the same bits")
    return arm


def check_no_bmi(folder: pathlib.Path, shapes: int, seed: int) -> dict[str, Result]:
    """Run on a processor that has AVX2 but not all that the AVX2 kernels use: they must not be selected."""
    executable = build(folder, [*native_compiler(), "-static"], "x86_64")
    results = run([find_emulator("x86_64"), "-cpu", "max,bmi1=off,bmi2=off", str(executable)], shapes, seed)
    if set(results) != {"baseline"}:
        raise BuildError(f"without BMI the kernels {', '.join(results)} were selected; only baseline may be.")
    return results


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, run and print the results."""
    parser = argparse.ArgumentParser(prog="python -m build_tools.cpu_harness", description=__doc__.splitlines()[0])
    parser.add_argument("--arm", action="store_true", help="for 64-bit Arm, under qemu-user")
    parser.add_argument("--no-bmi", action="store_true", help="on an emulated processor without BMI")
    parser.add_argument("--shapes", type=int, default=40, help="random shapes of each kernel and dtype")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.arm:
            results = check_arm(folder, options.shapes, options.seed)
        elif options.no_bmi:
            results = check_no_bmi(folder, options.shapes, options.seed)
        else:
            executable = build(folder, native_compiler(), platform.machine())
            results = run([str(executable)], options.shapes, options.seed)
    for name, result in results.items():
        print(f"{name}: {result.cases} cases, {result.checks} checks, {result.failed} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
