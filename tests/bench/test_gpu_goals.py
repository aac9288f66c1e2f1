"""The goals that are printed after the benchmark of a GPU."""

import dataclasses

import pytest
import torch
from report import Report, add_goals

from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.timing import Timing


def result(name, seconds, memory=None, **changed):
    timings = {implementation: Timing((x,) * 5) for implementation, x in seconds.items()}
    bytes_of = {implementation: {"retained": x, "peak": x} for implementation, x in (memory or {}).items()}
    setup = Setup(device=torch.device("cuda"))
    return dataclasses.replace(CaseResult(name, setup, timings, {}, bytes_of), **changed)


def goals_of(*results):
    report = Report()
    add_goals(report, results)
    return {row.what.partition(": ")[2]: (row.value, row.reached) for row in report.rows}


def test_kernels_are_compared_with_pytorch_and_a_copy():
    seconds = {"fused": 1.0, "plain": 12.0, "compiled": 1.5}
    found = goals_of(result("feature matching", seconds, of_copy=0.92, launches={"fused": 4}))
    assert found == {
        "speed-up over plain PyTorch": (12.0, True),
        "speed-up over torch.compile": (1.5, False),
        "share of a device copy's bandwidth": (0.92, True),
        "kernel launches": (4, False),
    }
    graphs = {"fused": 2.0, "plain": 8.0, "fused-graph": 1.0, "plain-graph": 2.0}
    found = goals_of(result("LSGAN, generator", graphs, launches={"fused": 2}))
    assert found["speed-up over plain, both as CUDA graphs"] == (2.0, False)
    assert found["kernel launches"] == (2, True)


def test_perceptual_losses_are_compared_with_plain_float32_and_the_lpips_package():
    half = Setup(dtype=torch.bfloat16, device=torch.device("cuda"))
    memory = {"fused": 20, "plain": 100}
    vgg = result("VGGLoss", {"fused": 1.0, "plain": 2.0}, memory, setup=half, plain_float32=Timing((4.0,) * 5))
    found = goals_of(vgg)
    assert found["time"] == (0.5, True)
    assert found["peak"] == (0.2, True)
    assert found["retained"] == (0.2, False)
    assert found["time, relative to plain float32"] == (0.25, True)
    lpips = goals_of(result("LPIPS", {"fused": 1.0, "plain": 1.0, "lpips": 2.0}, {"fused": 3, "plain": 4, "lpips": 10}))
    assert lpips["time"] == (0.5, True)
    assert lpips["peak"] == (0.3, True)
    larger = dataclasses.replace(vgg, setup=dataclasses.replace(half, width=2048))  # the same time for twice the pixels
    assert goals_of(vgg, larger)["spread of the cost per pixel over 2 sizes"] == pytest.approx((1.0, False))


def test_the_memory_of_half_precision_steps_is_relative_to_the_float32_step():
    wide = result("training step", {"fused": 1.0, "plain": 2.0}, {"fused": 30, "plain": 100})
    half = dataclasses.replace(
        result("training step", {"fused": 0.5, "plain": 1.0}, {"fused": 20, "plain": 80}),
        setup=dataclasses.replace(wide.setup, dtype=torch.bfloat16),
        plain_float32=wide.timings["plain"],
    )
    report = Report()
    add_goals(report, [wide, half])
    shares = [row.value for row in report.rows if row.what.endswith("peak memory")]
    assert shares == [0.3, 0.2]
    assert any(row.what.endswith("speed-up over NVIDIA's float32 step") and row.value == 4 for row in report.rows)
