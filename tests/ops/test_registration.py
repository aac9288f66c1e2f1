"""PyTorch's requirements of operators: opcheck, gradcheck, compile, functorch, double backward."""

import pytest
import torch
from covertable import make as covering_rows
from torch.library import opcheck

import pix2pixhd
from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss
from pix2pixhd.ops import norm_act
from pix2pixhd.ops.multi_l1 import Layouts

ops = torch.ops.pix2pixhd


def samples(requires_grad, empty=False):
    generator = torch.Generator().manual_seed(0)

    def make(shape, dtype=torch.float32, **layout):
        x = torch.randn(shape, generator=generator).to(dtype=dtype, **layout)
        return x.requires_grad_(requires_grad)

    yield [make((2, 3, 5, 4)), make((7,))]
    yield [make((2, 3, 5, 4), memory_format=torch.channels_last)]
    yield [make((33,), torch.bfloat16), make((300,), torch.float16), make((2, 2), torch.float64)]
    yield [make((4, 4)), make(())]
    if empty:  # the loss is NaN, which opcheck does not consider equal to itself
        yield [make((0, 3)), make((4, 4))]
    yield [make((4, 6)).t()]
    for crop in CROPS.values():
        yield [crop(make((2, 8, 6, 6)).detach()).requires_grad_(requires_grad)]


# Non-dense tensors whose memory order is not contiguous.
CROPS = {
    "channels-last crop": lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:-1],
    "permuted slice": lambda x: x[0].permute(2, 0, 1)[:, ::2],
}


# An opcheck takes 0.2 seconds. Fake kernels treat the options independently, so every pair of values occurs, not every
# combination.
@pytest.mark.parametrize("requires_grad", [False, True])
def test_multi_l1_passes_opcheck(requires_grad):
    for k, inputs in enumerate(samples(requires_grad)):
        targets = [torch.randn_like(x) for x in inputs]
        every = list(range(len(inputs)))
        opcheck(ops.multi_l1.default, (inputs, targets, [0.5] * len(inputs), every))
        if not requires_grad:
            opcheck(ops.multi_l1.default, (inputs, targets, [0.5] * len(inputs), every[1:] if k % 2 == 0 else []))


def test_multi_l1_backward_passes_opcheck():
    for k, inputs in enumerate(samples(False, empty=True)):
        weights = [0.5] * len(inputs)
        every = list(range(len(inputs)))
        _, signs = ops.multi_l1.default(inputs, [torch.zeros_like(x) for x in inputs], weights, every)
        rest = Layouts.of(inputs)
        arguments = (torch.tensor(2.0), signs, weights, rest.sizes, rest.strides, rest.ndims, rest.dtypes)
        opcheck(ops.multi_l1_backward.default, (*arguments, every if k % 2 == 0 else every[-1:]))
        expected = ops.multi_l1_backward.default(*arguments, every[-1:])[0]
        last = torch.empty_like(expected)
        opcheck(ops.multi_l1_backward_out.default, (*arguments, every[-1:], [last]))
        ops.multi_l1_backward_out.default(*arguments, every[-1:], [last])
        assert torch.equal(last, expected)
        if all(x.numel() for x in inputs):
            opcheck(ops.multi_l1_out.default, (inputs, inputs, weights, every, torch.empty_like(signs)))


KINDS = range(4)


def pointwise_arguments(inputs, kind):
    return inputs, [1.0] * len(inputs), [0.5] * len(inputs), kind


@pytest.mark.parametrize("requires_grad", [False, True])
def test_multi_pointwise_passes_opcheck(requires_grad):
    for k, inputs in enumerate(samples(requires_grad)):
        opcheck(ops.multi_pointwise.default, pointwise_arguments(inputs, KINDS[k % 4]))


def test_multi_pointwise_backward_passes_opcheck():
    for k, inputs in enumerate(samples(False)):
        checked = torch.tensor(2.0), *pointwise_arguments(inputs, KINDS[k % 4])
        opcheck(ops.multi_pointwise_backward.default, checked)
        # opcheck makes dense copies of non-dense tensors
        if all(map(torch.ops.aten.is_non_overlapping_and_dense, inputs)):
            out = [torch.empty_like(gradient) for gradient in ops.multi_pointwise_backward.default(*checked)]
            opcheck(ops.multi_pointwise_backward_out.default, (*checked, out))
        for kind in KINDS:
            arguments = torch.tensor(2.0), *pointwise_arguments(inputs, kind)
            expected = ops.multi_pointwise_backward.default(*arguments)
            out = [torch.empty_like(gradient) for gradient in expected]
            ops.multi_pointwise_backward_out.default(*arguments, out)
            assert all(map(torch.equal, out, expected))


NORM_ACT = {
    "dtype": [torch.float32, torch.bfloat16],
    "layout": [torch.contiguous_format, torch.channels_last],
    "view": ["dense", "crop", "expanded"],
    "per_image": [True, False],
    "affine": [True, False],
    "needs": [True, False],
}


def norm_act_cases():
    """Returns cases that contain every pair of values."""
    positions = {name: list(range(len(values))) for name, values in NORM_ACT.items()}
    return [{name: NORM_ACT[name][row[name]] for name in NORM_ACT} for row in covering_rows(positions)]


@pytest.mark.parametrize("case", norm_act_cases(), ids=lambda case: "-".join(map(str, case.values())))
def test_norm_act_passes_opcheck(case):
    dtype, per_image = case["dtype"], case["per_image"]
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype, memory_format=case["layout"])
    images = {"dense": x, "crop": x[:, :, 1:, 1:], "expanded": x[:, :1].expand_as(x)}[case["view"]]
    opcheck(ops.norm_statistics.default, (images, per_image, 1e-5))
    mean, rstd, _ = ops.norm_statistics.default(images, per_image, 1e-5)
    weight, bias = torch.ones(3), torch.zeros(3, dtype=dtype)
    optional, padding = ((mean, rstd, weight, bias), [1, 2, 3, 0]) if case["affine"] else ((None,) * 4, [0] * 4)
    rest = (2, 0.2, padding, 1)
    opcheck(ops.norm_act.default, (images, *optional, images, *rest))
    y = ops.norm_act.default(images, *optional, None, *rest)
    grad = torch.ones(()).to(dtype).expand_as(y)
    opcheck(ops.norm_act_backward.default, (grad, images, False, *optional, *rest, *([case["needs"]] * 4)))


def test_norm_act_compiles_without_a_graph_break():
    torch._dynamo.reset()

    def chain(x, grad):
        mean, rstd, _ = norm_act.norm_statistics(x * 2)
        arguments = (mean, rstd, None, None)
        y = norm_act.norm_act(x * 2, *arguments, activation=1, padding=(1, 1, 1, 1), padding_mode=1)
        return y, norm_act.norm_act_backward(
            grad, x * 2, False, *arguments, activation=1, padding=(1, 1, 1, 1), padding_mode=1
        )[0]

    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(chain, fullgraph=True, backend=backend, dynamic=True)
        for size in (5, 8):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(2, 3, size, 6).to(memory_format=layout)
                grad = torch.randn(2, 3, size + 2, 8)
                torch.testing.assert_close(compiled(x, grad), chain(x, grad))


LOSSES = {
    "l1": lambda xs: multi_l1_loss(xs, [torch.full_like(x, 0.3) for x in xs], [0.5, 2.0]),
    "l1 of targets": lambda xs: multi_l1_loss([torch.full_like(x, 0.3) for x in xs], xs, [0.5, 2.0]),
    "lsgan": lambda xs: lsgan_loss(xs, [1.0, 0.0], [0.5, 2.0]),
    "hinge": lambda xs: hinge_loss(xs, [True, False], [0.5, 2.0]),
    "mean": lambda xs: mean_loss(xs, [0.5, -2.0]),
    "logistic": lambda xs: logistic_loss(xs, [0.9, 0.0], [0.5, 2.0]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_gradgradcheck_pass(name):
    generator = torch.Generator().manual_seed(0)  # avoids ties and edges: |x − 0.3|, |1 − |x|| > 0.05
    xs = [torch.rand(s, generator=generator, dtype=torch.float64) * 0.5 + 0.36 for s in [(3, 4), (5,)]]
    xs = [(x * (-1) ** torch.arange(x.numel(), dtype=torch.float64).view(x.shape)).requires_grad_() for x in xs]
    assert torch.autograd.gradcheck(lambda *a: LOSSES[name](list(a)), xs)
    assert torch.autograd.gradgradcheck(lambda *a: LOSSES[name](list(a)), xs)


@pytest.mark.parametrize("name", LOSSES)
def test_double_backward_matches_the_reference(name):
    results = []
    for backend in ("fused", "reference"):
        generator = torch.Generator().manual_seed(1)
        xs = [torch.randn(s, generator=generator).requires_grad_() for s in [(3, 4), (5,)]]
        t = torch.tensor(2.0, requires_grad=True)
        with pix2pixhd.backend(backend):
            first = torch.autograd.grad(t * LOSSES[name](xs), xs, create_graph=True)
            second = torch.autograd.grad(sum((g**3).sum() for g in first), [t, *xs], allow_unused=True)
        results.append([torch.zeros_like(v) if g is None else g for g, v in zip(second, [t, *xs], strict=True)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(name, backend):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(2)
    xs = [torch.randn(s, generator=generator).requires_grad_() for s in [(2, 3, 8, 4), (130,)]]
    compiled = torch.compile(lambda a: LOSSES[name]([x * 2 for x in a]) * 3, fullgraph=True, backend=backend)
    eager = LOSSES[name]([x * 2 for x in xs]) * 3
    loss = compiled(xs)
    torch.testing.assert_close(loss, eager)
    for a, b in zip(torch.autograd.grad(loss, xs), torch.autograd.grad(eager, xs), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(compiled(xs), eager.detach())


@pytest.mark.parametrize("name", ["l1", "lsgan"])
@torch._inductor.config.patch(force_disable_caches=True)  # the cache key does not include the fake kernels
def test_inductor_receives_the_right_gradient_strides_for_crops(name):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(4)
    xs = [crop(torch.randn(2, 8, 6, 6, generator=generator)).detach().requires_grad_() for crop in CROPS.values()]
    eager = torch.autograd.grad(LOSSES[name](xs), xs)
    compiled = torch.compile(lambda a: LOSSES[name](a), fullgraph=True)(xs)
    for a, b in zip(torch.autograd.grad(compiled, xs), eager, strict=True):
        torch.testing.assert_close(a, b)


def test_changing_batch_sizes_compile_at_most_two_graphs():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, y: multi_l1_loss([x], [y]) + lsgan_loss([x], 1.0), backend=counter, fullgraph=True
    )
    for batch in range(2, 9):
        x = torch.randn(batch, 3, 4, 4, requires_grad=True)
        loss = compiled(x, torch.zeros_like(x))
        loss.backward()
        torch.testing.assert_close(x.grad, torch.sign(x.detach()) / x.numel() + 2 / x.numel() * (x.detach() - 1))
    assert counter.frame_count <= 2, "one static, one dynamic"


def test_autocast_inside_compile_gives_the_eager_dtype():
    torch._dynamo.reset()

    def step(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return multi_l1_loss([x], [y])

    x = torch.randn(64, dtype=torch.bfloat16, requires_grad=True)
    loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x, torch.zeros(64))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, step(x, torch.zeros(64)))


def test_functorch_transforms_match_analytic_derivatives():
    x, y = torch.randn(4, 5), torch.zeros(4, 5)
    torch.testing.assert_close(torch.func.grad(lambda a: multi_l1_loss([a], [y]))(x), torch.sign(x) / 20)
    per_row = torch.func.vmap(lambda a: lsgan_loss([a], 1.0))(x)
    torch.testing.assert_close(per_row, ((x - 1) ** 2).mean(1))
    hessian = torch.func.hessian(lambda a: lsgan_loss([a], 1.0))(torch.zeros(3))
    torch.testing.assert_close(hessian, 2 / 3 * torch.eye(3))


def test_the_loss_can_be_exported():
    class Loss(torch.nn.Module):
        def forward(self, x, y):
            return multi_l1_loss([x], [y])

    x, y = torch.randn(6), torch.zeros(6)
    torch.testing.assert_close(torch.export.export(Loss(), (x, y)).module()(x, y), x.abs().mean())


def test_fake_tensors_have_the_right_shapes_and_dtypes():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
        loss = multi_l1_loss([x], [x.float()])
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        assert torch.autograd.grad(loss, x)[0].dtype == torch.bfloat16
