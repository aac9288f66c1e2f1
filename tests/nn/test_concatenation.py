"""The discriminator's input of condition and image, whose first convolution saves the parts."""

import copy

import pytest
import torch
from torch import nn

import pix2pixhd
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_E, define_G
from pix2pixhd.nn import lean
from pix2pixhd.nn.concatenation import concatenate
from pix2pixhd.training.image_pool import ImagePool
from pix2pixhd.training.step import compute_gradients

from .helpers import error, flat, images, kept_bytes, plain_and_lean, randomised

DISCRIMINATORS = {
    "features": lambda: define_D(8, 4, 2, num_D=2, getIntermFeat=True),
    "predictions": lambda: define_D(8, 4, 2, num_D=3),
    "batch norm": lambda: define_D(8, 4, 2, "batch", num_D=2, getIntermFeat=True),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_gradients_are_those_of_a_plain_concatenation(name):
    condition, results = images(2, 5, 24, 33), []
    for network, join in zip(
        plain_and_lean(randomised(DISCRIMINATORS[name]()).double()),
        (lambda a, b: torch.cat([a, b], dim=1), concatenate),
        strict=True,
    ):
        image = images(2, 3, 24, 33, seed=2).requires_grad_()
        loss = sum(x.sin().sum() for x in flat(network(join(condition, image))))
        # As in the training step: the image's gradient first, then those of the weights.
        first = torch.autograd.grad(loss, image, retain_graph=True)
        second = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        results.append([*first, *second, *torch.autograd.grad(loss, [image, *network.parameters()])])
    assert error(results[1], results[0]) < 1e-12


def test_second_derivatives_are_those_of_a_plain_concatenation():
    condition, results = images(1, 5, 16, 16), []
    for network in plain_and_lean(randomised(DISCRIMINATORS["features"]()).double()):
        image = images(1, 3, 16, 16, seed=2).requires_grad_()
        scores = sum(scale[-1].sum() for scale in network(concatenate(condition, image)))
        (gradient,) = torch.autograd.grad(scores, image, create_graph=True)
        gradient.square().sum().backward()
        results.append([image.grad, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert error(results[1], results[0]) < 1e-11


def test_the_concatenation_is_not_kept():
    network = lean(nn.Sequential(nn.Conv2d(40, 4, 3, stride=2)))
    condition, image = torch.randn(1, 37, 64, 64), torch.randn(1, 3, 64, 64, requires_grad=True)
    assert kept_bytes(lambda: network(concatenate(condition, image))) == network(concatenate(condition, image)).nbytes


@pytest.mark.parametrize("modified", ["condition", "image"])
def test_parts_that_were_modified_since_are_not_used(modified):
    results = []
    for network in plain_and_lean(nn.Sequential(nn.Conv2d(5, 4, 3)).double()):
        parts = {"condition": images(1, 2, 8, 8), "image": images(1, 3, 8, 8)}
        x = concatenate(*parts.values())
        parts[modified].mul_(3)
        results.append(torch.autograd.grad(network(x).square().sum(), list(network.parameters())))
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("change", ["in place", "another tensor", "condition with gradient", "reference", "groups"])
def test_other_inputs_are_convolved_as_they_are(change):
    conv = nn.Conv2d(6, 4, 3, groups=2 if change == "groups" else 1)
    plain, ours = plain_and_lean(nn.Sequential(conv).double())
    results = []
    for network in (plain, ours):
        condition = images(1, 3, 8, 8).requires_grad_(change == "condition with gradient")
        image = images(1, 3, 8, 8, seed=2).requires_grad_()
        x = concatenate(condition, image)
        if change == "in place":
            x.mul_(2)
        elif change == "another tensor":
            x = x * 2
        with pix2pixhd.backend("reference" if change == "reference" else "auto"):
            y = network(x)
        leaves = [leaf for leaf in (condition, image) if leaf.requires_grad]
        results.append(torch.autograd.grad(y.sin().sum(), [*leaves, *network.parameters()]))
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("pool_size", [0, 2])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_a_lean_step_has_the_gradients_of_a_plain_one(kind, pool_size, norm):
    torch.manual_seed(0)
    netG = randomised(define_G(5, 3, 4, kind, 1, 1, 1, 1, norm)).double()
    netD = randomised(define_D(7, 4, 2, norm, num_D=2, getIntermFeat=True)).double()
    netE = randomised(define_E(3, 1, 4, 1, norm)).double()
    ids = torch.randint(0, 4, (1, 32, 32))
    results = []
    for make in (lambda network: network, lean):
        nets = [make(copy.deepcopy(network)) for network in (netG, netD, netE)]
        pool, terms = ImagePool(pool_size, "seed"), []
        losses = GeneratorLoss(lambda_vgg=0.0), DiscriminatorLoss()
        for k in range(3):
            condition, real = images(1, 4, 32, 32, seed=k), images(1, 3, 32, 32, seed=k + 5)
            features = nets[2](real, ids)
            found = compute_gradients(*nets[:2], *losses, condition, real, pool=pool, features=features)
            terms += found.values()
        results.append([*terms, *(p.grad for network in nets for p in network.parameters())])
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.slow
def test_twenty_lean_steps_train_to_the_plain_weights():
    results = []
    for make in (lambda network: network, lean):
        torch.manual_seed(0)
        netG, netD = define_G(4, 3, 4, "global", 1, 1).double(), define_D(7, 4, 2, getIntermFeat=True).double()
        nets = [make(netG), make(netD)]
        optimizers = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in nets]
        for k in range(20):
            condition, real = images(1, 4, 32, 32, seed=k), images(1, 3, 32, 32, seed=k + 50).tanh()
            for optimizer in optimizers:
                optimizer.zero_grad()
            compute_gradients(*nets, GeneratorLoss(lambda_vgg=0.0), DiscriminatorLoss(), condition, real)
            for optimizer in optimizers:
                optimizer.step()
        # Adam normalises a gradient that is zero but for rounding, that of a bias before a norm.
        with torch.no_grad():
            x = images(1, 4, 32, 32, seed=99)
            results.append([netG(x), *netD(torch.cat([x, netG(x)], dim=1))[0]])
    assert error(results[1], results[0]) < 1e-8
