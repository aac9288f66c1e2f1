"""The comparison with float64 accepts what rounding decides, and never a wrong result."""

import pytest
import torch

from pix2pixhd.bench.agreement import Agreement, agreements
from pix2pixhd.bench.case import Setup, TensorCase
from pix2pixhd.bench.cases import make_case
from pix2pixhd.ops.backend import is_reference

NOISE = 1e-7


class Results:
    """Results of both implementations: a gradient with random errors, of which some come from signs.

    Args:
        factor: Of the fused implementation's gradient; 1 is right.
        probability: That a sign of an implementation differs from float64.
        flip: The relative error that this causes.
        first: Whether the fused implementation has such an error for the first inputs, and plain PyTorch has none.
        noise: The relative error of everything else.
    """

    def __init__(self, factor=1.0, probability=0.0, flip=4e-2, first=False, noise=NOISE, seed=0):
        self.factor, self.probability, self.flip, self.first, self.noise = factor, probability, flip, first, noise
        self.generator = torch.Generator().manual_seed(seed)
        self.draws = 0
        self.exact = self.redraw(0)

    def random(self):
        x = torch.randn(1000, generator=self.generator, dtype=torch.float64)
        return x / x.norm()

    def redraw(self, draw):
        self.draws += 1
        self.gradient = self.random()
        return torch.ones((), dtype=torch.float64), self.gradient

    def of(self, name):
        fused = name == "fused"
        flips = torch.rand((), generator=self.generator) < self.probability
        if self.first and self.draws == 1:
            flips = fused
        gradient = self.gradient * (self.factor if fused else 1.0)
        gradient = gradient + self.noise * self.random() + (self.flip if flips else 0.0) * self.random()
        return torch.ones(()), gradient.float()

    def verdict(self, precision="float32"):
        return agreements(self.exact, self.of, ["fused", "plain"], self.redraw, precision)["fused"]


def test_one_sign_that_depends_on_rounding_is_no_disagreement():
    results = Results(first=True)
    assert results.verdict().agrees
    assert results.draws > 1


def test_signs_of_both_implementations_are_no_disagreement():
    found = [Results(probability=0.3, seed=seed).verdict() for seed in range(100)]
    assert sum(not result.agrees for result in found) <= 1


@pytest.mark.parametrize("noise", [NOISE, 2e-3, 2e-2])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3])
def test_a_gradient_that_is_wrong_by_one_per_cent_never_agrees_in_float32(noise, probability):
    found = [Results(1.01, probability, noise=noise, seed=seed).verdict() for seed in range(20)]
    assert not any(result.agrees for result in found)
    if noise < 1e-2 and probability == 0.0:
        assert not any(result.unclear for result in found)


def test_a_small_error_of_a_loss_without_signs_is_found():
    assert not Results(1 + 2e-6).verdict().agrees
    assert Results(1 + 2e-7).verdict().agrees


def test_in_half_precision_the_error_may_be_twice_that_of_plain_pytorch():
    assert Results(1.05, noise=5e-2).verdict("bfloat16").agrees
    assert not Results(1.3, noise=5e-2).verdict("bfloat16").agrees


@pytest.mark.parametrize(("units", "agrees"), [(1, True), (3, False)])
def test_a_value_may_be_rounded_to_its_dtype_in_another_way(units, agrees):
    exact = (torch.ones((), dtype=torch.float64), torch.ones(100, dtype=torch.float64))
    value = torch.tensor(1 + units * torch.finfo(torch.bfloat16).eps, dtype=torch.bfloat16)

    def result_of(name):
        return (value if name == "fused" else torch.ones((), dtype=torch.bfloat16)), torch.ones(100)

    found = agreements(exact, result_of, ["fused", "plain"], lambda draw: exact, "bfloat16")
    assert found["fused"].agrees == agrees


def test_an_infinite_error_does_not_agree():
    exact = (torch.ones((), dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    nan = (torch.ones(()), torch.full((3,), torch.nan))
    found = agreements(exact, lambda name: nan if name == "fused" else exact, ["fused"], lambda draw: exact, "float32")
    assert not found["fused"].agrees
    assert not found["fused"].unclear


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is wrong by a factor in the fused implementation."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad if is_reference() else grad * ctx.factor, None


def test_other_inputs_are_drawn_in_place():
    original = torch.rand(50)
    inputs = original.clone().requires_grad_()

    def loss(fake, real):
        return Scaled.apply(fake[0], 1.02 if torch.equal(fake[0], original) else 1.0).square().mean()

    case = TensorCase(lambda _: loss, lambda: [([inputs], [])])
    assert case.agreement(["fused"], case.exact())["fused"].agrees
    assert not torch.equal(inputs, original)
    assert torch.equal(inputs.detach().sort().values, original.sort().values)


@pytest.mark.filterwarnings("ignore:.*random weights")
@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.01, False)])
def test_a_wrong_gradient_of_a_network_is_found_at_a_tiny_size(factor, agrees):
    case = make_case("VGGLoss", Setup(16, 16))
    right = case.loss_of
    case.loss_of = lambda network: lambda fake, real: right(network)([Scaled.apply(fake[0], factor)], real)
    found = case.agreement(["fused", "plain"], case.exact())["fused"]
    assert found.agrees == agrees
    assert not found.unclear


def test_unclear_is_what_plain_pytorchs_error_would_hide():
    assert Agreement(1e-2, 2e-2, largest=8e-3).unclear
    assert not Agreement(1e-2, 1e-3, largest=8e-3).unclear
    assert not Agreement(5e-3, 2e-2, largest=8e-3).unclear
