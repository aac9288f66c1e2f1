"""Measures benchmark cases: times, errors against float64, and memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch._dynamo.exc import TorchDynamoException

from pix2pixhd.bench.case import BASIC, GRAPHS, Case, Implementation, Setup, TensorCase, tf32
from pix2pixhd.bench.cases import NETWORK_CASES, evaluates_network, make_case
from pix2pixhd.bench.child import measure_memory
from pix2pixhd.bench.device import count_launches
from pix2pixhd.bench.peak import ComputeLimit, count_convolution_flops, matrix_product, matrix_product_flops
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.timing import Timing, compare
from pix2pixhd.errors import InputError

__all__ = ["add_memory", "check_cases", "implementation_names", "run_case", "why_not_compiled"]

Report = Callable[[str], object]
_PRODUCT = "matrix product"
# They have the memory of another implementation, or none.
_WITHOUT_MEMORY = ("limit", *GRAPHS)


def implementation_names(cases: Sequence[str], setup: Setup) -> list[str]:
    """Returns the names of the implementations of cases that can be chosen."""
    names = dict.fromkeys(name for case in cases for name in make_case(case, setup).names)
    return [name for name in names if name != "limit"]


def check_cases(todo: Sequence[tuple[str, Setup]], implementations: Sequence[str]) -> None:
    """Checks that the cases can be measured, before the first one is.

    Raises:
        InputError: If a case does not accept its images, no case has one of the implementations, or a package that one
            needs is not installed.
    """
    cases = [make_case(name, setup) for name, setup in todo]
    for case in cases:
        case.check()
    known = implementation_names([name for name, _ in todo], todo[0][1])
    for name in implementations:
        if name not in known:
            raise InputError(
                f"--implementations: no chosen case has {name!r}; they have {', '.join(known)}. Change it, or choose "
                "other cases with --case"
            )
        for case in cases:
            package = case.variants[name].package if isinstance(case, TensorCase) and name in case.variants else None
            if package is not None and importlib.util.find_spec(package) is None:
                raise InputError(
                    f"--implementations: {name!r} needs the package {package}; install it (pip install {package}), or "
                    f"leave out {name!r}"
                )


def run_case(
    name: str,
    setups: Sequence[Setup],
    implementations: Sequence[str] = BASIC,
    rounds: int | None = None,
    budget: float = 10.0,
    report: Report = print,
    bandwidth: float | None = None,
) -> list[CaseResult]:
    """Measures times and errors of one of the cases, in several dtypes interleaved.

    Args:
        name: Name of the case.
        setups: Images and discriminator; they differ in the dtype only.
        implementations: Names of implementations. Those that the case does not have are left out; ``fused``,
            ``plain`` and the limit are always measured.
        rounds: Rounds per implementation, or None for as many as fit into ``budget`` seconds per dtype.
        budget: Seconds for the rounds.
        report: Called with what is being done.
        bandwidth: Bytes per second of a copy on the GPU, or None elsewhere.

    Returns:
        The measurements, one result per setup. ``compiled`` is missing where torch.compile fails.

    Raises:
        TorchDynamoException: If torch.compile fails and the case is a compiled step.
    """
    # The cases share code, and torch.compile keeps few versions of the same code.
    torch.compiler.reset()
    cases = [make_case(name, setup) for setup in setups]
    always = ("fused", "plain", "limit")
    chosen = [implementation for implementation in cases[0].names if implementation in (*always, *implementations)]
    runs = {
        _key(setup, implementation): case.run_of(implementation)
        for setup, case in zip(setups, cases, strict=True)
        for implementation in chosen
    }
    unavailable = _leave_out_compiled(runs, report)
    chosen = [implementation for implementation in chosen if implementation not in unavailable]
    network, slow = name in NETWORK_CASES, evaluates_network(name) and setups[0].device.type == "cpu"
    products = {_key(setup, _PRODUCT): _product(setup) for setup in setups if network}
    timings = compare(
        {**runs, **products},
        rounds,
        warmup=1 if slow else 3,
        budget=budget * len(setups),
        progress=report,
    )
    plain_float32 = timings.get("plain, float32")
    results = []
    exact = None
    for setup, case in zip(setups, cases, strict=True):
        report(f"comparing with float64, {setup.precision}")
        own = {implementation: timings[_key(setup, implementation)] for implementation in chosen}
        if exact is None or not evaluates_network(name):  # networks have the same images and weights in all dtypes
            exact = case.exact()
        agreements = case.agreement([x for x in chosen if x != "limit"], exact)
        base = None if setup.precision == "float32" else plain_float32
        result = CaseResult(name, setup, own, agreements, {}, base, unavailable=unavailable)
        if network:
            flops = count_convolution_flops(runs[_key(setup, "fused")])
            product = timings[_key(setup, _PRODUCT)]
            compute = ComputeLimit(product, matrix_product_flops(setup.device), flops)
            result = dataclasses.replace(result, compute=compute)
        if bandwidth is not None:
            report(f"counting kernel launches, {setup.precision}")
            launches = {x: count_launches(runs[_key(setup, x)]) for x in chosen}
            result = dataclasses.replace(result, launches=launches, of_copy=_of_copy(case, own["fused"], bandwidth))
        results.append(result)
    return results


def _key(setup: Setup, implementation: str) -> str:
    return f"{implementation}, {setup.precision}"


def _leave_out_compiled(runs: dict[str, Implementation], report: Report) -> dict[str, str]:
    """Removes ``compiled`` in all dtypes where torch.compile fails; returns the implementation and the reason."""
    compiled = [key for key in runs if key.startswith("compiled, ")]
    try:
        for key in compiled:
            report(f"compiling {key.removeprefix('compiled, ')}")
            runs[key]()
    except TorchDynamoException as error:
        for key in compiled:
            del runs[key]
        return {"compiled": why_not_compiled(error)}
    return {}


def why_not_compiled(error: TorchDynamoException) -> str:
    """Returns the reason why torch.compile failed, in one line."""
    inner = getattr(error, "inner_exception", None) or error
    return str(inner).strip().splitlines()[0]


def _product(setup: Setup) -> Implementation:
    """Returns a matrix product in the dtype of the setup, timed with its networks."""
    product = matrix_product(setup.dtype, setup.device)

    def run() -> object:
        with tf32(setup):
            return product()

    return run


def _of_copy(case: Case, fused: Timing, bandwidth: float) -> float | None:
    traffic = case.traffic if isinstance(case, TensorCase) else None
    return None if traffic is None else traffic / fused.median / bandwidth


def add_memory(results: Sequence[CaseResult], report: Report = print, until: float = math.inf) -> list[CaseResult]:
    """Measures the memory of all implementations, each in a process of its own, and returns results with it.

    No further implementation is begun after ``until``, a time of ``time.monotonic``.
    """
    memory: list[dict[str, dict[str, int]]] = [{} for _ in results]
    names = dict.fromkeys(name for result in results for name in result.timings if name not in _WITHOUT_MEMORY)
    for implementation in names:
        if time.monotonic() > until:
            report(f"the memory of {implementation} is not measured: the time is over")
            continue
        chosen = [index for index, result in enumerate(results) if implementation in result.timings]
        report(f"measuring the memory of {implementation}, in a process of its own")
        found = measure_memory(implementation, [(results[index].name, results[index].setup) for index in chosen])
        for index, own in zip(chosen, found, strict=True):
            memory[index][implementation] = own
    return [dataclasses.replace(result, memory=own) for result, own in zip(results, memory, strict=True)]
