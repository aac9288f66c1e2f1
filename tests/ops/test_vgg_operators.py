"""The elementwise operators of the perceptual loss, each against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from .oracle import DTYPES
from .test_determinism import SUPPORTED, instruction_set  # noqa: F401

ops = torch.ops.pix2pixhd
SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-30]


def make(*shape, dtype=torch.float32, seed=0, special=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    if special and x.numel() > 40:
        x.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL).to(dtype)
        x.view(-1)[7::5] = 0.5  # ties
    return x


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(params=SUPPORTED, autouse=True)
def every_instruction_set(request, instruction_set):  # noqa: F811
    instruction_set(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 31, 32, 33, 1000, 32768 + 7, 200_003])
def test_relu_and_its_mask(dtype, numel):
    x = make(numel, dtype=dtype)
    y = x.clone()
    mask = ops.relu_mask_(y, True)
    same(y, F.relu(x))
    grad = make(numel, dtype=dtype, seed=1, special=False)
    expected = torch.where(x <= 0, torch.zeros_like(grad), grad)  # NaN passes, as in PyTorch
    ops.relu_l1_backward_(grad, mask, mask.new_empty(0), 0.0)
    same(grad, expected)
    assert ops.relu_mask_(x.clone(), False).numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 31, 33, 1000, 32768 + 7])
def test_relu_l1_and_its_backward(dtype, numel):
    x, y = make(numel, dtype=dtype, special=False), make(numel, dtype=dtype, seed=1, special=False)
    y[::3] = x[::3]
    a, b = x.clone(), y.clone()
    loss, signs, mask = ops.relu_l1_(a, b, True)
    same(a, F.relu(x))
    same(b, F.relu(y))
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, (a.double() - b.double()).abs().mean(), rtol=1e-6, atol=0)
    grad = make(numel, dtype=dtype, seed=2, special=False)
    sign = (a.double() - b.double()).sign()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = ((grad.to(wide) + 0.25 * sign.to(wide)) * (x > 0)).to(dtype)
    ops.relu_l1_backward_(grad, mask, signs, 0.25)
    same(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32, 2, 2), (2, 64, 6, 8), (1, 96, 7, 5), (2, 32, 3, 3), (1, 32, 33, 40)])
def test_relu_pool_and_its_backward(dtype, shape):
    x = make(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    leaf = x.clone().double().requires_grad_()
    expected = F.max_pool2d(F.relu(leaf), 2)
    out, codes = ops.relu_pool(x, True)
    assert out.is_contiguous(memory_format=torch.channels_last)
    same(out.double(), expected.detach())
    grad = make(*out.shape, dtype=dtype, seed=3, special=False).contiguous(memory_format=torch.channels_last)
    (wanted,) = torch.autograd.grad(expected, leaf, grad.double())
    same(ops.relu_pool_backward(grad, codes, shape[2], shape[3]).double(), wanted)
    assert ops.relu_pool(x, False)[1].numel() == 0


@pytest.mark.parametrize("shape", [(1, 32, 1, 64), (2, 32, 5, 1), (1, 32, 1, 1)])
def test_a_map_too_small_to_pool_gives_nothing_and_gets_zeros(shape):
    x = make(*shape).contiguous(memory_format=torch.channels_last)
    out, codes = ops.relu_pool(x, True)
    assert out.shape == (shape[0], 32, shape[2] // 2, shape[3] // 2)
    same(ops.relu_pool_backward(out, codes, shape[2], shape[3]), torch.zeros_like(x))


def test_bits_are_all_that_is_kept():
    x = make(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    assert ops.relu_mask_(x.clone(), True).nbytes == x.numel() // 8
    assert ops.relu_pool(x, True)[1].nbytes == x.numel() // 4 * 3 // 8


def test_wrong_arguments_are_named():
    x = make(1, 32, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    out, codes = ops.relu_pool(last, True)
    cases = [
        (lambda: ops.relu_mask_(x[..., :2], True), "x is written in place and must be dense"),
        (lambda: ops.relu_l1_(x, last, True), "must have the same shape, strides and type"),
        (lambda: ops.relu_pool(x, True), "x must be in channels_last memory format"),
        (lambda: ops.relu_pool(last[:, :31], True), "C a multiple of 32"),
        (lambda: ops.relu_pool_backward(out, codes, 6, 4), "height and width must be those before pooling"),
        (lambda: ops.relu_pool_backward(out, codes[1:], 4, 4), "codes must be the contiguous int32 tensor"),
        (
            lambda: ops.relu_l1_backward_(last, codes[:3], codes[:0], 1.0),
            "mask must be the contiguous int32 tensor of 16",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
