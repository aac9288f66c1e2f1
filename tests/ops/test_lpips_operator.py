"""The operator for one tap of LPIPS, compared with autograd in float64."""

import functools

import pytest
import torch
import torch.nn.functional as F

from .oracle import DTYPES, INSTRUCTION_SETS

ops = torch.ops.pix2pixhd
EPS = 1e-10  # of the lpips package
# One pixel; two images of one chunk; images of a chunk and a partial one; VGG's last channels.
SHAPES = [(1, 32, 1, 1), (2, 96, 3, 5), (2, 96, 20, 19), (1, 512, 3, 2)]
# bias, weight, activated target
OPTIONS = [(False, False, False), (True, True, False), (False, True, True)]


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small: starting a second thread takes longer than the references' operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def every_instruction_set(request, select_instruction_set):
    select_instruction_set(request.param)


def make(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_map(*shape, dtype=torch.float32, seed=0):
    return make(*shape, dtype=dtype, seed=seed).contiguous(memory_format=torch.channels_last)


def make_maps(*shape, dtype=torch.float32):
    """Two feature maps with zero vectors, after ReLU, in the first, the second and both, and with equal vectors."""
    x, y = (make_map(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    if shape[3] > 1:
        x[:, :, 0, 0] = y[:, :, 1, 0] = x[:, :, 2, 0] = y[:, :, 2, 0] = -100.0
        y[:, :, 1, 1] = x[:, :, 1, 1]
    return x, y


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(shape, dtype, biased, weighted):
    compute = compute_dtype(dtype)
    bias = make(shape[1], dtype=dtype, seed=2) if biased else None
    weight = make(shape[0], *shape[2:], dtype=compute, seed=3) if weighted else None  # including negative weights
    return bias, make(shape[1], dtype=compute, seed=4).abs(), weight


def activate(x, bias):
    return F.relu(x if bias is None else x + bias.view(1, -1, 1, 1))


def norm(x):
    squares = x.square().sum(1, keepdim=True)
    positive = squares > 0  # the derivative of sqrt at zero is Inf; that of the norm is defined as zero
    return torch.where(positive, squares, 1.0).sqrt() * positive


def distances(a, b, linear):
    """The distance of each pixel, [N, H, W], of two activated feature maps."""
    difference = a / (norm(a) + EPS) - b / (norm(b) + EPS)
    return (difference.square() * linear.view(1, -1, 1, 1)).sum(1)


class Expected:
    """Value, kept derivative and derivative of the mean in float64, and the sizes of the terms, for tolerances."""

    def __init__(self, a, b, linear, weight):
        self.a, b, linear = a.double().requires_grad_(), b.double(), linear.double()
        weights = torch.ones(()) if weight is None else weight.double()
        per_pixel = distances(self.a, b, linear)
        self.loss = (per_pixel * weights).mean((1, 2))
        self.loss_size = (per_pixel.abs() * weights.abs()).mean((1, 2)).detach()
        (self.kept,) = torch.autograd.grad(0.5 * per_pixel.sum(), self.a, retain_graph=True)
        (self.gradient,) = torch.autograd.grad(self.loss.sum(), self.a, retain_graph=True)
        with torch.no_grad():
            own, other = norm(self.a), norm(b)
            u = self.a / (own + EPS)
            size = linear.view(1, -1, 1, 1) * (u + b.abs() / (other + EPS))
            along = (size * u).sum(1, keepdim=True) / own.clamp_min(1e-300)
            self.kept_size = (size + along * self.a) / (own + EPS)
        self.loss = self.loss.detach()


@functools.cache
def case(dtype, shape, options):
    """Arguments, activated feature maps and expected results, shared by the instruction sets."""
    biased, weighted, activated = options
    x, y = make_maps(*shape, dtype=dtype)
    y = F.relu(y) if activated else y
    bias, linear, weight = arguments(shape, dtype, biased, weighted)
    a, b = activate(x, bias), y if activated else activate(y, bias)
    return x, y, bias, linear, weight, a, b, Expected(a, b, linear, weight)


def as_map(kept, x):
    n, c, h, w = x.shape
    return kept.view(n, h, w, c).permute(0, 3, 1, 2).double()


def assert_within(actual, expected, tolerance):
    excess = ((actual.double() - expected).abs() - tolerance).max()
    assert excess <= 0, f"an error exceeds its tolerance by {float(excess):g}"


def rounding(dtype):
    return torch.finfo(dtype).eps / 2


def passed(mask, x):
    """The packed bits as a boolean feature map."""
    bits = mask.view(-1, 1) >> torch.arange(32, dtype=torch.int32) & 1
    return as_map(bits.flatten(), x) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_derivative_and_gradient_match_autograd(dtype, shape, options):
    activated = options[2]
    x, y, bias, linear, weight, a, b, expected = case(dtype, shape, options)
    mine, other = x.clone(), y.clone()
    loss, mask, kept = ops.relu_lpips_(mine, other, bias, linear, weight, activated, 0.5, True)
    assert torch.equal(mine, a)
    assert torch.equal(other, b)
    assert torch.equal(passed(mask, x), a > 0)
    assert loss.dtype == torch.float64
    assert_within(loss, expected.loss, 1e-12 * expected.loss_size)

    assert kept.dtype == dtype
    # The sums are in double, the products in the dtype of the arithmetic; the result is rounded once. In float64 the
    # sums of the reference have errors, too.
    error = (64 if dtype == torch.float64 else 8) * rounding(compute_dtype(dtype)) * expected.kept_size
    wanted = 0.5 * expected.kept
    if dtype == torch.float16:
        wanted = wanted.clamp(-65504, 65504)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    tolerance = error + rounding(dtype) * (wanted.abs() + error) + tiny
    assert_within(as_map(kept, x), wanted, tolerance)

    grad = make_map(*shape, dtype=dtype, seed=5)
    factor = 1 / (0.5 * shape[2] * shape[3])  # divides by the kept scale and by the pixels of the mean
    result = grad.clone()
    ops.relu_distance_backward_(result, mask, kept, weight, True, factor)
    assert result.isfinite().all()
    if dtype == torch.float16:  # a saturated derivative is not that of autograd
        pixels = 1.0 if weight is None else weight.double().unsqueeze(1)
        gradient = 2 * factor * pixels * wanted
    else:
        gradient = expected.gradient
    exact = (grad.double() + gradient) * (a > 0)
    sensitivity = 2 * factor * (1.0 if weight is None else weight.double().abs().unsqueeze(1))
    error = sensitivity * tolerance + 4 * rounding(compute_dtype(dtype)) * (grad.double().abs() + gradient.abs())
    assert_within(result, exact, error + rounding(dtype) * (exact.abs() + error) + tiny)

    again, no_mask, nothing = ops.relu_lpips_(x.clone(), y.clone(), bias, linear, weight, activated, 0.5, False)
    assert torch.equal(again, loss)
    assert no_mask.numel() == nothing.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activated_target_is_not_modified(dtype):
    x, y = make_maps(2, 64, 5, 3, dtype=dtype)
    linear = torch.ones(64, dtype=compute_dtype(dtype))
    negative = -y.abs()  # ReLU would set it to zero
    before = negative.clone()
    ops.relu_lpips_(x.clone(), negative, None, linear, None, True, 1.0, True)
    assert torch.equal(negative, before)
    one = ops.relu_lpips_(x.clone(), F.relu(y), None, linear, None, True, 1.0, True)
    other = ops.relu_lpips_(x.clone(), y.clone(), None, linear, None, False, 1.0, True)
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vectors_have_finite_derivatives(dtype):
    zero, one = make_map(1, 32, 2, 2, dtype=dtype) * 0, make_map(1, 32, 2, 2, dtype=dtype).abs()
    linear = torch.ones(32, dtype=compute_dtype(dtype))
    for x, y, value in [(zero, zero, 0.0), (zero, one, 1.0), (one, zero, 1.0), (one, one, 0.0)]:
        loss, _, kept = ops.relu_lpips_(x.clone(), y.clone(), None, linear, None, False, 1.0, True)
        assert abs(loss.item() - value) < 1e-6
        assert kept.isfinite().all()
        assert x is not y or kept.count_nonzero() == 0
    _, _, kept = ops.relu_lpips_(zero.clone(), one.clone(), None, linear, None, False, 1.0, True)
    assert torch.equal(kept == -65504, one.permute(0, 2, 3, 1).flatten() > 0) or dtype != torch.float16


def test_nan_and_inf_affect_only_their_own_image():
    x, y = make_maps(4, 32, 4, 4)
    linear = torch.ones(32)
    before = ops.relu_lpips_(x.clone(), y.clone(), None, linear, None, False, 1.0, True)
    x[0, 0, 0, 1], x[1, 5, 3, 3], y[2, 6, 3, 2] = float("nan"), float("inf"), float("nan")
    loss, mask, kept = ops.relu_lpips_(x, y, None, linear, None, False, 1.0, True)
    assert loss.isnan().tolist() == [True, True, True, False]
    assert loss[3] == before[0][3]
    finite = kept.view(4, 16, 32).isfinite().all(2)
    # Other pixels are not affected either.
    assert finite.sum(1).tolist() == [15, 15, 15, 16]
    assert torch.equal(kept.view(4, -1)[3], before[2].view(4, -1)[3])
    result = torch.zeros_like(x)
    ops.relu_distance_backward_(result, mask, kept, None, True, 1.0)
    assert result.isfinite().flatten(1).all(1).tolist() == [False, False, False, True]


def test_an_empty_batch_has_no_losses_and_an_empty_feature_map_has_a_mean_of_nan():
    def run(*shape):
        x = make_map(*shape)
        return ops.relu_lpips_(x, x.clone(), None, torch.ones(32), None, False, 1.0, True)

    assert run(0, 32, 4, 4)[0].shape == (0,)
    assert run(2, 32, 0, 4)[0].isnan().all()


def test_results_do_not_depend_on_the_number_of_threads():
    x, y = make_maps(2, 96, 30, 29)
    linear, results = make(96, seed=4), []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(ops.relu_lpips_(x.clone(), y.clone(), None, linear, None, False, 1.0, True))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_at_most_twice_the_error_of_pytorch(dtype):
    x, y = (make_map(2, 256, 6, 7, dtype=dtype, seed=seed) for seed in (0, 1))
    linear = make(256, seed=4).abs()
    a = F.relu(x)
    expected = Expected(a, F.relu(y), linear, None)
    leaf = a.clone().requires_grad_()
    theirs = distances(leaf, F.relu(y), linear.to(dtype)).mean((1, 2))
    # The loss scale keeps the gradients of PyTorch in the normal range of float16.
    (their_gradient,) = torch.autograd.grad(theirs.sum() * 64.0, leaf)
    loss, mask, kept = ops.relu_lpips_(x.clone(), y.clone(), None, linear, None, False, 1.0, True)
    gradient = torch.zeros_like(x)
    ops.relu_distance_backward_(gradient, mask, kept, None, True, 64.0 / 42)
    exact = 64.0 * expected.gradient * (a > 0)

    def error(found):
        return ((found.double() - exact) * (a > 0)).norm()

    assert error(gradient) <= 2 * error(their_gradient)
    assert error(gradient) <= 2 * rounding(dtype) * exact.norm()
    assert (loss - expected.loss).norm() <= 2 * (theirs.detach().double() - expected.loss).norm()


def test_invalid_arguments_are_named_in_the_error():
    x = make_map(1, 32, 4, 4)
    linear = torch.ones(32)
    empty = torch.empty(1, 0, 4, 4).contiguous(memory_format=torch.channels_last)

    def call(x, y, bias, linear, weight):
        return ops.relu_lpips_(x, y, bias, linear, weight, False, 1.0, True)

    cases = [
        ((x, x.clone(), None, torch.ones(31), None), "linear must be a contiguous float32 tensor of 32 elements"),
        ((x, x.clone(), None, linear.double(), None), "linear must be a contiguous float32 tensor of 32 elements"),
        ((x, x.clone(), None, torch.ones(64)[::2], None), "linear must be a contiguous float32 tensor of 32 elements"),
        ((x.half(), x.half(), None, linear.half(), None), "linear must be a contiguous float32 tensor of 32 elements"),
        ((x.double(), x.double(), None, linear, None), "linear must be a contiguous float64 tensor of 32 elements"),
        ((x, x.clone(), torch.ones(31), linear, None), "bias must be a contiguous float32 tensor of 32 elements"),
        ((x, x.clone(), None, linear, torch.ones(15)), "weight must be a contiguous float32 tensor of 16 elements"),
        ((x, x.clone(), None, linear, torch.ones(16).double()), "weight must be a contiguous float32 tensor of 16"),
        ((x, x.contiguous(), None, linear, None), "must have the same shape, strides and dtype"),
        ((x, x.half(), None, linear, None), "must have the same shape, strides and dtype"),
        ((x.contiguous(), x.contiguous(), None, linear, None), "input must be in channels_last memory format"),
        ((empty, empty.clone(), None, linear[:0], None), "input must have channels"),
    ]
    for values, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call(*values)
