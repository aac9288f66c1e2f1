"""The losses at the paper's 512p sizes (1024x512, batch 1), forward and backward, float32, CPU.

    pytest benchmarks

For each loss all rivals are timed in turns (``pix2pixhd.bench.compare``; the ratios stand at the end of the output and
in the JSON's ``extra_info``), then pytest-benchmark times each rival by itself for its own tables and
``--benchmark-compare``.
"""

import dataclasses
import functools

import pytest
import torch

from pix2pixhd.bench.cases import CASES
from pix2pixhd.bench.timing import compare

ROUNDS = 21


@functools.lru_cache(maxsize=1)  # the inputs of one case at a time: up to 1 GB
def measured(case: str):
    rivals = CASES[case]()
    return rivals, compare(rivals, rounds=ROUNDS)


@pytest.mark.parametrize("rival", ["fused", "plain", "compiled", "limit"])
@pytest.mark.parametrize("case", CASES)
def test_loss(benchmark, report, case, rival):
    rivals, timings = measured(case)
    if rival not in rivals:
        pytest.skip("predictions are too small for a bandwidth limit to mean anything")
    if rival == "fused":
        report(case, timings)
    benchmark.group = case
    benchmark.extra_info["in_turns"] = dataclasses.asdict(timings[rival])
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(rivals[rival], rounds=7, iterations=3, warmup_rounds=1)
