"""The oracle: each loss in float64, test inputs of many kinds, and comparisons."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from pix2pixhd.functional import multi_l1_loss

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INSTRUCTION_SETS = torch.ops.pix2pixhd.cpu_instruction_sets().split(";")[0].split(",")
# Relative error of a gradient (a single rounding) and of a loss of each dtype.
EPS = {torch.float64: 1e-12, torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def l1(inputs, targets, weights) -> Tensor:
    terms = [w * (x.double() - y.double()).abs().mean() for x, y, w in zip(inputs, targets, weights, strict=True)]
    return torch.stack(terms).sum()


def l1_gradients(inputs, targets, weights, upstream=1.0) -> list[Tensor]:
    """``upstream · weight / numel · sign``, with the sign of the difference in the dtype of the arithmetic."""
    gradients = []
    for x, y, w in zip(inputs, targets, weights, strict=True):
        dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        difference = x.detach().to(dtype) - y.detach().to(dtype)
        sign = (difference > 0).double() - (difference < 0).double()
        gradients.append(sign * (upstream * w / max(x.numel(), 1)))
    return gradients


LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced", "expanded", "reversed"]


def in_layout(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout: dense permutations, odd offsets, 0-strides."""
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "reversed" and values.dim() >= 2:
        order = list(range(values.dim()))[::-1]
        return values.permute(order).contiguous().permute(order)
    if layout == "sliced":  # an odd offset, so that nothing is aligned
        buffer = torch.zeros(values.numel() + 3, dtype=values.dtype)
        buffer[1 : 1 + values.numel()] = values.reshape(-1)
        return buffer[1 : 1 + values.numel()].view(values.shape)
    if layout == "expanded" and values.dim() >= 1 and values.shape[0] > 0:
        return values[:1].expand_as(values)
    return values.contiguous()


SPECIAL = [0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-30, 65504.0]

shapes = st.one_of(
    st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple),
    st.sampled_from([(1,), (31,), (32,), (33,), (255,), (256,), (257,), (1000,), (2, 3, 17, 19), (0,), (4, 0, 2)]),
)


@st.composite
def tensor_pairs(draw, special=True, dtypes=DTYPES):
    """Two tensors of one shape, with random dtypes, layouts, ties, NaN and infinities."""
    shape = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    flat_x, flat_y = x.view(-1), y.view(-1)
    if draw(st.booleans()) and x.numel() > 0:  # ties
        chosen = torch.rand(x.numel(), generator=generator) < 0.5
        flat_y[chosen] = flat_x[chosen]
    if special and draw(st.booleans()) and x.numel() > 0:
        for _ in range(draw(st.integers(1, 4))):
            flat_x[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(SPECIAL))
            flat_y[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    dtype = draw(st.sampled_from(dtypes))
    other = dtype if draw(st.integers(0, 3)) else draw(st.sampled_from(dtypes))
    return (
        in_layout(x.to(dtype), draw(st.sampled_from(LAYOUTS))),
        in_layout(y.to(other), draw(st.sampled_from(LAYOUTS))),
    )


def assert_gradient(actual: Tensor, expected: Tensor) -> None:
    """Compare gradients: zeros (ties) exactly, everything else up to a single rounding in the gradient's dtype."""
    eps = EPS[actual.dtype]
    rounded = expected.to(actual.dtype).double()
    assert torch.equal(actual.double() == 0, rounded == 0), "zeros (ties) must agree exactly"
    torch.testing.assert_close(
        actual.double(), rounded, rtol=eps, atol=2 * torch.finfo(actual.dtype).tiny, equal_nan=True
    )


def result_type(tensors):
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) == 1:
        return dtypes.pop()
    return torch.float64 if torch.float64 in dtypes else torch.float32


def promoted_difference(x, y):
    """A pair with the difference that the operator computes: in float32, or in float64 if either tensor is float64."""
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return x.detach().to(dtype) - y.detach().to(dtype), torch.zeros(()).expand_as(x)


def check_l1(pairs, weights, upstream=1.0):
    """Compare the value and all gradients of multi_l1_loss with float64."""
    inputs = [x.detach().requires_grad_() for x, _ in pairs]
    targets = [y.detach().requires_grad_() for _, y in pairs]
    loss = multi_l1_loss(inputs, targets, weights)
    assert loss.shape == ()
    assert loss.dtype == result_type(inputs + targets)
    expected = l1(*zip(*[promoted_difference(x, y) for x, y in pairs], strict=True), weights)
    eps = EPS[loss.dtype]
    torch.testing.assert_close(
        loss.detach().double(), expected.to(loss.dtype).double(), rtol=eps, atol=eps, equal_nan=True
    )

    gradients = torch.autograd.grad(loss, inputs + targets, torch.tensor(upstream, dtype=loss.dtype))
    expected_gradients = l1_gradients(inputs, targets, weights, upstream)
    for k, x in enumerate(inputs + targets):
        sign = 1.0 if k < len(inputs) else -1.0
        assert gradients[k].dtype == x.dtype
        assert_gradient(gradients[k], sign * expected_gradients[k % len(inputs)])
