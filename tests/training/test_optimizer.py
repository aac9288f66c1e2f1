"""Adam for channels-last weights has the results and the state of PyTorch's Adam in any memory format."""

import copy

import pytest
import torch

from pix2pixhd.training.optimizer import Adam


def make(channels_last, seed=0):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1), torch.nn.ConvTranspose2d(4, 6, 3))
    return network.to(memory_format=torch.channels_last) if channels_last else network


def steps(network, optimizer, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


def states(optimizer):
    return [
        {name: value.clone() for name, value in state.items()} for state in optimizer.state_dict()["state"].values()
    ]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_equals_that_of_torch_adam(channels_last, fused, amsgrad):
    options = {"lr": 1e-2, "betas": (0.5, 0.999), "fused": fused, "amsgrad": amsgrad}
    network, other = make(channels_last), make(channels_last)
    ours, theirs = Adam(network.parameters(), **options), torch.optim.Adam(other.parameters(), **options)
    for _ in range(3):
        ours.zero_grad()
        network(torch.ones(2, 3, 8, 8)).square().sum().backward()
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            b.grad = a.grad.clone(memory_format=torch.preserve_format)
        ours.step()
        theirs.step()
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
            with torch.no_grad():
                b.copy_(a)
    for a, b in zip(states(ours), states(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("first", [False, True])
def test_a_state_loads_into_another_memory_format(first):
    network = make(first)
    optimizer = Adam(network.parameters(), lr=1e-2, fused=True)
    steps(network, optimizer, 2)
    other = make(not first, seed=1)
    other.load_state_dict(network.state_dict())
    moved = Adam(other.parameters(), lr=1e-2, fused=True)
    moved.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for param in other.parameters():
        assert moved.state[param]["exp_avg"].stride() == param.stride()
    steps(network, optimizer, 2, seed=3)
    steps(other, moved, 2, seed=3)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_in_another_memory_format_give_the_same_step():
    network, other = make(True), make(True)
    ours, theirs = Adam(network.parameters(), lr=1e-2, fused=True), torch.optim.Adam(other.parameters(), lr=1e-2)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        a.grad = torch.arange(a.numel(), dtype=torch.float32).view(a.shape) - a.numel() / 2
        b.grad = a.grad.clone()
    ours.step()
    theirs.step()
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
