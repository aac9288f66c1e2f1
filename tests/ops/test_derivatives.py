"""Forward-mode, batched and second derivatives, and gradients that are computed only where required."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import pix2pixhd
from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss
from pix2pixhd.ops.autograd import zero_of

ops = torch.ops.pix2pixhd

LOSSES = {
    "l1": (lambda x: multi_l1_loss([x], [torch.full_like(x, 0.3)], [0.5]), lambda x: (x - 0.3).abs().mean() * 0.5),
    "lsgan": (lambda x: lsgan_loss([x], 0.9), lambda x: (x - 0.9).square().mean()),
    "hinge": (lambda x: hinge_loss([x], True), lambda x: F.relu(1 - x).mean()),
    "mean": (lambda x: mean_loss([x], [-2.0]), lambda x: x.mean() * -2),
    "logistic": (lambda x: logistic_loss([x], 0.9), lambda x: F.softplus(x).mean() - 0.9 * x.mean()),
}


@pytest.fixture(params=LOSSES)
def pair(request):
    return LOSSES[request.param]


def leaf(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def test_forward_mode_matches_plain_pytorch(pair):
    x, tangent = leaf(6).detach(), leaf(6, seed=1).detach()
    tangents = []
    for loss in pair:
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(loss(forward_ad.make_dual(x, tangent))).tangent)
        tangents += [torch.func.jvp(loss, (x,), (tangent,))[1], torch.func.jacfwd(loss)(x) @ tangent]
        tangents.append(torch.func.linearize(loss, x)[1](tangent))
    for value in tangents:
        torch.testing.assert_close(value, tangents[-1])


def test_forward_mode_over_backward_matches_plain_pytorch(pair):
    x, tangent = leaf(6), torch.tensor(0.7, dtype=torch.float64)
    results = []
    for loss in pair:
        value = loss(x)
        with forward_ad.dual_level():
            upstream = forward_ad.make_dual(torch.ones_like(value), tangent)
            results.append(forward_ad.unpack_dual(torch.autograd.grad(value, x, upstream)[0]).tangent)
    torch.testing.assert_close(*results)


def test_batched_gradients_jacobians_and_hessians_match_plain_pytorch(pair):
    x, upstream = leaf(6), leaf(4, seed=1).detach()
    results = [torch.autograd.grad(loss(x), x, upstream, is_grads_batched=True)[0] for loss in pair]
    torch.testing.assert_close(*results)
    for vectorize in (False, True):
        results = [
            torch.autograd.functional.jacobian(lambda x, f=f: f(x).expand(3), x, vectorize=vectorize) for f in pair
        ]
        torch.testing.assert_close(*results)
        results = [torch.autograd.functional.hessian(loss, x, vectorize=vectorize) for loss in pair]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name != "mean"]
)  # PyTorch's mean does not support it either
@pytest.mark.parametrize("keep_loss", [True, False], ids=["loss kept", "loss dropped"])
def test_a_gradient_penalty_without_the_loss_matches_plain_pytorch(name, keep_loss):
    results = []
    for loss in LOSSES[name]:
        x = leaf(6)
        value = loss(x * 2) if keep_loss else 3 * loss(x * 2)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        gradient.square().sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)


def test_a_gradient_can_be_differentiated_with_respect_to_the_inputs():
    x = leaf(6) * 2
    loss = multi_l1_loss([x], [torch.zeros_like(x)])
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(torch.autograd.grad(gradient.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("keep_loss", [True, False], ids=["loss kept", "loss dropped"])
@pytest.mark.parametrize("of_targets", [False, True])
def test_second_derivatives_of_l1_are_zero_for_non_leaf_tensors(keep_loss, of_targets):
    results = []
    for loss in (
        lambda x, y: multi_l1_loss([x, x[:2]], [y, y[:2]]),
        lambda x, y: F.l1_loss(x, y) + F.l1_loss(x[:2], y[:2]),
    ):
        x, y = leaf(6) * 2, leaf(6, seed=1) * 2
        value = loss(x, y) if keep_loss else 2 * loss(x, y)
        (gradient,) = torch.autograd.grad(value, y if of_targets else x, create_graph=True)
        results += torch.autograd.grad(gradient.sum(), [x, y])
    assert [torch.count_nonzero(result) for result in results] == [0, 0, 0, 0]


def test_a_second_differentiation_does_not_change_unrelated_leaves():
    table = torch.nn.Embedding(5, 6, sparse=True)
    x = leaf(6, dtype=torch.float32)
    loss = 2 * multi_l1_loss([x * 2, table(torch.tensor(1))], [torch.zeros(6), torch.zeros(6)])
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()
    assert table.weight.grad.is_sparse
    assert not table.weight.grad.to_dense().any()
    assert torch.equal(x.grad, torch.zeros(6))


def test_the_loss_is_freed_without_a_garbage_collection():
    x = leaf(6)
    loss = multi_l1_loss([x], [torch.zeros_like(x)])
    torch.autograd.grad(loss, x, create_graph=True)
    node = weakref.ref(loss.grad_fn)
    gc.disable()
    try:
        del loss
        assert node() is None
    finally:
        gc.enable()


def test_zero_of_does_not_copy_the_tensor():
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                new.append(result.nbytes)
            return result

    new = []
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    with Recorder():
        zero = zero_of(x)
    assert new == [4]
    assert torch.equal(torch.autograd.grad(zero, x)[0], torch.zeros_like(x))


def test_the_loss_can_be_modified_in_place():
    x = leaf(6)
    loss = multi_l1_loss([x], [torch.zeros_like(x)])
    loss *= 3
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(gradient, x.sign() / 2)


@pytest.mark.parametrize(
    "name", ["l1", "lsgan", "logistic"]
)  # under autocast, plain hinge and mean stay in half precision
def test_a_loss_scale_of_65536_does_not_overflow_in_double_backward_in_float16(name):
    # Multiples of 1/8 and their differences to the labels have small rounding errors in float16.
    x = (leaf(1000).detach() * 8).round().div(8).half().requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, plain = LOSSES[name]
    with torch.autocast("cpu", dtype=torch.float16):
        loss = ours(x)
    (gradient,) = torch.autograd.grad(loss * 65536.0, x, create_graph=True)
    (expected,) = torch.autograd.grad(plain(exact) * 65536.0, exact)
    torch.testing.assert_close(gradient.detach().double(), expected, rtol=2e-3, atol=0.1)
    assert gradient.requires_grad


def test_inference_tensors_can_be_mixed_with_tensors_that_require_a_gradient():
    x = leaf(6)
    with torch.inference_mode():
        y = torch.randn(6, dtype=torch.float64)
    for loss in (
        lsgan_loss([x, y], 1.0),
        hinge_loss([y, x], True),
        logistic_loss([x, y], 1.0),
        multi_l1_loss([x], [y]),
    ):
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_only_required_tensors_are_saved_and_only_required_gradients_written(monkeypatch):
    xs = [torch.randn(1000) for _ in range(12)]
    xs[3].requires_grad_()
    for loss in (
        lambda: multi_l1_loss(xs, [torch.zeros(1000)] * 12),
        lambda: multi_l1_loss([torch.zeros(1000)] * 12, xs),
        lambda: lsgan_loss(xs, 1.0),
        lambda: logistic_loss(xs, 1.0),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.nbytes) or t, lambda t: t):
            value = loss()
        assert sum(saved) in (4000, 4 * 1024 // 16)
        (gradient,) = torch.autograd.grad(value, xs[3])
        value = loss()
        written = []
        with _Recorder(written):
            value.backward()
        torch.testing.assert_close(xs[3].grad, gradient)
        assert written == [1]
        xs[3].grad = None


@pytest.mark.parametrize("inside", [False, True], ids=["leaves", "non-leaves"])
@pytest.mark.parametrize("name", ["l1", "l1 of targets", "lsgan", "logistic"])
def test_only_requested_gradients_are_written(name, inside):
    leaves = [torch.randn(1 << 18, requires_grad=True) for _ in range(6)]
    zeros = [torch.zeros(1 << 18)] * 6
    loss = {
        "l1": lambda xs: multi_l1_loss(xs, zeros),
        "l1 of targets": lambda xs: multi_l1_loss(zeros, xs),
        "lsgan": lambda xs: lsgan_loss(xs, 1.0),
        "logistic": lambda xs: logistic_loss(xs, 1.0),
    }[name]

    def written(differentiate):
        counts = []
        xs = [x * 1 for x in leaves] if inside else leaves
        with _Recorder(counts):
            gradients = differentiate(loss(xs), xs)
        return counts[-1], gradients

    count, every = written(lambda loss, xs: torch.autograd.grad(loss, xs))
    assert count == 6
    count, one = written(lambda loss, xs: torch.autograd.grad(loss, xs[3]))
    assert count == 1
    assert torch.equal(one[0], every[3])
    assert written(lambda loss, xs: loss.backward(inputs=[leaves[3], leaves[4]]))[0] == 2
    assert torch.equal(leaves[3].grad, every[3])
    assert leaves[5].grad is None
    assert written(lambda loss, xs: loss.backward())[0] == 6
    assert torch.equal(leaves[5].grad, every[5])


class _Recorder(TorchDispatchMode):
    """Record how many gradients each backward operator returns."""

    def __init__(self, written):
        super().__init__()
        self.written = written

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "pix2pixhd" in str(function) and isinstance(result, (list, tuple)):
            self.written.append(len(result))
        return result


def test_signs_are_packed_only_for_the_requested_pairs():
    xs, ys = [torch.randn(300) for _ in range(3)], [torch.zeros(300) for _ in range(3)]
    _, every = ops.multi_l1.default(xs, ys, [1.0] * 3, [0, 1, 2])
    _, some = ops.multi_l1.default(xs, ys, [1.0] * 3, [0, 2])
    assert torch.equal(some, torch.cat([every[:32], every[64:]]))
    xs[0].requires_grad_()
    ys[2].requires_grad_()
    with pix2pixhd.backend("fused"):
        multi_l1_loss(xs, ys, [1.0, 2.0, 3.0]).backward()
    torch.testing.assert_close(xs[0].grad, xs[0].detach().sign() / 300)
    torch.testing.assert_close(ys[2].grad, -xs[2].sign() / 100)
    assert xs[1].grad is None
    assert ys[0].grad is None
