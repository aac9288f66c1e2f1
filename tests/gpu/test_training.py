"""Networks and optimizer on the GPU: memory formats, instance features, Adam, and no copies to the host."""

import copy

import pytest
import torch

from pix2pixhd.data import encode_input
from pix2pixhd.models import define_G, instance_mean
from pix2pixhd.training.optimizer import Adam


def gradients(network, x):
    weight = torch.linspace(-1, 1, 3 * x.shape[2] * x.shape[3], dtype=x.dtype, device=x.device)
    loss = (network(x) * weight.view(1, 3, *x.shape[2:])).sum()
    return torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("n", [1, 2])
def test_gradients_do_not_depend_on_the_memory_format(n, device):
    torch.manual_seed(0)
    network = define_G(5, 3, 4, "global", 2, 1).double()
    x = torch.randn(n, 5, 16, 24, dtype=torch.float64)
    expected = gradients(network, x)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        other = copy.deepcopy(network).to(device, memory_format=memory_format)
        for found, wanted in zip(gradients(other, x.to(device)), expected, strict=True):
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-8, atol=1e-11)


def test_instance_features_match_the_cpu(device):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 33, 48, dtype=torch.float64, generator=generator)
    ids = torch.randint(40000, 40020, (2, 33, 48), generator=generator, dtype=torch.int32)
    found = instance_mean(features.to(device), ids.to(device)).cpu()
    torch.testing.assert_close(found, instance_mean(features, ids), rtol=1e-12, atol=1e-12)


@pytest.mark.cuda_only
def test_encoding_copies_nothing_to_the_host(device):
    ids = torch.randint(0, 35, (1, 64, 64), dtype=torch.int32, device=device)
    features = torch.randn(1, 3, 64, 64, device=device, requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        encode_input(ids, ids, 35)
        instance_mean(features, ids).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_adam_matches_torch(memory_format, device):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 8, 3).to(device, memory_format=memory_format)
    other = copy.deepcopy(network)
    ours, theirs = Adam(network.parameters(), lr=1e-2, fused=True), torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(3):
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone(memory_format=torch.preserve_format)
        ours.step()
        theirs.step()
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
