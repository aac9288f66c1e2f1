"""Values and gradients of lean networks, compared with the plain ones in float64."""

import copy

import pytest
import torch

from pix2pixhd.models import define_D, define_E, define_G
from pix2pixhd.nn import lean

from .helpers import ACTIVATIONS, NORMS, PADS, chain, differentiate, error, images, plain_and_lean, randomised

SIZES = [(1, 16, 16), (2, 13, 9), (3, 8, 17)]
NETWORKS = {
    "global generator": lambda norm: (define_G(5, 3, 4, "global", 2, 2, norm=norm), (5, 20, 32)),
    "local enhancer": lambda norm: (define_G(5, 3, 2, "local", 1, 1, 1, 1, norm=norm), (5, 16, 24)),
    "discriminator": lambda norm: (define_D(5, 4, 3, norm, num_D=2, getIntermFeat=True), (5, 33, 40)),
    "discriminator without features": lambda norm: (define_D(5, 4, 3, norm, use_sigmoid=True, num_D=2), (5, 33, 40)),
    "encoder": lambda norm: (define_E(3, 3, 4, 2, norm), (3, 16, 32)),
}


def network_and_inputs(name, norm, n):
    network, size = NETWORKS[name](norm)
    inputs = [images(n, *size)]
    if name == "encoder":
        inputs.append(torch.randint(0, 5, (n, *size[1:]), generator=torch.Generator().manual_seed(0)))
    return randomised(network).double(), inputs


def assert_equal_in_float64(network, *inputs):
    plain, ours = plain_and_lean(network)
    (expected, wanted), (found, grads) = differentiate(plain, *inputs), differentiate(ours, *inputs)
    assert error(found, expected) < 1e-12
    assert error(grads, wanted) < 1e-12
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_chains_have_the_gradients_of_plain_layers(norm, activation, pad):
    network = chain(norm, activation, pad).double()
    for n, height, width in SIZES:
        assert_equal_in_float64(network, images(n, 3, height, width))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_gradients_of_the_plain_ones(name, norm, n):
    network, inputs = network_and_inputs(name, norm, n)
    assert_equal_in_float64(network, *inputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_gradients_are_as_accurate_as_the_plain_ones(name, norm, memory_format):
    network, (x, *rest) = network_and_inputs(name, norm, 2)
    network.float().to(memory_format=memory_format)
    exact = differentiate(copy.deepcopy(network).double(), x.float().double(), *rest)
    x = x.float().contiguous(memory_format=memory_format)
    plain, ours = (differentiate(each, x, *rest) for each in plain_and_lean(network))
    for k in range(2):
        assert rms(ours[k], exact[k]) <= max(1e-6, 2 * rms(plain[k], exact[k]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_gradients_have_at_most_twice_the_error(name, norm, autocast, dtype):
    """Medians over five networks: a single ReLU that changes its sign dominates the error of so few pixels."""
    errors = []
    for seed in range(5):
        network, (x, *rest) = network_and_inputs(name, norm, 1)
        randomised(network, seed).to(dtype)
        exact = differentiate(copy.deepcopy(network).double(), x.to(dtype).double(), *rest)
        x = x.to(dtype)
        if autocast:
            network, x = network.float(), x.float()
        for each in plain_and_lean(network):
            with torch.autocast("cpu", dtype=dtype, enabled=autocast):
                found = differentiate(each, x, *rest)
            errors.append([rms(a, b) for a, b in zip(found, exact, strict=True)])
    plain, ours = (torch.tensor(errors[k::2]).median(0).values for k in range(2))
    assert (ours <= 2 * plain).all()


def rms(found, expected):
    """Root-mean-square error: the largest error of few elements is subject to chance."""
    squares = sum((a.double() - b).square().sum() for a, b in zip(found, expected, strict=True))
    return (squares / sum(b.square().sum() for b in expected)).sqrt().item()


@pytest.mark.parametrize("norm", ["batch", "batch without parameters", "instance affine"])
def test_evaluation_mode_has_the_gradients_of_plain_layers(norm):
    network = chain(norm).double()
    with torch.no_grad():
        for k in range(3):
            network(images(2, 3, 16, 16, seed=k) * 2 + 1)  # running statistics
    assert_equal_in_float64(network.eval(), images(2, 3, 13, 9))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics_are_those_of_batch_norm(momentum):
    network = chain("batch").double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = momentum
    plain, ours = plain_and_lean(network)
    for k in range(3):
        x = images(2, 3, 16, 12, seed=k) + k
        plain(x)
        ours(x)
    assert dict(ours.named_buffers())["2.num_batches_tracked"] == 3
    for (name, a), (_, b) in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_batch_norm_in_evaluation_keeps_its_statistics_until_the_backward():
    """Training the same network before the backward modifies the buffers in place."""
    network = lean(chain("batch").double()).eval()
    x = images(2, 3, 16, 16)
    expected = torch.autograd.grad(network(x).sum(), list(network.parameters()))
    y = network(x)
    network.train()(x)
    for a, b in zip(torch.autograd.grad(y.sum(), list(network.parameters())), expected, strict=True):
        assert torch.equal(a, b)


def test_upstream_gradients_may_have_any_strides():
    plain, ours = plain_and_lean(chain("instance", "leaky", "none").double())
    x = images(2, 3, 16, 16)
    results = []
    for network in (plain, ours):
        y = network(x)
        upstream = images(2, *y.shape[2:], 6).permute(0, 3, 1, 2)
        results.append(
            torch.autograd.grad(y, list(network.parameters()), upstream, retain_graph=True)
            + torch.autograd.grad(y, list(network.parameters()), torch.ones(1, dtype=torch.float64).expand(y.shape))
        )
    assert error(results[1], results[0]) < 1e-12
