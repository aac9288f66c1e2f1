"""The elementwise operators of the perceptual loss, compared with PyTorch's operations."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd.ops.perceptual_engine import transposed

from .oracle import DTYPES, INSTRUCTION_SETS

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


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def every_instruction_set(request, select_instruction_set):
    select_instruction_set(request.param)


# Chunks do not span images. The third shape has two full chunks and a partial one, with pixels across their borders.
SHAPES = [(1, 32, 1, 1), (2, 96, 3, 5), (2, 96, 26, 29), (3, 64, 2, 1)]


def make_map(*shape, **options):
    return make(*shape, **options).contiguous(memory_format=torch.channels_last)


def arithmetic_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def biased(x, bias):
    """x + bias, rounded to the dtype of the feature map, as PyTorch adds a convolution's bias on CUDA."""
    return x if bias is None else x + bias.view(1, -1, 1, 1)


def biases(shape, dtype):
    return None, make(shape[1], dtype=dtype, seed=9, special=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_and_its_backward_match_pytorch(dtype, shape):
    x = make_map(*shape, dtype=dtype)
    for bias in biases(shape, dtype):
        y, before = x.clone(), biased(x, bias)
        mask = ops.relu_mask_(y, bias, True)
        same(y, F.relu(before))
        grad = make_map(*shape, dtype=dtype, seed=1, special=False)
        expected = torch.where(before <= 0, torch.zeros_like(grad), grad)  # NaN passes, as in PyTorch
        ops.relu_backward_(grad, mask)
        same(grad, expected)
        again = x.clone()
        assert ops.relu_mask_(again, bias, False).numel() == 0
        same(again, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_relu_distance_and_its_backward_match_pytorch(dtype, shape, squared, weighted):
    x = make_map(*shape, dtype=dtype, special=False)
    y = make_map(*shape, dtype=dtype, seed=1, special=False)
    y[:, ::3] = x[:, ::3]
    weight = None
    if weighted:  # including negative weights
        weight = make(shape[0], shape[2], shape[3], dtype=arithmetic_dtype(dtype), seed=4, special=False)
    pixels = 1.0 if weight is None else weight.double().unsqueeze(1)
    for bias in biases(shape, dtype):
        a, b = x.clone(), y.clone()
        loss, mask, saved = ops.relu_distance_(a, b, bias, weight, squared, False, True)
        passes_relu = biased(x, bias) > 0
        same(a, F.relu(biased(x, bias)))
        same(b, F.relu(biased(y, bias)))
        difference = a.to(arithmetic_dtype(dtype)) - b.to(arithmetic_dtype(dtype))
        distance = difference.double() ** 2 if squared else difference.double().abs()
        terms = (pixels * distance).flatten(1)
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, terms.mean(1), rtol=1e-6, atol=1e-7 * float(terms.abs().mean()))
        grad = make_map(*shape, dtype=dtype, seed=2, special=False)
        derivative = 2.0 * difference.to(dtype).to(arithmetic_dtype(dtype)) if squared else difference.sign()
        factor = 0.25 if weight is None else 0.25 * weight.unsqueeze(1)
        expected = ((grad.to(arithmetic_dtype(dtype)) + factor * derivative) * passes_relu).to(dtype)
        ops.relu_distance_backward_(grad, mask, saved, weight, squared, 0.25)
        same(grad, expected)
        without, no_mask, nothing = ops.relu_distance_(x.clone(), y.clone(), bias, weight, squared, False, False)
        same(without, loss)
        assert no_mask.numel() == nothing.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("squared", [False, True])
def test_an_activated_target_is_not_modified(dtype, squared):
    x, y = make_map(2, 64, 5, 3, dtype=dtype), make_map(2, 64, 5, 3, dtype=dtype, seed=1, special=False)
    negative = -y.abs()  # a ReLU would set it to zero
    before = negative.clone()
    ops.relu_distance_(x.clone(), negative, None, None, squared, True, True)
    same(negative, before)
    activated = F.relu(y)
    one = ops.relu_distance_(x.clone(), activated, None, None, squared, True, True)
    other = ops.relu_distance_(x.clone(), y.clone(), None, None, squared, False, True)
    for a, b in zip(one, other, strict=True):
        same(a, b)


def test_nan_and_inf_affect_only_the_loss_of_their_own_image():
    x, y = make_map(3, 32, 4, 4, special=False), make_map(3, 32, 4, 4, seed=1, special=False)
    x[0, 0, 0, 0], x[1, 5, 3, 3] = float("nan"), float("inf")
    loss, mask, signs = ops.relu_distance_(x, y, None, None, False, False, True)
    assert loss[0].isnan()
    assert loss[1] == float("inf")
    assert loss[2].isfinite()
    grad = make_map(3, 32, 4, 4, seed=2, special=False)
    expected = grad[0, 0, 0, 0].clone()
    ops.relu_distance_backward_(grad, mask, signs, None, False, 1.0)
    same(grad[0, 0, 0, 0], expected)  # |NaN| has gradient 0 in PyTorch


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf")])
def test_ties_have_a_gradient_of_nan_under_a_non_finite_coefficient_as_in_pytorch(coefficient):
    x = make_map(1, 32, 2, 3, special=False).abs() + 1.0
    y = x.clone()
    y[:, ::2] += 1.0
    leaf = x.clone().requires_grad_()
    distance = F.l1_loss(leaf, y, reduction="sum")
    (expected,) = torch.autograd.grad(distance, leaf, torch.tensor(coefficient))
    _, mask, signs = ops.relu_distance_(x.clone(), y.clone(), None, None, False, False, True)
    grad = torch.zeros_like(x)
    ops.relu_distance_backward_(grad, mask, signs, None, False, coefficient)
    same(grad, expected)


def test_an_empty_batch_has_no_losses_and_an_empty_feature_map_has_a_mean_of_nan():
    assert ops.relu_distance_(make_map(0, 32, 4, 4), make_map(0, 32, 4, 4), None, None, False, False, True)[
        0
    ].shape == (0,)
    loss = ops.relu_distance_(make_map(2, 32, 0, 4), make_map(2, 32, 0, 4), None, None, False, False, True)[0]
    assert loss.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32, 2, 2), (2, 64, 6, 8), (1, 96, 7, 5), (2, 32, 3, 3), (1, 32, 33, 40)])
def test_relu_pool_and_its_backward_match_pytorch(dtype, shape):
    x = make_map(*shape, dtype=dtype)
    for bias in biases(shape, dtype):
        leaf = biased(x, bias).clone().double().requires_grad_()
        expected = F.max_pool2d(F.relu(leaf), 2)
        before = x.clone()
        out, codes = ops.relu_pool(x, bias, True)
        same(x, before)
        assert out.is_contiguous(memory_format=torch.channels_last)
        same(out.double(), expected.detach())
        grad = make_map(*out.shape, dtype=dtype, seed=3, special=False)
        (expected_grad,) = torch.autograd.grad(expected, leaf, grad.double())
        same(ops.relu_pool_backward(grad, codes, shape[2], shape[3]).double(), expected_grad)
        assert ops.relu_pool(x, bias, False)[1].numel() == 0


@pytest.mark.parametrize("shape", [(1, 32, 1, 64), (2, 32, 5, 1), (1, 32, 1, 1)])
def test_a_feature_map_too_small_to_pool_has_an_empty_output_and_zero_gradient(shape):
    x = make_map(*shape)
    out, codes = ops.relu_pool(x, None, True)
    assert out.shape == (shape[0], 32, shape[2] // 2, shape[3] // 2)
    same(ops.relu_pool_backward(out, codes, shape[2], shape[3]), torch.zeros_like(x))


def test_only_bits_are_saved():
    x = make_map(1, 64, 32, 32)
    assert ops.relu_mask_(x.clone(), None, True).nbytes == x.numel() // 8
    assert ops.relu_pool(x, None, True)[1].nbytes == x.numel() // 4 * 3 // 8
    _, mask, signs = ops.relu_distance_(x.clone(), x.clone(), None, None, False, False, True)
    assert mask.nbytes + signs.nbytes == x.numel() * 3 // 8


def test_invalid_arguments_are_named_in_the_error():
    x = make(1, 32, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    out, codes = ops.relu_pool(last, None, True)
    mask = ops.relu_mask_(last.clone(), None, True)
    cases = [
        (lambda: ops.relu_mask_(x, None, True), "x must be in channels_last memory format"),
        (lambda: ops.relu_mask_(last, torch.ones(31), True), "bias must be a contiguous float32 tensor of 32 elements"),
        (
            lambda: ops.relu_mask_(last, torch.ones(32).half(), True),
            "bias must be a contiguous float32 tensor of 32 elements",
        ),
        (
            lambda: ops.relu_distance_(x, last, None, None, False, False, True),
            "must have the same shape, strides and dtype",
        ),
        (
            lambda: ops.relu_distance_(last, last.clone(), None, torch.ones(15), False, False, True),
            "weight must be a contiguous float32 tensor of 16 elements",
        ),
        (
            lambda: ops.relu_distance_(last, last.clone(), None, torch.ones(16).double(), False, False, True),
            "weight must be a contiguous float32 tensor of 16 elements",
        ),
        (lambda: ops.relu_pool(x, None, True), "x must be in channels_last memory format"),
        (lambda: ops.relu_pool(last[:, :31], None, True), "C a multiple of 32"),
        (lambda: ops.relu_pool_backward(out, codes, 6, 4), "height and width must be those before pooling"),
        (lambda: ops.relu_pool_backward(out, codes[1:], 4, 4), "codes must be the contiguous int32 tensor"),
        (lambda: ops.relu_backward_(last, mask[:3]), "mask must be the contiguous int32 tensor of 16"),
        (
            lambda: ops.relu_distance_backward_(last, mask, mask, None, False, 1.0),
            "kept must be the contiguous int32 tensor of 32",
        ),
        (
            lambda: ops.relu_distance_backward_(last, mask, torch.zeros(511), None, True, 1.0),
            "kept must be the differences",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (64, 96, 3, 3), (4, 7, 1, 3)])
def test_weights_for_the_gradient_have_channels_exchanged_and_kernels_flipped(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    expected = weight.flip(2, 3).transpose(0, 1)
    for own in (weight, weight.contiguous(memory_format=torch.channels_last)):
        found = transposed(own)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
