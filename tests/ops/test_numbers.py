"""Labels and weights: numbers of any kind, tensors with gradients, changing numbers under torch.compile."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import pix2pixhd
from pix2pixhd.functional import (
    feature_matching_loss,
    hinge_loss,
    l1_loss,
    logistic_loss,
    lsgan_loss,
    mean_loss,
    multi_l1_loss,
)
from pix2pixhd.losses import GANLoss, GeneratorLoss


@pytest.fixture(params=["fused", "reference"], autouse=True)
def backend(request):
    with pix2pixhd.backend(request.param):
        yield request.param


SCALARS = [0.9, np.float32(0.9), np.float64(0.9), np.array(0.9), torch.tensor(0.9), torch.tensor([0.9]), [0.9], (0.9,),
           np.array([0.9]), [torch.tensor(0.9)]]  # fmt: skip


@pytest.mark.parametrize("number", SCALARS, ids=repr)
def test_numbers_of_any_kind_are_accepted(number):
    x = torch.randn(7)
    torch.testing.assert_close(lsgan_loss([x], number), ((x - 0.9) ** 2).mean())
    torch.testing.assert_close(logistic_loss([x], 1.0, number), 0.9 * F.softplus(-x).mean())
    torch.testing.assert_close(mean_loss([x], number), 0.9 * x.mean())
    torch.testing.assert_close(multi_l1_loss([x], [x + 2], number), torch.tensor(1.8))


@pytest.mark.parametrize("flag", [True, 1, np.bool_(True), torch.tensor(True), [True], np.array([True])], ids=repr)
def test_flags_of_any_kind_are_accepted(flag):
    x = torch.randn(7)
    torch.testing.assert_close(hinge_loss([x], flag), F.relu(1 - x).mean())
    if not isinstance(flag, list):
        torch.testing.assert_close(GANLoss()(x, flag), ((x - 1) ** 2).mean())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lsgan_loss([x], "1"), TypeError, "target must be a number or one number per tensor, got str"),
        (lambda x: lsgan_loss([x], None), TypeError, "target must be a number or one number per tensor, got NoneType"),
        (lambda x: lsgan_loss([x], ["1"]), TypeError, "target must hold numbers, got '1'"),
        (lambda x: mean_loss([x], [torch.ones(2)]), ValueError, r"weights must hold real numbers, .* shape \(2,\)"),
        (lambda x: mean_loss([x], torch.ones(2)), ValueError, "weights must have one number per tensor, 1, got 2"),
        (lambda x: GANLoss(target_real_label=x.sum().requires_grad_()), TypeError, "target_real_label .* multiply"),
        (lambda x: GeneratorLoss(torch.ones(()).requires_grad_()), TypeError, "lambda_gan .* multiply the loss"),
        (lambda x: GANLoss()(x, "fake"), TypeError, r"target_is_real must be True or False, got 'fake' \(str\)"),
        (lambda x: GANLoss()(x, None), TypeError, "target_is_real must be True or False, got None"),
        (lambda x: GANLoss(mode="wgan")(x, 0.9), TypeError, "target_is_real must be True or False, got 0.9"),
        (lambda x: GANLoss()(x, [True, False]), TypeError, "target_is_real must be True or False, got"),
        (lambda x: GANLoss()(x, x.to("meta")), TypeError, "target_is_real must be a bool, got a tensor on meta"),
        (lambda x: hinge_loss([x], "False"), TypeError, "target_is_real must be a bool or one per tensor, got 'False'"),
        (lambda x: hinge_loss([x], None), TypeError, "target_is_real must be a bool or one per tensor, got None"),
        (lambda x: hinge_loss([x], ["False"]), TypeError, r"target_is_real\[0\] must be True or False, got 'False'"),
        (lambda x: GANLoss(target_real_label="1"), TypeError, "target_real_label must be a number, got '1'"),
    ],
)
def test_values_that_are_not_numbers_are_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3))


CONTAINERS = {
    "list": lambda values: values,
    "list of tensors": lambda values: [torch.tensor(value) for value in values],
    "array": lambda values: np.array(values),
    "tensor": lambda values: torch.tensor(values),
}
WITH_NUMBERS = {
    "l1, weights": lambda xs, c: multi_l1_loss(xs, [torch.zeros_like(x) for x in xs], c),
    "l1 of targets, weights": lambda xs, c: multi_l1_loss([torch.zeros_like(x) for x in xs], xs, c),
    "lsgan, labels": lambda xs, c: lsgan_loss(xs, c),
    "lsgan, weights": lambda xs, c: lsgan_loss(xs, 1.0, c),
    "logistic, labels": lambda xs, c: logistic_loss(xs, c),
    "hinge, weights": lambda xs, c: hinge_loss(xs, True, c),
    "mean, weights": lambda xs, c: mean_loss(xs, c),
}


@pytest.mark.parametrize("name", WITH_NUMBERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_numbers_modified_before_backward_do_not_change_the_gradient(name, container):
    xs = [torch.full((4,), 0.25, requires_grad=True), torch.full((3,), 0.5, requires_grad=True)]
    expected = torch.autograd.grad(WITH_NUMBERS[name](xs, [0.5, 0.75]), xs)
    numbers = CONTAINERS[container]([0.5, 0.75])
    loss = WITH_NUMBERS[name](xs, numbers)
    if container == "list of tensors":
        numbers[0].fill_(-1.0)
    numbers[1] = -1.0
    torch.testing.assert_close(torch.autograd.grad(loss, xs), expected)


# Excludes the label of lsgan: the fused loss saves the difference, which does not change with the label.
@pytest.mark.parametrize("name", sorted(WITH_NUMBERS.keys() - {"lsgan, labels"}))
def test_a_learned_number_modified_before_backward_raises_an_error(name):
    x = torch.full((4,), 0.25, requires_grad=True)
    number = torch.tensor(0.5, requires_grad=True)
    loss = WITH_NUMBERS[name]([x], number)
    with torch.no_grad():
        number.fill_(-1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("name", ["l1, weights", "hinge, weights", "mean, weights"])
def test_weights_that_are_float64_tensors_keep_their_precision_and_range(name):
    xs = [torch.full((4,), 0.25, requires_grad=True), torch.full((3,), 0.5, requires_grad=True)]
    for numbers in ([1.0 + 1e-12, 1 / 3], [1e200, -1e150]):
        plain = torch.tensor(numbers, dtype=torch.float64)
        learned = plain.clone().requires_grad_()
        expected = WITH_NUMBERS[name]([x.double() for x in xs], plain)
        for weights in (learned, plain, list(plain), [learned[0], plain[1]]):
            loss = WITH_NUMBERS[name](xs, weights)
            assert loss.dtype == torch.float64
            torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-15, atol=0)
        loss = WITH_NUMBERS[name](xs, learned)
        slopes = torch.autograd.grad(loss, learned)[0]
        unit = WITH_NUMBERS[name]([x.double() for x in xs], [1.0, 1e-300]), WITH_NUMBERS[name]([xs[1].double()], [1.0])
        torch.testing.assert_close(slopes, torch.stack(unit).detach(), rtol=1e-15, atol=0)


def test_tensors_as_weights_and_labels_receive_gradients():
    xs, ys = [torch.randn(5), torch.randn(3)], [torch.randn(5), torch.randn(3)]
    weights = torch.tensor([0.5, 2.0], requires_grad=True)
    label = torch.tensor(0.9, requires_grad=True)
    terms = torch.stack([F.l1_loss(x, y) for x, y in zip(xs, ys, strict=True)])
    torch.testing.assert_close(torch.autograd.grad(multi_l1_loss(xs, ys, weights), weights)[0], terms)
    squares = torch.stack([(x - label).square().mean() for x in xs])
    expected = torch.autograd.grad((weights * squares).sum(), [weights, label])
    torch.testing.assert_close(torch.autograd.grad(lsgan_loss(xs, label, weights), [weights, label]), expected)
    for loss in (lambda w: mean_loss(xs, w), lambda w: hinge_loss(xs, True, w), lambda w: logistic_loss(xs, 1.0, w)):
        each = torch.stack([loss(torch.tensor([1.0, 0.0])), loss(torch.tensor([0.0, 1.0]))])
        torch.testing.assert_close(torch.autograd.grad(loss(weights), weights)[0], each)
    one = torch.tensor(3.0, requires_grad=True)
    total = feature_matching_loss([[*xs, xs[0]]], [[*ys, ys[0]]], weight=one)
    torch.testing.assert_close(torch.autograd.grad(total, one)[0], total.detach() / 3)


@pytest.mark.parametrize("loss", [lsgan_loss, logistic_loss])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_label_is_rounded_to_the_dtype_of_its_tensor(loss, dtype):
    x = torch.full((4096,), 0.89, dtype=dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the loss in float32
        value = loss([x], 0.9)
        plain = F.mse_loss if loss is lsgan_loss else F.binary_cross_entropy_with_logits
    expected = plain(exact, torch.full_like(x, 0.9).double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(v * 4096, y) for v, y in ((value, x), (expected, exact)))
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("loss", [lsgan_loss, logistic_loss])
def test_a_finite_label_beyond_the_range_of_the_dtype_is_rejected(loss):
    """``torch.full_like`` rejects it too, except for a single half-precision element."""
    for dtype, label in [
        (torch.float16, 1e6),
        (torch.float16, 65505.0),
        (torch.bfloat16, 1e39),
        (torch.float32, -1e39),
    ]:
        x = torch.zeros(8, dtype=dtype)
        with pytest.raises(RuntimeError, match="without overflow"):
            torch.full_like(x, label)
        for target in (label, [0.0, label], torch.tensor(label, dtype=torch.float64)):
            preds = [x] * (2 if isinstance(target, list) else 1)
            with pytest.raises(ValueError, match=r"target\[\d\] is .*choose a smaller label, or convert"):
                loss(preds, target)
    largest = torch.finfo(torch.float16).max
    for label in (largest, -largest, float("inf"), float("nan")):
        x = torch.zeros(8, dtype=torch.float16)
        plain = F.mse_loss if loss is lsgan_loss else F.binary_cross_entropy_with_logits
        torch.testing.assert_close(loss([x], label), plain(x, torch.full_like(x, label)), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_tensor_weight_promotes_the_dtype_as_in_plain_pytorch(dtype, weight, autocast, learned):
    x, w = torch.randn(9).to(dtype), torch.tensor(2, dtype=weight)
    if learned and weight.is_floating_point:
        w.requires_grad_()
    label = torch.ones_like(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        pairs = [
            (multi_l1_loss([x], [label], w), F.l1_loss(x, label) * w),
            (multi_l1_loss([x, x], [label, label], [w, 0.5]), F.l1_loss(x, label) * w + F.l1_loss(x, label) * 0.5),
            (feature_matching_loss([[x, x]], [[label, label]], weight=w), 4.0 * F.l1_loss(x, label) * w),
            (lsgan_loss([x], 1.0, w), F.mse_loss(x, label) * w),
            (logistic_loss([x], 1.0, w), F.binary_cross_entropy_with_logits(x, label) * w),
            (hinge_loss([x], True, w), F.relu(1 - x).mean() * w),
            (mean_loss([x], w), x.mean() * w),
        ]
    for ours, plain in pairs:
        assert ours.dtype == plain.dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), plain.double(), rtol=4 * eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_loss_matches_plain_pytorch(dtype, autocast):
    x = torch.randn(9).to(dtype)
    label = torch.ones_like(x)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        pairs = [
            (multi_l1_loss([x], [label]), F.l1_loss(x, label)),
            (lsgan_loss([x], 1.0), F.mse_loss(x, label)),
            (logistic_loss([x], 1.0), F.binary_cross_entropy_with_logits(x, label)),
            (hinge_loss([x], True), F.relu(1 - x).mean()),
            (mean_loss([x]), x.mean()),
        ]
    for ours, plain in pairs:
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain)


def graphs(function, arguments_of, steps=4):
    """Compile with fullgraph=True, compare each step with eager mode, and return the number of graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for k in range(steps):
        arguments = arguments_of(k)
        leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
        losses = compiled(*arguments), function(*arguments)
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*[torch.autograd.grad(loss, leaves) for loss in losses])
    return counter.frame_count


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def number(k):
    return 0.1 * k + 0.05


CHANGING = {
    "l1, weights": lambda x, c: multi_l1_loss([x, 2 * x], [x.detach() + 1, x.detach()], [c, 0.5]),
    "lsgan, label": lambda x, c: lsgan_loss([x], c),
    "lsgan, weight": lambda x, c: lsgan_loss([x], 1.0, c),
    "logistic, label": lambda x, c: logistic_loss([x], c),
    "hinge, weight": lambda x, c: hinge_loss([x], True, c),
    "mean, weight": lambda x, c: mean_loss([x], c),
    "features, weight": lambda x, c: feature_matching_loss([[x, x]], [[x.detach() + 1, x]], weight=c),
}


@pytest.mark.parametrize("name", CHANGING)
def test_changing_numbers_compile_at_most_two_graphs(name):
    assert graphs(CHANGING[name], lambda k: (leaf(4), number(k))) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sum_over_changing_sizes_compiles_at_most_two_graphs(dtype):
    def arguments(k):
        x = (torch.randn(k + 2, 3) * 1e-6).to(dtype).requires_grad_()
        return x, torch.zeros(k + 2, 3, dtype=dtype)

    assert graphs(lambda x, y: l1_loss(x, y, "sum"), arguments) <= 2


@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "hinge", "wgan"])
def test_annealed_weights_and_labels_of_modules_compile_at_most_two_graphs(mode):
    criterion = GeneratorLoss(lambda_vgg=0.0, gan_mode=mode)

    def step(x, y, k):
        return criterion([[x, x]], [[y, y]]).total

    def arguments(k):
        criterion.lambda_feat = criterion.lambda_gan = number(k)
        return leaf(4), torch.randn(4), 0

    assert graphs(step, arguments) <= 2

    def relabelled(k):
        criterion.gan.real_label = number(k)
        return (leaf(4),)

    assert graphs(lambda x: criterion.gan(x, True), relabelled) <= 2
