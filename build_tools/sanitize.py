"""Run the operators under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    python -m build_tools.sanitize                      run everything below
    python -m build_tools.sanitize tests/losses -k vgg  run other tests under the first two sanitizers, nothing else

1. The tests of the operators, of the losses and of the lean networks that use them.
2. Random arguments of every operator (``tests/fuzz_operators``).
3. Deliberate faults in the sources, each of which a sanitizer must report, or else the run fails.
4. The CPU operators on several threads (``tests/thread_harness``), under ThreadSanitizer, with faults of its own.

The library is built in a copy of the checkout, so that the installed one stays. The sanitizers' libraries are
preloaded, because Python and PyTorch are not built with them. Leaks are not reported, because PyTorch has some.
Alignment is not checked: kernels load float32 vectors from addresses that are multiples of 4, which the instructions
allow.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from build_tools.checkout import ROOT, copy_checkout
from build_tools.messages import BuildError, say

SANITIZE = "-fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=undefined"
TESTS = (
    "tests/ops",
    *(f"tests/losses/test_{name}.py" for name in ("gan", "feature_matching", "objective", "style", "input_checks")),
    *(f"tests/losses/test_{name}.py" for name in ("vgg_fused", "vgg_float16", "lpips", "frozen_edge_cases")),
    *(f"tests/nn/test_{name}.py" for name in ("instance_norm_act", "lean_gradients", "lean_residual", "concatenation")),
    # The memory of a process includes what the sanitizer holds back, and its allocator does not support fork beside
    # threads. Forks of a process with one thread are tested by tests/fuzz_operators.
    "--deselect=tests/ops/test_recycling.py::"
    "test_process_memory_does_not_grow_with_varying_sizes_nor_retain_a_large_gradient",
    "--deselect=tests/ops/test_recycling_safety.py::"
    "test_children_forked_while_another_thread_runs_backward_can_run_backward",
)
# Without pytest's capture: a sanitizer ends the process, and what was captured would be lost.
PYTEST = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider")
FUZZ = ("-m", "tests.fuzz_operators", "--inputs", "6000")


@dataclasses.dataclass(frozen=True)
class Fault:
    """An error in a source, a module to run and its arguments, and what the sanitizer reports."""

    file: str
    correct: str
    wrong: str
    command: tuple[str, ...]
    report: str


FAULTS = (
    Fault(
        "csrc/cpu/kernels_impl.h",
        "for (int64_t i = 0; i < n; ++i) {\n    const C x = widen(input[i]);",
        "for (int64_t i = 0; i <= n; ++i) {\n    const C x = widen(input[i]);",
        (*PYTEST, "-x", "tests/ops/test_pointwise.py"),
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/cpu/kernels_impl.h",
        "for (int64_t lane = 0; i + lane < n; ++lane) {\n    const bool positive",
        "for (int64_t lane = 0; i + lane <= n; ++lane) {\n    const bool positive",
        (*PYTEST, "-x", "tests/ops/test_multi_l1.py"),
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/cpu/kernels_impl.h",
        "const bool positive = (signs[i / 16] >> lane) & 1u;",
        "const bool positive = (signs[i / 16] >> (lane + 32)) & 1u;",
        (*PYTEST, "-x", "tests/ops/test_multi_l1.py"),
        "shift exponent",
    ),
    Fault(
        "csrc/torch/norm_act_cpu.cpp",
        "std::min(row + rows, height)",
        "row + rows",
        (*PYTEST, "-x", "tests/ops/test_norm_act.py"),
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/torch/perceptual_cpu.cpp",
        "cpu::MapChunk{std::min(cpu::kChunk, map.elements() - within),",
        "cpu::MapChunk{map.elements() - within + 32,",
        (*PYTEST, "-x", "tests/ops/test_perceptual_operators.py"),
        "heap-buffer-overflow",
    ),
    # Checks of arguments, whose absence no test of valid calls can notice.
    Fault(
        "csrc/torch/perceptual_arguments.h",
        "words.is_contiguous() && words.numel() == expected,",
        "words.is_contiguous(),",
        (*FUZZ, "--seed", "0"),
        "heap-buffer-overflow",
    ),
    Fault(
        "csrc/torch/stable_tensor.cpp",
        "!__builtin_mul_overflow(product, std::max<int64_t>(sizes[d], 1), &product) &&",
        "(product *= std::max<int64_t>(sizes[d], 1)) > 0 &&",
        (*FUZZ, "--seed", "0"),
        "signed integer overflow",
    ),
)


def preloaded() -> str:
    """The libraries to preload: those of the sanitizers, and the C++ library that they intercept."""
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)  # nosec B607 # the compiler, as found on PATH
        if not os.path.isabs(found.stdout.strip()):
            raise BuildError(f"g++ has no {name}. On Debian and Ubuntu: apt install libasan8 libubsan1")
        libraries.append(found.stdout.strip())
    return ":".join(libraries)


def build(folder: pathlib.Path) -> None:
    """Builds the CPU library in a copy of the sources."""
    environment = {**os.environ, "CXX": f"g++ {SANITIZE} -fno-omit-frame-pointer -g1", "PIX2PIXHD_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the library with sanitizers did not compile:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    # Without the library, the tests would check plain PyTorch.
    loaded = run(folder, ("-c", "from pix2pixhd.ops import extension; print(extension.cpu())"), capture=True)
    if "loaded=True" not in loaded.stdout:
        raise BuildError(f"the library with sanitizers does not load:\n{loaded.stdout}{loaded.stderr[-3000:]}")


def run(folder: pathlib.Path, command: tuple[str, ...], capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python in a copy of the sources with the sanitizers."""
    limit = ":max_allocation_size_mb=1024" if command[:2] == FUZZ[:2] else ""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": preloaded(),
        # Random sizes may exceed the machine's memory.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1" + limit,
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=capture, text=True, check=False
    )


def check_faults(folder: pathlib.Path) -> None:
    """Raises an error if a sanitizer does not report a deliberate fault."""
    for index, fault in enumerate(FAULTS):
        source = folder / fault.file
        correct = source.read_text()
        if correct.count(fault.correct) != 1:
            raise BuildError(f"deliberate fault {index + 1}: {fault.file} does not contain its line exactly once.")
        source.write_text(correct.replace(fault.correct, fault.wrong))
        build(folder)
        done = run(folder, fault.command, capture=True)
        source.write_text(correct)
        if done.returncode == 0 or fault.report not in done.stdout + done.stderr:
            raise BuildError(
                f"deliberate fault {index + 1} in {fault.file} was not reported:\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        say(f"deliberate fault {index + 1} of {len(FAULTS)}: reported as {fault.report}")


def main(arguments: Sequence[str]) -> int:
    """Builds, runs the tests and, without arguments, everything else. Returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_checkout(folder)
        say("building the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer")
        build(folder)
        code = run(folder, (*PYTEST, *(arguments or TESTS))).returncode
        if arguments or code:
            return code
        say("random arguments of the operators")
        if run(folder, FUZZ).returncode:
            return 1
        check_faults(folder)
    say("several threads, with ThreadSanitizer")
    return subprocess.run([sys.executable, "-m", "tests.thread_harness"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
