"""logistic_loss compared with F.binary_cross_entropy_with_logits: large logits, accuracy, determinism."""

import math

import pytest
import torch
import torch.nn.functional as F

import pix2pixhd
from pix2pixhd.functional import logistic_loss

from .oracle import DTYPES, INSTRUCTION_SETS

LABELS = [0.0, 1.0, 0.9, 0.1, 2.0, -1.0]
LARGE_LOGITS = [1e4, 104.0, 103.9, 88.8, 87.3, 17.0, 0.5, 1e-30, 0.0, float("inf")]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, select_instruction_set):
    select_instruction_set(request.param)
    return request.param


def plain(x, label):
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, label))


def fused(x, label):
    with pix2pixhd.backend("fused"):
        return logistic_loss([x], label)


def value_and_gradient(loss, x, label):
    leaf = x.detach().requires_grad_()
    value = loss(leaf, label)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def ulps(actual, expected):
    """The largest error in units in the last place of ``actual``'s dtype; ``expected`` is float64."""
    rounded = expected.abs().to(actual.dtype)
    spacing = torch.nextafter(rounded, torch.tensor(math.inf, dtype=actual.dtype)).double() - rounded.double()
    return ((actual.double() - expected).abs() / spacing).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", LABELS)
def test_large_infinite_and_nan_logits_match_pytorch(instruction_set, dtype, label):
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    tiny = torch.finfo(dtype).tiny
    for number in [float("nan"), *LARGE_LOGITS, *(-x for x in LARGE_LOGITS)]:
        x = torch.full((3,), number, dtype=dtype)
        exact = value_and_gradient(plain, x.double(), torch.tensor(label, dtype=dtype).item())
        found = zip(value_and_gradient(fused, x, label), value_and_gradient(plain, x, label), exact, strict=True)
        for ours, theirs, expected in found:
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.isinf(), theirs.isinf())
            torch.testing.assert_close(ours, expected.to(dtype), rtol=tolerance, atol=tolerance + tiny, equal_nan=True)


def test_float32_is_accurate_to_a_few_ulps(instruction_set):
    x = torch.cat([torch.linspace(-104, 104, 1499), torch.linspace(-1.5, 1.5, 299)])
    exact = x.double()
    values = torch.stack([fused(x[k : k + 1], 0.0) for k in range(x.numel())])
    assert ulps(values, F.softplus(exact, threshold=1000.0)) <= 1.5
    for label, expected in [(0.0, torch.sigmoid(exact)), (1.0, -torch.sigmoid(-exact))]:
        _, gradient = value_and_gradient(lambda a, t: fused(a, t) * a.numel(), x, label)
        assert ulps(gradient, expected) <= 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label", LABELS)
def test_half_precision_error_is_at_most_twice_that_of_pytorch(dtype, label):
    x = (torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 6).to(dtype)
    # The label is rounded to the dtype of the predictions, as torch.full_like does.
    exact_value, exact_gradient = value_and_gradient(plain, x.double(), torch.tensor(label, dtype=dtype).item())
    value, gradient = value_and_gradient(lambda a, t: fused(a, t) * 256.0, x, label)
    plain_value, plain_gradient = value_and_gradient(lambda a, t: plain(a, t) * 256.0, x, label)
    for ours, theirs, exact in [
        (value, plain_value, exact_value * 256.0),
        (gradient, plain_gradient, exact_gradient * 256.0),
    ]:
        error, allowed = (ours.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
        rounding = torch.finfo(dtype).eps / 2 * exact.abs().max()
        assert error <= 2 * max(allowed, rounding)


def test_a_label_is_rounded_as_by_full_like(instruction_set):
    xs = [torch.randn(300).to(dtype) for dtype in DTYPES]
    expected = sum(plain(x.double(), torch.tensor(0.9, dtype=x.dtype).item()) for x in xs)
    torch.testing.assert_close(logistic_loss(xs, 0.9), expected, rtol=1e-7, atol=0)


def test_dtypes_match_pytorch_inside_and_outside_autocast():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(8, dtype=dtype, requires_grad=True)
        assert logistic_loss([x], 1.0).dtype == plain(x, 1.0).dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = logistic_loss([x], 1.0)
            assert loss.dtype == plain(x, 1.0).dtype == torch.float32
        (gradient,) = torch.autograd.grad(65536.0 * loss, x)  # a loss scale alone does not overflow
        expected = 65536.0 / 8 * (torch.sigmoid(x.detach().double()) - 1)
        torch.testing.assert_close(gradient.double(), expected, rtol=8e-3, atol=0)


def test_results_are_bitwise_equal_for_all_thread_counts_and_instruction_sets(select_instruction_set):
    x = torch.randn(140_001, generator=torch.Generator().manual_seed(0)) * 8
    threads, results = torch.get_num_threads(), []
    try:
        for name in INSTRUCTION_SETS:
            select_instruction_set(name)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(value_and_gradient(fused, x, 0.9))
    finally:
        torch.set_num_threads(threads)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_the_second_derivative_is_the_derivative_of_the_sigmoid():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(logistic_loss([x], 0.9) * x.numel(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    s = torch.sigmoid(x.detach())
    torch.testing.assert_close(second, s * (1 - s))
