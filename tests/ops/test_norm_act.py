"""norm_act and its backward, compared with PyTorch's modules and with float64 on random inputs."""

import pytest
import torch
import torch.nn.functional as F

import pix2pixhd
from pix2pixhd.ops import norm_act as fused
from pix2pixhd.ops import norm_act_reference as reference

from .norm_act_cases import (
    LAYOUTS,
    assert_near,
    backward,
    double,
    forward,
    images,
    random_case,
    statistics_of,
)
from .oracle import DTYPES, INSTRUCTION_SETS

ops = torch.ops.pix2pixhd
MODES = ["constant", "reflect", "replicate"]
ACTIVATIONS = [lambda z: z, F.relu, lambda z: F.leaky_relu(z, 0.2)]


@pytest.mark.parametrize("functions", [fused, reference], ids=["fused", "reference"])
@pytest.mark.parametrize("mode", range(3))
@pytest.mark.parametrize("activation", range(3))
@pytest.mark.parametrize("per_image", [True, False])
def test_forward_and_gradients_match_pytorchs_functions(functions, mode, activation, per_image):
    for layout in ("contiguous", "channels_last"):
        x = images((2, 3, 5, 6), torch.float64, layout).requires_grad_()
        weight, bias = (images((1, 1, 1, 3), torch.float64, seed=s).flatten().requires_grad_() for s in (1, 2))
        residual = images(x.shape, torch.float64, seed=3).requires_grad_()
        z = (
            F.instance_norm(x, weight=weight, bias=bias)
            if per_image
            else F.batch_norm(x, None, None, weight, bias, True)
        )
        output = ACTIVATIONS[activation](z)
        y = F.pad(output + residual, (1, 2, 3, 4), MODES[mode])
        grad = images(y.shape, torch.float64, seed=4)
        expected = torch.autograd.grad(y, [x, weight, bias, residual], grad)
        with torch.no_grad():
            mean, rstd, var = functions.norm_statistics(x, per_image, 1e-5)
            dims = (2, 3) if per_image else (0, 2, 3)
            torch.testing.assert_close(var.flatten(), x.var(dims, correction=0).flatten())
            rest = (activation, 0.2, [1, 2, 3, 4], mode)
            actual = functions.norm_act(x, mean, rstd, weight, bias, residual, *rest)
            torch.testing.assert_close(actual, y, rtol=1e-12, atol=1e-12)
            for is_output in (False, True) if activation != 1 else (False,):
                source = output if is_output else x
                needs = (True, True, True, True)
                gradients = functions.norm_act_backward(
                    grad, source, is_output, mean, rstd, weight, bias, *rest, *needs
                )
                torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", range(4))
def test_random_cases_match_float64(dtype, block, instruction_set, select_instruction_set):
    select_instruction_set(instruction_set)
    for seed in range(block * 25, block * 25 + 25):
        case = random_case(seed, dtype)
        mean, rstd = statistics_of(case)
        if mean is not None:
            for actual, expected in zip((mean, rstd), statistics_of_double(case), strict=True):
                torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)
        y = forward(case, fused, mean, rstd)
        expected = forward(case, reference, mean, rstd, double)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=reference.memory_format_of(case.x))
        assert_near(y, expected, dtype)

        source = forward(case, fused, mean, rstd, plain=True) if case.source_is_output else case.x
        before = [case.grad.clone(), source.clone()]
        gradients = backward(case, fused, source, mean, rstd)
        expected = backward(case, reference, source, mean, rstd, double)
        assert gradients[0].dtype == gradients[3].dtype == dtype
        assert gradients[0].is_contiguous(memory_format=reference.memory_format_of(source))
        terms = case.x.numel() // case.x.shape[1]
        for k, (actual, wanted) in enumerate(zip(gradients, expected, strict=True)):
            assert actual.shape == wanted.shape
            dtype_of = dtype if k in (0, 3) else getattr(case, "weight" if k == 1 else "bias")
            dtype_of = dtype_of if isinstance(dtype_of, torch.dtype) else actual.dtype
            # x recovered from a half-precision output carries that output's rounding into the sums, as expected does.
            assert_near(actual, wanted, dtype_of, terms if k in (1, 2) else 4)
        assert torch.equal(case.grad, before[0])
        assert torch.equal(source, before[1])


def statistics_of_double(case):
    mean, rstd, _ = reference.norm_statistics(case.x.double(), case.per_image, case.eps)
    return mean, rstd


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_image", [True, False])
def test_statistics_of_a_large_mean_do_not_cancel(layout, per_image):
    for dtype, offset, tolerance in ((torch.float32, 3e3, 1e-5), (torch.float64, 1e8, 1e-6)):
        x = images((2, 5, 70, 90), dtype, layout, offset=offset)
        wide = x.double()
        mean, rstd, var = fused.norm_statistics(x, per_image, 0.0)
        dims = (2, 3) if per_image else (0, 2, 3)
        torch.testing.assert_close(mean.double(), wide.mean(dims).view_as(mean), rtol=1e-7, atol=0)
        torch.testing.assert_close(var.double(), wide.var(dims, correction=0).view_as(var), rtol=tolerance, atol=0)
        torch.testing.assert_close(rstd, var.rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [3, 70])
def test_statistics_of_a_channel_whose_first_pixel_is_an_outlier_do_not_cancel(layout, channels):
    x = images((1, channels, 60, 70), torch.float32, layout) * 1e-3 + 0.1
    x[:, :, 0, 0] = 1.0
    mean, _, var = fused.norm_statistics(x, True, 0.0)
    wide = x.double()
    torch.testing.assert_close(mean.double(), wide.mean((2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), wide.var((2, 3), correction=0), rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [1e20, 1e25, 1e30])
def test_images_whose_squares_overflow_float32_are_normalised_with_their_gradients(dtype, layout, size):
    x = (images((2, 5, 6, 7), torch.float64) * size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    mean, rstd, _ = fused.norm_statistics(x, True, 1e-5)
    grad = images(x.shape, dtype, seed=1)
    leaf = x.double().requires_grad_()
    expected = F.relu(F.instance_norm(leaf))
    (expected_gradient,) = torch.autograd.grad(expected, leaf, grad.double())
    assert_near(fused.norm_act(x, mean, rstd, activation=1), expected.detach(), dtype, 4)
    gradient = fused.norm_act_backward(grad, x, False, mean, rstd, activation=1)[0]
    assert_near(gradient.double() * size, expected_gradient * size, dtype, 4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_variance_beyond_float64_is_infinite_as_in_pytorch(layout):
    x = images((1, 3, 6, 7), torch.float64, layout) * 1e200
    mean, rstd, var = fused.norm_statistics(x, True, 1e-5)
    assert var.isinf().all()
    assert torch.equal(fused.norm_act(x, mean, rstd), torch.zeros_like(x))
    assert torch.equal(F.instance_norm(x), torch.zeros_like(x))


@pytest.mark.parametrize("activation", range(3))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_inf_and_zero_behave_as_in_pytorch(activation, layout):
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 1e-30])
    x = special.repeat(9).view(1, 1, 8, 9).repeat(1, 70, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    grad = torch.tensor([2.0, float("nan"), float("inf"), 3.0, -1.0]).repeat(x.numel() // 5 + 1)[: x.numel()]
    grad = grad.view(x.shape)
    leaf = x.clone().requires_grad_()
    y = ACTIVATIONS[activation](leaf)
    expected = torch.autograd.grad(y, leaf, grad)[0]
    assert_same(fused.norm_act(x, activation=activation), y.detach())
    assert_same(fused.norm_act_backward(grad, x, activation=activation)[0], expected)
    if activation != 2:  # 0.2 * Inf is not recovered from NaN
        from_output = fused.norm_act_backward(grad, y.detach(), True, activation=activation, through_statistics=False)
        assert_same(from_output[0], expected)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_and_gradients_of_non_finite_images_are_non_finite_only_in_their_channel(dtype):
    for value in (float("nan"), float("inf")):
        x = images((2, 3, 5, 6), dtype)
        x[1, 2, 3, 4] = value
        mean, rstd, _ = fused.norm_statistics(x)
        expected = reference.norm_statistics(x, True, 1e-5)[0]
        torch.testing.assert_close(mean, expected, equal_nan=True)
        bad = torch.zeros(2, 3, dtype=torch.bool)
        bad[1, 2] = True
        assert torch.equal(rstd.isnan(), bad)
        y = fused.norm_act(x, mean, rstd, activation=1)
        assert torch.equal(y.isnan().all(-1).all(-1), bad)
        gradient = fused.norm_act_backward(torch.ones_like(x), x, False, mean, rstd)[0]
        assert torch.equal(gradient.isnan().any(-1).any(-1), bad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
@pytest.mark.parametrize("functions", [fused, reference], ids=["fused", "reference"])
def test_empty_images_give_empty_or_zero_results(functions, shape):
    x = torch.empty(shape)
    weight = torch.ones(shape[1])
    for per_image in (True, False):
        mean, rstd, var = functions.norm_statistics(x, per_image, 1e-5)
        assert mean.shape == rstd.shape == var.shape == (shape[0] if per_image else 1, shape[1])
        assert mean.isnan().all()
        rest = (2, 0.2, [1, 2, 3, 4], 0)
        y = functions.norm_act(x, mean, rstd, weight, weight, None, *rest)
        assert y.shape == (shape[0], shape[1], shape[2] + 7, shape[3] + 3)
        assert (y == 0).all()
        grad = torch.ones_like(y)
        gradients = functions.norm_act_backward(grad, x, False, mean, rstd, weight, weight, *rest, *[True] * 4)
        assert [g.shape for g in gradients] == [x.shape, weight.shape, weight.shape, x.shape]
        assert (gradients[1] == 0).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 70, 61, 67), (2, 3, 300, 301), (1, 1, 1, 200000)])
def test_results_are_bitwise_equal_for_any_number_of_threads(layout, shape):
    x = images(shape, torch.float32, layout)
    weight = images((1, 1, 1, shape[1])).flatten()
    mode, padding = (2, [1, 1, 1, 1]) if shape[2] == 1 else (1, [2, 1, 1, 3])
    rest = (2, 0.2, padding, mode)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            for per_image in (True, False):
                mean, rstd, var = fused.norm_statistics(x, per_image)
                y = fused.norm_act(x, mean, rstd, weight, weight, x, *rest)
                gradients = fused.norm_act_backward(y, x, False, mean, rstd, weight, weight, *rest, *[True] * 4)
                results.append([mean, rstd, var, y, *gradients])
    finally:
        torch.set_num_threads(threads)
    for k in range(2, len(results)):
        assert all(map(torch.equal, results[k], results[k % 2]))


def test_only_the_needed_gradients_are_computed():
    x = images((2, 3, 5, 6))
    mean, rstd, _ = fused.norm_statistics(x)
    weight = torch.ones(3, dtype=torch.float32)
    rest = (1, 0.2, [0, 0, 0, 0], 0)
    everything = fused.norm_act_backward(x, x, False, mean, rstd, weight, weight, *rest, *[True] * 4)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        gradients = fused.norm_act_backward(x, x, False, mean, rstd, weight, weight, *rest, True, *needs)
        for gradient, full, needed in zip(gradients, everything, (needs[0], needs[1], needs[1], needs[2]), strict=True):
            assert gradient.numel() == full.numel() * needed
            assert not needed or torch.equal(gradient, full)


@pytest.mark.parametrize("functions", [fused, reference], ids=["fused", "reference"])
def test_padding_errors_name_the_remedy(functions):
    x = images((1, 2, 4, 5))
    cases = [
        ((1, [0, 5, 0, 0]), "reflection padding must be smaller than the image"),
        ((1, [0, 0, 4, 0]), "use a larger image, fewer downsampling layers, or padding_mode 0"),
        ((0, [0, -1, 0, 0]), "padding must be .left, right, top, bottom., each at least 0"),
    ]
    for (mode, padding), message in cases:
        with pytest.raises(RuntimeError, match=message):
            functions.norm_act(x, None, None, None, None, None, 0, 0.2, padding, mode)
    with pytest.raises(RuntimeError, match="padding needs a non-empty image"):
        functions.norm_act(x[:, :, :0], None, None, None, None, None, 0, 0.2, [1, 1, 1, 1], 2)
    mean, rstd, _ = functions.norm_statistics(x, True, 1e-5)
    with pytest.raises(RuntimeError, match="source_is_output needs no activation, or leaky ReLU with slope > 0"):
        functions.norm_act_backward(x, x, True, mean, rstd, None, None, 1, 0.2, [0] * 4, 0, True, True, False, False)


def test_invalid_arguments_are_named_in_the_error():
    x = images((2, 3, 4, 5))
    mean, rstd, _ = fused.norm_statistics(x)
    cases = [
        (lambda: fused.norm_statistics(x[0]), r"x must be images \[N, C, H, W\], got \[3, 4, 5\]"),
        (
            lambda: fused.norm_statistics(x.int()),
            "x must be float32, float64, float16 or bfloat16, got Int; convert it",
        ),
        (lambda: fused.norm_act(x, mean), "pass mean and rstd together, or neither"),
        (lambda: fused.norm_act(x, mean[:, :2], rstd), r"mean must be \[N, C\] or \[1, C\] with N = 2, C = 3"),
        (lambda: fused.norm_act(x, mean, rstd[:1]), r"rstd must be .* and as mean, got \[1, 3\]"),
        (lambda: fused.norm_act(x, mean.double(), rstd), "mean must be float32, .* returns it, got float64; convert"),
        (lambda: fused.norm_act(x, weight=torch.ones(4)), r"weight must be \[3\], one number per channel, got \[4\]"),
        (lambda: fused.norm_act(x, bias=torch.ones(3).half()), "bias must .*, got float16 for images in float32"),
        (
            lambda: fused.norm_act(x, residual=x[:, :, 1:]),
            r"residual must have shape \[2, 3, 4, 5\], got \[2, 3, 3, 5\]",
        ),
        (lambda: fused.norm_act(x, residual=x.half()), "residual must .*, got float16 for images in float32"),
        (lambda: fused.norm_act(x, activation=3), "activation must be 0 .none., 1 .ReLU. or 2 .leaky ReLU., got 3"),
        (lambda: fused.norm_act(x, padding_mode=3), "padding_mode must be 0 .zero., 1 .reflect. or 2 .replicate."),
        (
            lambda: fused.norm_act_backward(x, x, padding=(1, 0, 0, 0)),
            r"grad must have shape \[2, 3, 4, 6\], got \[2, 3, 4, 5\]",
        ),
        (lambda: fused.norm_act_backward(x.half(), x), "grad must .*, got float16 for images in float32"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_a_derivative_of_the_fused_operator_is_refused():
    x = images((1, 2, 4, 5)).requires_grad_()
    with pytest.raises(RuntimeError, match="has no derivative of its own"):
        fused.norm_act(x, activation=1).sum().backward()
    with pytest.raises(RuntimeError, match=r"pix2pixhd.backend\('reference'\)"):
        fused.norm_act_backward(x, x, activation=1)[0].sum().backward()
    with pix2pixhd.backend("reference"):
        assert torch.equal(torch.autograd.grad(fused.norm_act(x, activation=1).sum(), x)[0], (x > 0).float())
