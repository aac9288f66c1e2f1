"""multi_l1_loss compared with float64, for all dtypes, layouts, sizes and special values."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pix2pixhd
from pix2pixhd.functional import multi_l1_loss
from pix2pixhd.ops.multi_l1 import Layouts, sign_words

from .oracle import DTYPES, LAYOUTS, check_l1, in_layout, tensor_pairs

OPERATOR = torch.ops.pix2pixhd.multi_l1.default


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(tensor_pairs(), min_size=1, max_size=5), st.data())
def test_value_and_gradient_match_float64(pairs, data):
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.5, -2.0, 1 / 32]), min_size=len(pairs), max_size=len(pairs)))
    check_l1(pairs, weights)


@pytest.mark.parametrize("numel", [1, 31, 32, 33, 255, 256, 257, 32767, 32768, 32769, 65536 + 5, 200_003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_the_borders_of_words_tiles_and_chunks_match_float64(numel, dtype):
    generator = torch.Generator().manual_seed(numel)
    x, y = (torch.randn(numel, generator=generator).to(dtype) for _ in range(2))
    y[::3] = x[::3]
    check_l1([(x, y), (x[: numel // 2 + 1], y[: numel // 2 + 1])], [1.0, 0.25])


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pair_of_layouts_matches_float64(first, second, dtype):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 3, 8, 7, generator=generator).to(dtype) for _ in range(2))
    pair = in_layout(x, first), in_layout(y, second)
    check_l1([pair, (x, y)], [1.0, 2.0])
    leaf = pair[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(multi_l1_loss([leaf], [pair[1]]), leaf)
    if first in ("channels_last", "transposed", "reversed"):
        assert gradient.stride() == leaf.stride(), "the gradient of a dense input has its layout"


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 70])
def test_any_number_of_tensors_including_empty_ones_matches_float64(count):
    generator = torch.Generator().manual_seed(count)
    pairs = [tuple(torch.randn(k % 7 + 1, 3, generator=generator) for _ in range(2)) for k in range(count)]
    check_l1(pairs, [1.0 / (k + 1) for k in range(count)])
    inputs = [x.requires_grad_() for x, _ in pairs] + [torch.zeros(0, 3, requires_grad=True)]
    loss = multi_l1_loss(inputs, [y for _, y in pairs] + [torch.zeros(0, 3)])
    assert torch.isnan(loss), "the mean of no elements is NaN"
    gradients = torch.autograd.grad(loss, inputs)
    assert gradients[-1].shape == (0, 3)
    for g, (x, y) in zip(gradients, pairs, strict=False):
        torch.testing.assert_close(g, torch.sign(x.detach() - y) / x.numel())


def test_nan_and_infinities_match_pytorch():
    x = torch.tensor([1.0, float("nan"), float("inf"), float("-inf"), float("inf"), 3.0, 3.0], requires_grad=True)
    y = torch.tensor([0.0, 1.0, 1.0, 1.0, float("inf"), float("nan"), 3.0])
    assert torch.isnan(multi_l1_loss([x], [y]))
    (g,) = torch.autograd.grad(multi_l1_loss([x], [y], [7.0]), x)
    assert g.tolist() == [1.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0]
    for bad in (float("nan"), float("inf")):  # upstream: 0 · NaN and 0 · Inf are NaN, at ties too
        upstream = torch.tensor(bad)
        (ours,) = torch.autograd.grad(multi_l1_loss([x], [y]), x, upstream)
        with pix2pixhd.backend("reference"):
            (theirs,) = torch.autograd.grad(multi_l1_loss([x], [y]), x, upstream)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_two_backward_passes_scale_with_their_upstream_gradients():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 50, generator=generator, requires_grad=True) for _ in range(2))
    loss = multi_l1_loss([x], [y], [0.5])
    first = torch.autograd.grad(loss, [x, y], torch.tensor(3.0), retain_graph=True)
    first[0].mul_(100.0)  # returned gradients may be modified
    second = torch.autograd.grad(-7.0 * loss, [x, y])
    sign = torch.sign(x - y).detach() * 0.5 / 150
    torch.testing.assert_close(first[1], -3.0 * sign)
    torch.testing.assert_close(second[0], -7.0 * sign)
    torch.testing.assert_close(second[1], 7.0 * sign)


def test_a_zero_strided_upstream_gradient_is_supported():
    x = torch.randn(4, 4, requires_grad=True)
    loss = multi_l1_loss([x], [torch.zeros(4, 4)]).expand(5, 3).sum()  # a 0-strided upstream
    loss.backward()
    torch.testing.assert_close(x.grad, 15 * torch.sign(x.detach()) / 16)


def test_a_loss_scale_of_65536_does_not_overflow_in_float16():
    x = torch.randn(1 << 16, dtype=torch.float16, requires_grad=True)
    y = torch.zeros_like(x)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = multi_l1_loss([x], [y])
    assert loss.dtype == torch.float32
    (g,) = torch.autograd.grad(loss * 65536.0, x)
    assert torch.equal(g, torch.sign(x.detach()))


def test_dtypes_under_autocast_and_of_mixed_pairs_match_pytorch():
    x, y = torch.randn(64, dtype=torch.bfloat16, requires_grad=True), torch.randn(64)
    assert multi_l1_loss([x], [x.detach() + 1]).dtype == torch.bfloat16
    assert multi_l1_loss([x], [y]).dtype == torch.float32
    assert multi_l1_loss([x], [y.double()]).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_l1_loss([x], [x.detach() + 1])
        assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, x)[0].dtype == torch.bfloat16


def test_only_tensors_that_require_a_gradient_receive_one():
    a, b, c = torch.randn(5, requires_grad=True), torch.randn(5), torch.randn(5, requires_grad=True)
    multi_l1_loss([a, b], [c.detach(), c]).backward()
    torch.testing.assert_close(a.grad, torch.sign(a - c).detach() / 5)
    torch.testing.assert_close(c.grad, torch.sign(c - b).detach() / 5)
    assert b.grad is None


def test_no_signs_are_packed_when_no_gradient_is_required():
    x, y = torch.randn(1000), torch.randn(1000)
    assert OPERATOR([x], [y], [1.0], [])[1].numel() == 0
    assert not multi_l1_loss([x], [y]).requires_grad
    with torch.no_grad():
        assert not multi_l1_loss([x.requires_grad_()], [y]).requires_grad


def test_two_bits_per_element_are_saved_and_neither_input_nor_target():
    n = 1 << 20
    x, y = torch.randn(n, requires_grad=True), torch.randn(n)
    inner = x * 1.0
    gone = weakref.ref(inner), weakref.ref(y)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        loss = multi_l1_loss([inner], [y])
    assert sum(saved) == 4 * sign_words(n) == n // 4
    del inner, y
    gc.collect()
    assert [r() for r in gone] == [None, None]
    loss.backward()
    assert x.grad.abs().sum() > 0


def test_the_backward_operator_needs_no_strides_of_contiguous_tensors():
    xs = [torch.randn(2, 3, 4), torch.randn(5), torch.randn(())]
    arguments = torch.tensor(2.0), OPERATOR(xs, [-x for x in xs], [1.0] * 3, [0, 1, 2])[1], [1.0] * 3
    full, omitted = Layouts.of(xs, always_strides=True), Layouts.of(xs)
    assert (full.strides, omitted.strides) == ([12, 4, 1, 1], [])
    expected = torch.ops.pix2pixhd.multi_l1_backward(*arguments, *full, [0, 1, 2])
    for x, gradient, other in zip(
        xs, expected, torch.ops.pix2pixhd.multi_l1_backward(*arguments, *omitted, [0, 1, 2]), strict=True
    ):
        torch.testing.assert_close(gradient, 2.0 / x.numel() * x.sign())
        assert torch.equal(other, gradient)
        assert other.stride() == gradient.stride() == x.stride()
    assert Layouts.of([xs[0].mT, xs[1]]).strides == [12, 1, 4, 1]


def test_the_mean_of_ten_million_elements_is_accurate():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10_000_000, generator=generator) * 1e-3 + 1.0
    expected = x.double().mean()
    assert abs(multi_l1_loss([x], [torch.zeros(1).expand_as(x)]).double() - expected) / expected < 1e-7


def test_large_outputs_are_recycled_and_can_be_released():
    x, y = torch.randn(1 << 20, requires_grad=True), torch.randn(1 << 20)

    def step():
        (g,) = torch.autograd.grad(multi_l1_loss([x], [y]), x)
        return g

    torch.ops.pix2pixhd.release_cpu_memory()
    pointer = step().data_ptr()
    held = step()
    assert held.data_ptr() == pointer, "the next gradient reuses the freed block"
    assert step().data_ptr() != pointer, "a block in use is not reused"
    torch.testing.assert_close(held, torch.sign(x.detach() - y) / x.numel())
    assert torch.ops.pix2pixhd.release_cpu_memory() >= 4 << 20
    assert torch.ops.pix2pixhd.release_cpu_memory() == 0
    torch.testing.assert_close(held, torch.sign(x.detach() - y) / x.numel())


@pytest.mark.slow
def test_more_than_two_to_the_31_elements_are_summed():
    n = 2**31 + 33
    x = torch.from_numpy(np.zeros(n, np.int16)).view(torch.bfloat16)  # NumPy's zeros take no memory until written
    x[-1] = 3.0
    x[2**31] = -1.0
    loss, signs = OPERATOR([x], [x], [float(n)], [0])
    assert loss == 0
    assert signs.numel() == sign_words(n)
    value = torch.ops.pix2pixhd.multi_pointwise.default([x], [0.0], [float(n)], 0)
    assert value == 10.0
