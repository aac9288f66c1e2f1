"""lsgan_loss, hinge_loss, mean_loss and logistic_loss compared with float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pix2pixhd
from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss

from .oracle import DTYPES, EPS, LAYOUTS, in_layout, tensor_pairs

CALLS = {
    "lsgan": lambda xs, cs, ws: lsgan_loss(xs, cs, ws),
    "hinge": lambda xs, cs, ws: hinge_loss(xs, [c > 0 for c in cs], ws),
    "mean": lambda xs, cs, ws: mean_loss(xs, ws),
    "logistic": lambda xs, cs, ws: logistic_loss(xs, cs, ws),
}
FORMULAS = {
    "lsgan": lambda x, c: (x - c) ** 2,
    "hinge": lambda x, c: torch.relu(1 - c * x),
    "mean": lambda x, c: x,
    "logistic": lambda x, c: F.binary_cross_entropy_with_logits(x, torch.full_like(x, c), reduction="none"),
}


def constants_for(kind, values):
    return [1.0 if v > 0.5 else -1.0 for v in values] if kind == "hinge" else values


def check(kind, tensors, constants, weights):
    xs = [x.detach().requires_grad_() for x in tensors]
    loss = CALLS[kind](xs, constants, weights)
    exact = [x.detach().double().requires_grad_() for x in xs]
    # A label has the dtype of its tensor, as from torch.full_like.
    labels = [torch.tensor(c, dtype=x.dtype).item() for x, c in zip(xs, constants, strict=True)]
    terms = [w * FORMULAS[kind](x, c).mean() for x, c, w in zip(exact, labels, weights, strict=True)]
    expected = torch.stack(terms).sum()
    # Each tensor is computed in float32, or in float64 if it is float64.
    eps = 4 * max(EPS[loss.dtype], EPS[torch.float64 if all(x.dtype == torch.float64 for x in xs) else torch.float32])
    scale = sum(abs(w) for w in weights)
    torch.testing.assert_close(
        loss.detach().double(), expected.detach().to(loss.dtype).double(), rtol=eps, atol=eps * scale, equal_nan=True
    )
    gradients = torch.autograd.grad(2.0 * loss, xs)
    for g, x, b in zip(gradients, xs, torch.autograd.grad(2.0 * expected, exact), strict=True):
        assert g.dtype == x.dtype
        assert g.shape == x.shape
        e = 8 * EPS[x.dtype]
        tiny = 4 * torch.finfo(x.dtype).tiny + e * scale / max(x.numel(), 1)
        torch.testing.assert_close(g.double(), b.to(x.dtype).double(), rtol=e, atol=tiny, equal_nan=True)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(CALLS)), st.lists(tensor_pairs(), min_size=1, max_size=4), st.data())
def test_value_and_gradient_match_float64(kind, pairs, data):
    values = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.9, -1.0]), min_size=len(pairs), max_size=len(pairs)))
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.5, -2.0]), min_size=len(pairs), max_size=len(pairs)))
    # Replaces large special values, because a mean of their squares overflows in float16.
    tensors = [torch.where(x.abs() > 1000, torch.ones_like(x), x) for x, _ in pairs]
    tensors = [in_layout(x, data.draw(st.sampled_from(LAYOUTS))) for x in tensors]
    check(kind, tensors, constants_for(kind, values), weights)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 15, 16, 17, 32768, 32769, 140_001])
def test_sizes_around_the_borders_of_vectors_and_chunks_match_float64(kind, dtype, numel):
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(numel, generator=generator).to(dtype)
    check(kind, [x, x[: numel // 2 + 1]], [1.0, -1.0], [0.5, 0.25])


@pytest.mark.parametrize("kind", CALLS)
def test_nan_infinities_and_the_edge_of_the_hinge_match_pytorch(kind):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0, -1.0, 0.0], requires_grad=True)
    for real in (True, False):
        results = []
        for name in ("fused", "reference"):
            with pix2pixhd.backend(name):
                loss = CALLS[kind]([x], [1.0 if real else -1.0], [1.0])
                results.append((loss, torch.autograd.grad(loss, x, torch.tensor(3.0))[0]))
        torch.testing.assert_close(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize("kind", CALLS)
def test_empty_tensors_give_a_nan_loss_and_an_empty_gradient(kind):
    x = torch.zeros(0, 3, requires_grad=True)
    loss = CALLS[kind]([torch.ones(2), x], [1.0, 1.0], [1.0, 1.0])
    assert torch.isnan(loss)
    assert torch.autograd.grad(loss, x)[0].shape == (0, 3)


def test_a_single_label_equals_one_label_per_tensor():
    x = torch.randn(5)
    assert torch.equal(lsgan_loss([x, x], 1.0), lsgan_loss([x, x], [1.0, 1.0]))
    assert torch.equal(hinge_loss([x, x], True), hinge_loss([x, x], [True, True]))
    torch.testing.assert_close(lsgan_loss([x, x], [1.0, 0.0]), ((x - 1) ** 2).mean() + (x**2).mean())


def test_two_backward_passes_scale_with_their_upstream_gradients():
    x = torch.randn(7, requires_grad=True)
    loss = lsgan_loss([x], 1.0)
    for upstream in (1.0, -4.0):
        (g,) = torch.autograd.grad(loss, x, torch.tensor(upstream), retain_graph=True)
        torch.testing.assert_close(g, upstream * 2 / 7 * (x.detach() - 1))
        g.zero_()


def test_dtypes_match_pytorch_inside_and_outside_autocast():
    x = torch.randn(8, dtype=torch.float16, requires_grad=True)
    assert lsgan_loss([x], 1.0).dtype == torch.float16
    assert lsgan_loss([x, x.float()], 1.0).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        loss = lsgan_loss([x], 1.0)
        assert loss.dtype == torch.float32
    (g,) = torch.autograd.grad(65536.0 * loss, x)
    torch.testing.assert_close(g.double(), (65536 * 2 / 8 * (x.detach().double() - 1)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["lsgan", "logistic"])
@pytest.mark.parametrize("weight", [1e-42, 1e-44, 1e40, 1e44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_is_accurate_where_its_coefficient_is_beyond_float32(kind, weight, dtype):
    if weight < 1.0:  # small coefficients and large slopes, or the reverse
        x, label = torch.tensor([3e20, -1e15, -7e18, 2e12, 3.0], dtype=dtype), 1e30
    else:
        x, label = torch.full((5,), 0.0 if kind == "lsgan" else -50.0, dtype=dtype), 1e-20
    leaf, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(CALLS[kind]([leaf], [label], [weight]), leaf)
    expected = weight * FORMULAS[kind](exact, torch.tensor(label, dtype=dtype).item()).mean()
    (expected,) = torch.autograd.grad(expected, exact)
    assert found.any()
    torch.testing.assert_close(found, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-44)
