"""Bitwise reproducibility for any number of threads; every instruction set matches the oracle."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pix2pixhd.functional import lsgan_loss, multi_l1_loss

from .oracle import DTYPES, INSTRUCTION_SETS, check_l1


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def step(seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(s, generator=generator).requires_grad_() for s in [(300_001,), (3, 100_003), (17,)]]
    ys = [torch.randn(x.shape, generator=generator) for x in xs]
    loss = multi_l1_loss(xs, ys, [0.3, 0.7, 1.1]) + lsgan_loss(xs, 0.9, [0.3, 0.7, 1.1])
    return [loss.detach(), *torch.autograd.grad(loss, xs)]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_results_are_bitwise_equal_for_any_number_of_threads(threads):
    results = []
    for count in (1, 2, 3, 4, 7):
        threads(count)
        results += [step(), step()]
    assert all(same_bits(results[0], r) for r in results[1:])


def test_concurrent_calls_return_the_results_of_single_calls():
    expected = [step(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for seed, result in enumerate(pool.map(step, list(range(8)) * 3)):
            assert same_bits(result, expected[seed % 8])


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_every_instruction_set_matches_the_oracle(select_instruction_set, name, dtype, other):
    select_instruction_set(name)
    assert torch.ops.pix2pixhd.cpu_instruction_sets().endswith(f";{name}")
    generator = torch.Generator().manual_seed(0)
    for numel in (5, 32, 100, 40_000):
        x, y = (torch.randn(numel, generator=generator, dtype=torch.float64) for _ in range(2))
        y[::4] = x[::4]
        x[1], y[2], x[3] = float("nan"), float("inf"), float("-inf")
        check_l1([(x.to(dtype), y.to(other))], [0.75])
        finite = x.nan_to_num(0, 1, 1).to(dtype), y.nan_to_num(0, 1, 1).to(other)
        check_l1([finite], [0.75], upstream=-3.0)


def test_signs_are_equal_for_every_instruction_set(select_instruction_set):
    x, y = torch.randn(100_001), torch.randn(100_001)
    signs = []
    for name in INSTRUCTION_SETS:
        select_instruction_set(name)
        signs.append(torch.ops.pix2pixhd.multi_l1.default([x], [y], [1.0], [0])[1])
    assert all(torch.equal(signs[0], s) for s in signs[1:])


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_half_precision_is_converted_exactly(select_instruction_set, name):
    """All finite bit patterns as input; a selection of values as gradient."""
    select_instruction_set(name)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        finite = x[x.isfinite()]
        loss, _ = torch.ops.pix2pixhd.multi_l1.default([finite], [torch.zeros_like(finite)], [1.0], [])
        torch.testing.assert_close(loss.double(), finite.double().abs().mean().float().double(), rtol=1e-7, atol=0)
        leaf = torch.ones(32, dtype=dtype, requires_grad=True)
        zero = torch.zeros(32, dtype=dtype)
        for upstream in [
            *finite[:: len(finite) // 97].tolist(),
            1.0 + 2**-9,
            65519.0,
            65520.0,
            2.0**-25,
            1.5 * 2**-25,
            3e38,
        ]:
            (g,) = torch.autograd.grad(
                torch.ops.pix2pixhd.multi_l1.default([leaf], [zero], [32.0], [0])[0], leaf, torch.tensor(upstream)
            )
            assert torch.equal(g, torch.full_like(g, 1.0) * torch.tensor(upstream).to(dtype)), upstream


def test_the_environment_selects_the_instruction_set_and_unknown_names_are_rejected():
    code = "import torch, pix2pixhd.ops; print(torch.ops.pix2pixhd.cpu_instruction_sets())"
    environment = {**os.environ, "PIX2PIXHD_CPU_ISA": "baseline"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip().endswith(";baseline")
    with pytest.raises(RuntimeError, match=r"this processor supports: .*\(or auto\), got 'sse9'"):
        torch.ops.pix2pixhd.select_cpu_instruction_set("sse9")
