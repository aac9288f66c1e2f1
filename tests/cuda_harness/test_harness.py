"""Run every CUDA kernel on the CPU: plain, under Address- and UndefinedBehaviorSanitizer, and under ThreadSanitizer.

The kernels' sources are compiled with g++; their tests are the C++ files in this folder. Faults injected into a copy of
the sources show that the harness detects them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from . import build
from .build import PLAIN, THREAD, Builder, Run, Variant
from .faults import FAULTS, Fault

MISUSES = {
    "missing_lane": "deadlock: 33 of 64 threads have ended, thread 0 still waits at __ballot_sync",
    "two_places": "divergent warp: lane 16 is at __ballot_sync",
    "foreign_mask": "lane 16 is not in its own mask",
    "missing_thread": "deadlock: 32 of 64 threads have ended, thread 0 still waits at __syncthreads",
    "no_wait": "thread 7 does not wait for the previous grid",
    "two_barriers": "divergent block: thread 32 is at __syncthreads",
}


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    gxx = build.compiler()
    if gxx is None:
        pytest.skip("the harness needs g++, and none is on the PATH")
    return Builder(tmp_path_factory.mktemp("cuda_harness"), gxx)


@pytest.fixture(scope="session")
def executables(builder: Builder) -> dict[Variant, pathlib.Path]:
    return builder.build([variant for variant in build.VARIANTS if builder.links(variant)])


def executable_of(executables: dict[Variant, pathlib.Path], variant: Variant) -> pathlib.Path:
    if variant not in executables:
        pytest.skip(f"the library of {variant.sanitizer[0]} is not installed")
    return executables[variant]


@pytest.fixture(scope="session")
def full_runs(executables: dict[Variant, pathlib.Path]) -> dict[Variant, Run]:
    # The shim and plan tests run no kernels, so they cannot have races.
    names = "simulator l1 pointwise finish_sum perceptual pool lpips norm_act norm_act_extremes"
    tests = {THREAD: ["quick", *names.split()]}
    slowest_first = sorted(executables, key=build.VARIANTS.index, reverse=True)
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda variant: build.run(executables[variant], *tests.get(variant, ["all"])), slowest_first)
        return dict(zip(slowest_first, runs, strict=True))


@pytest.fixture(scope="session")
def fault_runs(
    builder: Builder, executables: dict[Variant, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run | Exception]:
    folder = tmp_path_factory.mktemp("faults")

    def run_one(numbered: tuple[int, Fault]) -> Run | Exception:
        number, fault = numbered
        if fault.variant not in executables:
            return Run(0, "")
        try:
            executable = builder.build_with_fault(
                fault.variant,
                folder / str(number),
                fault.source,
                fault.old,
                fault.new,
                fault.compiled,
                fault.dtypes,
            )
        except (LookupError, RuntimeError) as error:
            return error
        return build.run(executable, "stop", fault.tests)

    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(run_one, enumerate(FAULTS))
        return {fault.name: run for fault, run in zip(FAULTS, runs, strict=True)}


@pytest.mark.parametrize("variant", build.VARIANTS, ids=lambda variant: variant.name)
def test_every_kernel_runs_and_is_correct(
    variant: Variant,
    executables: dict[Variant, pathlib.Path],
    full_runs: dict[Variant, Run],
    record_property: Callable[[str, object], None],
) -> None:
    executable = executable_of(executables, variant)
    returncode, output = full_runs[variant]
    assert returncode == 0, output[-5000:]
    executed = {int(address, 16) for address in re.findall(r"^kernel (\w+) \d+$", output, re.M)}
    kernels = build.kernels_in(executable)
    missed = [name for address, name in kernels.items() if address not in executed]
    assert not missed, f"{len(missed)} of {len(kernels)} kernels were never executed: {missed}"
    text = "".join((build.ROOT / source).read_text() for source in build.sources())
    for name in re.findall(r"__global__[^;{]*?(\w+_kernel)\(", text):
        assert any(f"::{name}" in kernel for kernel in kernels.values()), f"{name} was built for no dtype"
    summary = re.search(r"^\d+ kernels executed.*$", output, re.M)
    assert summary is not None
    assert " 0 failed" in summary[0]
    record_property("cuda_harness", f"{variant.name}: {len(kernels)} kernels of csrc/cuda; {summary[0]}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_injected_fault_is_detected(
    fault: Fault, executables: dict[Variant, pathlib.Path], fault_runs: dict[str, Run | Exception]
) -> None:
    executable_of(executables, fault.variant)
    result = fault_runs[fault.name]
    if isinstance(result, Exception):
        raise result
    assert result.returncode != 0, f"the harness does not detect it:\n{result.output[-2000:]}"
    assert re.search(fault.found_by, result.output), (
        f"detected by another check than expected:\n{result.output[-5000:]}"
    )


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_of_barriers_and_warp_operations_is_detected(
    misuse: str, executables: dict[Variant, pathlib.Path]
) -> None:
    returncode, output = build.run(executables[PLAIN], "misuse", misuse)
    assert returncode == 3
    assert MISUSES[misuse] in output


def test_data_race_is_detected(executables: dict[Variant, pathlib.Path]) -> None:
    returncode, output = build.run(executable_of(executables, THREAD), "misuse", "race")
    assert returncode != 0
    assert "ThreadSanitizer: data race" in output
