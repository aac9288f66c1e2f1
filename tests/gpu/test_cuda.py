"""CUDA behaviour: streams, graphs, no synchronisation, devices, number of launches, memory."""

import shutil
import subprocess
import sys

import pytest
import torch

import pix2pixhd
from pix2pixhd.bench.timing import capture
from pix2pixhd.losses import VGGLoss

from ..losses.helpers import random_images
from .inputs import AWKWARD, FEATURES, LOSSES, lists, on, value_and_gradients

pytestmark = pytest.mark.cuda_only


def vgg_step(vgg, size=64):
    """VGGLoss as a function of two lists, like the other losses."""
    criterion = VGGLoss(vgg=vgg)
    inputs = [random_images(1, 3, size, size, seed=seed).cuda() for seed in (0, 1)]
    return (lambda xs, ys: criterion(xs[0], ys[0].detach())), [inputs[0]], [inputs[1]]


@pytest.fixture(params=[*LOSSES, "vgg"])
def step(request):
    """A loss and two lists on the GPU."""
    if request.param == "vgg":
        return vgg_step(request.getfixturevalue("vgg"))
    return LOSSES[request.param], *(on("cuda", tensors) for tensors in lists(FEATURES, torch.float32))


def leaves_of(xs, ys):
    return [x.detach().clone().requires_grad_() for x in xs], [y.detach().clone() for y in ys]


def test_operators_run_on_the_current_stream(step):
    loss, xs, ys = step
    expected, gradients = value_and_gradients(loss, xs, ys)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    late_x, late_y = ([torch.full_like(z, 7.0) for z in zs] for zs in (xs, ys))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # work on another stream would read the sevens
        for late, own in zip((*late_x, *late_y), (*xs, *ys), strict=True):
            late.copy_(own)
        value, found = value_and_gradients(loss, late_x, late_y)
    side.synchronize()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(
        [g for g in found if g is not None], [g for g in gradients if g is not None], rtol=0, atol=0
    )


def test_cuda_graph_replays_with_new_values(step):
    loss, xs, ys = step
    xs, ys = leaves_of(xs, ys)

    def run():
        value = loss(xs, ys)
        return value.detach(), torch.autograd.grad(value, xs, allow_unused=True)

    graph, (value, gradients) = capture(run)
    for scale in (1.0, 0.5, -2.0):  # new values at the same addresses
        with torch.no_grad():
            for x in xs:
                x.mul_(scale)
        graph.replay()
        torch.cuda.synchronize()
        replayed = value.clone(), [g.clone() for g in gradients]
        expected = run()
        torch.testing.assert_close(replayed[0], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(replayed[1], list(expected[1]), rtol=0, atol=0)


def test_operators_do_not_synchronize_with_the_host(step):
    loss, xs, ys = step
    value_and_gradients(loss, xs, ys)  # libraries may synchronise during initialisation
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value_and_gradients(loss, xs, ys)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_hundred_runs_are_bitwise_equal(step):
    loss, xs, ys = step
    torch.backends.cudnn.deterministic = True
    try:
        value, gradients = value_and_gradients(loss, xs, ys)
        for _ in range(99):
            again, others = value_and_gradients(loss, xs, ys)
            assert torch.equal(again, value)
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(others, gradients, strict=True))
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", LOSSES)
def test_tensors_on_another_device_than_the_current_one_match_the_cpu(name):
    xs, ys = lists(FEATURES, torch.float32)
    expected, gradients = value_and_gradients(LOSSES[name], xs, ys)
    with torch.cuda.device(0):
        value, found = value_and_gradients(LOSSES[name], on("cuda:1", xs), on("cuda:1", ys))
        assert torch.cuda.current_device() == 0
    assert value.device.index == 1
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close([g.cpu() for g in found], list(gradients), rtol=1e-6, atol=1e-9)


def test_lists_on_two_devices_raise_an_error():
    xs, ys = lists(FEATURES, torch.float32)
    with pytest.raises(ValueError, match="move all to one device"):
        LOSSES["l1"](on("cuda", xs), ys)


def kernels_of(run):
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        run()
        torch.cuda.synchronize()
    return [e for e in recorded.key_averages() if e.device_type.name == "CUDA"]


@pytest.mark.parametrize("name", ["l1", "lsgan"])
def test_forward_and_backward_need_at_most_three_launches(name):
    xs, ys = leaves_of(*(on("cuda", tensors) for tensors in lists(FEATURES, torch.float32)))
    loss = LOSSES["l1"] if name == "l1" else lambda xs, _: pix2pixhd.functional.lsgan_loss(xs, 1.0)
    one = torch.ones((), device="cuda")
    found = kernels_of(lambda: torch.autograd.grad(loss(xs, ys), xs, one))
    assert sum(event.count for event in found) <= 3, [(event.key, event.count) for event in found]


def memory_of(loss, xs, ys):
    """Memory retained between forward and backward, and peak memory, in bytes."""
    value_and_gradients(loss, xs, ys)
    xs, ys = leaves_of(xs, ys)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = loss(xs, ys)
    retained = torch.cuda.memory_allocated() - before
    torch.autograd.grad(value, xs)
    return retained, torch.cuda.max_memory_allocated() - before


def test_l1_saves_two_bits_per_element_for_backward():
    xs, ys = (on("cuda", tensors) for tensors in lists([(4, 64, 256, 256), (1000,)], torch.float32))
    retained, _ = memory_of(LOSSES["l1"], xs, ys)
    assert retained < sum(x.numel() for x in xs) / 4 * 1.05 + 4096


def test_vgg_loss_saves_only_the_gradient(vgg):
    loss, xs, ys = vgg_step(vgg, 512)
    retained, peak = memory_of(loss, xs, ys)
    criterion = VGGLoss(vgg=vgg, keep_activations=True)
    with pix2pixhd.backend("reference"):
        plain_retained, plain_peak = memory_of(lambda xs, ys: criterion(xs[0], ys[0]), xs, ys)
    assert retained <= xs[0].nbytes + 4096
    assert retained - xs[0].nbytes <= 0.01 * plain_retained
    # Both include cuDNN's workspaces.
    assert peak <= 0.45 * plain_peak


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_reports_no_error(tool):
    script = (
        "import torch\n"
        "from tests.gpu.inputs import *\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        f"    shapes = {AWKWARD[:8]!r}\n"
        "    xs, ys = (on('cuda', z) for z in lists(shapes, dtype))\n"
        "    for loss in LOSSES.values():\n"
        "        value_and_gradients(loss, xs, ys)\n"
        "    x, y = (torch.randn(2, 96, 7, 5, device='cuda').to(dtype).contiguous(memory_format=torch.channels_last)\n"
        "            for _ in range(2))\n"
        "    ops = torch.ops.pix2pixhd\n"
        "    loss, mask, kept = ops.relu_distance_(x, y, None, None, False, False, True)\n"
        "    ops.relu_distance_backward_(y, mask, kept, None, False, 0.5)\n"
        "    ops.relu_lpips_(x, y, None, torch.ones(96, device='cuda'), None, False, 1.0, True)\n"
        "    out, codes = ops.relu_pool(x, None, True)\n"
        "    ops.relu_pool_backward(out, codes, 7, 5)\n"
        "    for z in (x, x.contiguous()):\n"
        "        mean, rstd, _ = ops.norm_statistics(z, True, 1e-5)\n"
        "        rest = (None, None, 1, 0.2, [2, 1, 3, 0], 1)\n"
        "        out = ops.norm_act(z, mean, rstd, None, None, z, *rest[2:])\n"
        "        ops.norm_act_backward(out, z, False, mean, rstd, *rest, True, True, True, True)\n"
        "torch.cuda.synchronize()\n"
    )
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
