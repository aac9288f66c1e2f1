"""The losses at the paper's 512p sizes (1024x512, batch 1), forward and backward, float32, CPU.

    pytest benchmarks

All implementations of a loss are first timed interleaved (``pix2pixhd.bench.timing.compare``). The ratios are printed
at the end of the output and stored in the ``extra_info`` of the JSON. Then pytest-benchmark times each implementation
alone for its tables and for ``--benchmark-compare``.
"""

import functools

import pytest
import torch

from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.cases import CASES, NETWORK_CASES
from pix2pixhd.bench.timing import compare

ROUNDS = 21
LOSSES = [name for name in CASES if name not in NETWORK_CASES]


@functools.lru_cache(maxsize=1)  # keep the inputs of one case only: up to 1 GB
def measured(case: str):
    made = CASES[case](Setup())
    implementations = {name: made.run_of(name) for name in made.names}
    return implementations, compare(implementations, rounds=ROUNDS)


@pytest.mark.parametrize("implementation", ["fused", "plain", "compiled", "limit"])
@pytest.mark.parametrize("case", LOSSES)
def test_loss(benchmark, report, case, implementation):
    implementations, timings = measured(case)
    if implementation not in implementations:
        pytest.skip("the case has no such implementation: predictions are too small for a bandwidth limit")
    if implementation == "fused":
        report(case, timings)
    benchmark.group = case
    benchmark.extra_info["interleaved"] = timings[implementation].rounds
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(implementations[implementation], rounds=7, iterations=3, warmup_rounds=1)
