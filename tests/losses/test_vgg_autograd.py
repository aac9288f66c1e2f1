"""VGGLoss with PyTorch's autograd features, transforms and compiler, compared with the autograd implementation."""

import functools

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from pix2pixhd.losses import GeneratorLoss, VGGLoss
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.ops import perceptual_engine

from .helpers import random_images


@pytest.fixture(scope="module")
def wide():
    with pytest.warns(UserWarning, match="random weights"):
        return load_vgg("random", layers=["relu1_1", "relu2_1"]).double()


def inputs(batch=3, size=(16, 20)):
    fake, real = random_images(batch, 3, *size).double(), random_images(batch, 3, *size, seed=1).double()
    return fake.requires_grad_(), real


def both(vgg, **options):
    return VGGLoss(vgg=vgg, **options), VGGLoss(vgg=vgg, keep_activations=True, **options)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients_match_autograd(wide, create_graph):
    fake, real = inputs()
    upstream = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        torch.autograd.grad(
            criterion(fake, real), fake, upstream, is_grads_batched=True, create_graph=create_graph
        )[0]
        for criterion in both(wide, reduction="none")
    )  # fmt: skip
    same(ours, theirs)


def test_vectorized_jacobian_matches_autograd(wide):
    fake, real = inputs(2, (16, 16))
    ours, theirs = (
        torch.autograd.functional.jacobian(lambda x, c=criterion: c(x, real), fake.detach(), vectorize=True)
        for criterion in both(wide, reduction="none")
    )
    same(ours, theirs)


@pytest.mark.parametrize("criterion", ["l1", "mse"])
def test_forward_mode_returns_the_directional_derivative(wide, criterion):
    fake, real = inputs()
    tangent = random_images(*fake.shape, seed=2).double()
    fused, plain = both(wide, criterion=criterion)
    (gradient,) = torch.autograd.grad(plain(fake, real), fake)
    with fwAD.dual_level():
        dual = fused(fwAD.make_dual(fake.detach(), tangent), real)
        same(fwAD.unpack_dual(dual).tangent, (gradient * tangent).sum())
    same(torch.func.jvp(lambda x: fused(x, real), (fake.detach(),), (tangent,))[1], (gradient * tangent).sum())


def test_grad_vmap_and_hessian_match_autograd(wide):
    fake, real = inputs()
    fused, plain = both(wide, criterion="mse", reduction="none")
    (gradient,) = torch.autograd.grad(plain(fake, real).sum(), fake)
    fake = fake.detach()

    def one(x, y):
        return fused(x[None], y[None])[0]

    same(torch.func.grad(lambda x: fused(x, real).sum())(fake), gradient)
    same(torch.vmap(one)(fake, real), plain(fake, real))
    same(torch.vmap(torch.func.grad(one))(fake, real), gradient)

    def curvature(criterion):
        def along(step):
            return criterion(fake + step, real).sum()

        return torch.func.hessian(along)(torch.tensor(0.01, dtype=torch.float64))

    same(curvature(fused), curvature(plain))


def test_second_derivative_with_respect_to_the_upstream_gradient_is_exact(wide):
    fake, real = inputs()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    found = []
    for criterion in both(wide):
        (gradient,) = torch.autograd.grad(criterion.weighted(fake, real, weight), fake, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    same(*found)


def test_learned_weight_receives_its_gradient(wide):
    fake, real = inputs()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    fused, _ = both(wide)
    same(torch.autograd.grad(fused.weighted(fake, real, weight), weight)[0], fused(fake, real).detach())


def test_gradients_are_computed_only_where_required(wide, monkeypatch):
    fake, real = inputs()
    fused, _ = both(wide)
    fused(fake, real.requires_grad_()).backward()
    assert fake.grad is not None
    assert real.grad is None
    monkeypatch.setattr(perceptual_engine.TilePass, "backward", lambda *a: pytest.fail("computed a gradient"))
    assert not fused(fake.detach(), real).requires_grad
    mask = torch.ones(16, 20, requires_grad=True)
    with pytest.raises(ValueError, match=r"mask requires a gradient.*pass mask\.detach\(\)"):
        fused(fake, real.detach(), mask)


def test_images_and_features_from_inference_mode_are_accepted(wide):
    fake, real = inputs()
    fused, plain = both(wide)
    expected = torch.autograd.grad(plain(fake, real), fake)
    with torch.inference_mode():
        inside = real.clone()
        features = fused.features(inside)
        same(fused(fake.detach().clone(), inside), plain(fake, real).detach().clone())
    same(torch.autograd.grad(fused(fake, inside), fake), expected)
    same(torch.autograd.grad(fused(fake, features), fake), expected)


def contiguous(function):
    @functools.wraps(function)
    def call(*arguments, **options):
        return function(*arguments, **options).contiguous()

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_gradient_does_not_depend_on_the_memory_format_that_convolutions_return(wide, monkeypatch, dtype):
    fake, real = inputs()
    vgg = wide if dtype == torch.float64 else in_float32(wide)
    options = {} if dtype == torch.float64 else {"dtype": dtype}
    fake, real = fake.detach().to(next(vgg.parameters()).dtype).requires_grad_(), real.to(next(vgg.parameters()).dtype)
    fused = VGGLoss(vgg=vgg, **options)
    expected = torch.autograd.grad(fused(fake, real), fake)
    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, contiguous(getattr(F, name)))
    torch.testing.assert_close(torch.autograd.grad(fused(fake, real), fake), expected, rtol=1e-6, atol=0)


def in_float32(vgg):
    other = type(vgg)(layers=vgg.layers)
    other.load_state_dict(vgg.state_dict())
    return other


def test_gradient_without_onednn_matches_autograd(wide):
    fake, real = inputs()
    vgg = in_float32(wide)
    fake, real = fake.detach().float().requires_grad_(), real.float()
    fused, plain = both(vgg)
    with torch.backends.mkldnn.flags(enabled=False):
        ours, theirs = (torch.autograd.grad(criterion(fake, real), fake)[0] for criterion in (fused, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("criterion", ["l1", "mse"])
@pytest.mark.parametrize("masked", [False, True])
def test_empty_batch_gives_nan_and_an_empty_gradient(vgg, dtype, criterion, masked):
    fake = torch.zeros(0, 3, 32, 32, requires_grad=True)
    mask = torch.ones(32, 32) if masked else None
    for reduction in ("mean", "none"):
        for one in both(vgg, dtype=dtype, criterion=criterion, reduction=reduction):
            loss = one(fake, fake.detach(), mask)
            assert loss.dtype == torch.float32
            assert loss.shape == (() if reduction == "mean" else (0,))
            assert loss.isnan().all()
            assert torch.autograd.grad(loss.sum(), fake)[0].shape == fake.shape


def transposed(x):
    return x.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 300), (2, 1, 17, 16)])
@pytest.mark.parametrize("layout", [lambda x: x.contiguous(memory_format=torch.channels_last), transposed])
def test_images_with_ambiguous_strides_match_autograd(vgg, shape, layout):
    """Shapes with ambiguous strides: one-pixel and one-row feature maps, single images, one channel."""
    fake, real = random_images(*shape), random_images(*shape, seed=1)
    found = []
    for criterion in both(vgg):
        leaf = layout(fake).detach().requires_grad_()
        assert leaf.shape == shape
        found.append(torch.autograd.grad(criterion(leaf, layout(real)), leaf)[0])
    assert (found[0] - found[1]).norm() < 2e-2 * found[1].norm()  # float32 rounding changes gradients at near ties


@pytest.mark.parametrize("options", [{}, {"scale_weights": (1.0, 1.0), "normalize": "imagenet"}])
def test_new_weights_and_sizes_compile_at_most_one_more_graph_each(wide, options):
    torch._dynamo.reset()
    criterion = VGGLoss(vgg=wide, **options)
    counter = CompileCounter()
    compiled = torch.compile(lambda x, y, w: criterion.weighted(x * 1.0, y, w), fullgraph=True, backend=counter)
    for k in range(4):
        fake, real = inputs(1, (32, 36))
        weight = 0.3 + 0.1 * k
        a, b = compiled(fake, real, weight), criterion.weighted(fake, real, weight)
        torch.testing.assert_close(a, b)
    assert counter.frame_count <= 2
    for k in range(1, 5):
        fake, real = inputs(1, (32 + 4 * k, 36 + 6 * k))
        compiled(fake, real, 0.5)
    assert counter.frame_count <= 3


def test_annealed_lambda_vgg_recompiles_no_more_than_a_plain_module_attribute(wide):
    """PyTorch decides whether the value of a module attribute is a constant of the graph."""
    fake, real = inputs(1, (16, 16))
    counts = []
    plain = torch.nn.Module()
    objective = GeneratorLoss(lambda_feat=0.0, lambda_vgg=1.0, vgg=VGGLoss(vgg=wide))
    for module, name, call in (
        (plain, "factor", lambda x: F.l1_loss(x, real) * plain.factor),
        (objective, "lambda_vgg", lambda x: objective.perceptual(x, real)),
    ):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(call, backend=counter)
        for k in range(4):
            setattr(module, name, 0.3 + 0.1 * k)
            compiled(fake)
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]
