"""Lean networks on the GPU: gradients, memory, determinism, CUDA graphs, no copies to the host."""

import copy

import pytest
import torch

from pix2pixhd.bench.timing import capture
from pix2pixhd.models import define_D, define_G
from pix2pixhd.nn import lean

from ..nn.helpers import chain, differentiate, error, images, plain_and_lean, randomised


def generator():
    return randomised(define_G(5, 3, 8, "global", 2, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", ["instance", "instance affine", "batch"])
def test_gradients_are_those_of_plain_layers_on_the_cpu(norm, memory_format, device):
    network = chain(norm).double()
    x = images(2, 3, 13, 17)
    expected = differentiate(network, x)
    ours = lean(copy.deepcopy(network)).to(device, memory_format=memory_format)
    found = differentiate(ours, x.to(device, memory_format=memory_format))
    # `differentiate` draws the upstream gradients on the CPU.
    for a, b in zip(found, expected, strict=True):
        assert error([t.cpu() for t in a], b) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gradients_have_at_most_twice_the_error(dtype, device):
    network, x = generator(), images(1, 5, 64, 64)
    exact = differentiate(copy.deepcopy(network).double(), x)[1]
    errors = []
    for each in plain_and_lean(network.to(device)):
        with torch.autocast(device.type, dtype=dtype):
            found = differentiate(each, x.float().to(device))[1]
        errors.append(sum((a.cpu().double() - b).square().sum() for a, b in zip(found, exact, strict=True)).sqrt())
    assert errors[1] <= 2 * errors[0]


@pytest.mark.cuda_only
def test_less_memory_is_kept_and_used(device):
    x = images(1, 5, 256, 256).float().to(device)
    kept, peaks = [], []
    for network in plain_and_lean(define_G(5, 3, 32, "global", 2, 2).to(device)):
        network(x).sum().backward()  # library workspaces
        network.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = network(x)
        kept.append(torch.cuda.memory_allocated() - before)
        y.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert kept[1] < 0.6 * kept[0]
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.cuda_only
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_step_runs_under_deterministic_algorithms_and_is_reproducible(norm, device, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    network = lean(define_G(5, 3, 8, "global", 2, 2, norm=norm)).to(device)
    x = images(1, 5, 64, 64).float().to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
        second = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.cuda_only
def test_nothing_is_copied_to_the_host(device):
    network = lean(define_D(5, 8, 2, num_D=2, getIntermFeat=True)).to(device)
    x = images(1, 5, 64, 64).float().to(device)

    def run():
        sum(f.square().sum() for scale in network(x) for f in scale).backward()

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda_only
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_cuda_graphs_replay_with_new_values(norm, device):
    network = lean(define_G(5, 3, 8, "global", 2, 1, norm=norm)).to(device)
    x = images(1, 5, 64, 64).float().to(device)

    def run():
        return torch.autograd.grad(network(x).square().sum(), list(network.parameters()))

    graph, captured = capture(run)
    for scale in (1.0, -0.5):
        x.mul_(scale)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [g.clone() for g in captured]
        assert error(replayed, run()) < 1e-5
