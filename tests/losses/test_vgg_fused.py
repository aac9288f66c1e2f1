"""The fused VGGLoss, which saves no activations, compared with ``keep_activations=True``."""

import copy

import pytest
import torch

from pix2pixhd.losses import VGGLoss
from pix2pixhd.ops import perceptual_engine

from .helpers import random_images


@pytest.fixture(scope="module")
def wide(vgg):
    """A float64 VGG: both implementations resolve near ties the same way and must agree to 1e-12."""
    return copy.deepcopy(vgg).double()


def both(vgg, **options):
    return VGGLoss(vgg=vgg, **options), VGGLoss(vgg=vgg, keep_activations=True, **options)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 32, 48), (1, 3, 17, 31), (3, 1, 47, 33), (1, 3, 63, 16)])
@pytest.mark.parametrize("normalize", ["none", "imagenet"])
def test_value_and_gradient_match_autograd_at_any_size(wide, shape, normalize):
    fake, real = random_images(*shape).double().requires_grad_(), random_images(*shape, seed=1).double()
    fused, plain = (criterion.double() for criterion in both(wide, normalize=normalize))
    a, b = fused(fake, real), plain(fake, real)
    assert a.dtype == torch.float64
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(-3.0 * a, fake), torch.autograd.grad(-3.0 * b, fake)
    assert ours.shape == fake.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_ties_dead_units_and_nan_match_autograd(wide):
    fake = random_images(1, 3, 32, 32).double()
    real = fake.clone()
    real[..., :16] += 0.5  # the right half has ties, also in deep layers
    fake.requires_grad_()
    fused, plain = both(wide)
    dead = copy.deepcopy(wide)
    for index in (2, 7):
        dead.features[index].bias.data -= 100.0  # all later ReLUs are dead and all feature maps are equal
    for one, other in ((fused, plain), both(dead)):
        (ours,), (theirs,) = (torch.autograd.grad(criterion(fake, real), fake) for criterion in (one, other))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)
    assert torch.isnan(fused(fake * float("nan"), real))
    (zero,) = torch.autograd.grad(fused(fake, fake.detach()), fake)
    assert (zero == 0).all()


def test_only_the_gradient_is_saved_for_backward(vgg):
    fake, real = random_images(1, 3, 64, 64).requires_grad_(), random_images(1, 3, 64, 64, seed=1)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        loss = VGGLoss(vgg=vgg)(fake, real)
    saved.pop(fake.data_ptr(), None)  # the image is saved for the error on double backward
    assert sum(t.nbytes for t in saved.values()) == fake.nbytes
    loss.backward()


def test_without_gradient_only_the_value_is_computed(vgg, monkeypatch):
    monkeypatch.setattr(perceptual_engine.TilePass, "backward", lambda *a: pytest.fail("computed a gradient"))
    fake, real = random_images(1, 3, 32, 32), random_images(1, 3, 32, 32, seed=1)
    fused, plain = both(vgg)
    assert not fused(fake, real).requires_grad
    with torch.no_grad():
        value = fused(fake.requires_grad_(), real)
    torch.testing.assert_close(value, plain(fake, real).detach(), rtol=1e-6, atol=0)


def test_two_backward_passes_are_independent(vgg):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    loss = VGGLoss(vgg=vgg)(fake, real)
    (first,) = torch.autograd.grad(loss, fake, torch.tensor(1.0), retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, fake, torch.tensor(-2.0))
    torch.testing.assert_close(second, -2.0 * expected)


def test_double_backward_error_names_keep_activations(vgg):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    fused, plain = both(vgg)
    (gradient,) = torch.autograd.grad(fused(fake, real), fake, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated twice .*keep_activations=True"):
        torch.autograd.grad(gradient.sum(), fake)
    torch.autograd.grad(torch.autograd.grad(plain(fake, real), fake, create_graph=True)[0].sum(), fake)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.6), (torch.float16, 0.2)])
def test_autocast_is_as_accurate_as_autograd(vgg, dtype, error):
    """The error against float32 is no larger than with autograd. It is caused by sign flips at near ties."""
    fake, real = random_images(1, 3, 64, 64).requires_grad_(), random_images(1, 3, 64, 64, seed=1)
    fused, plain = both(vgg)
    (exact,) = torch.autograd.grad(plain(fake, real), fake)
    gradients = []
    for criterion in (fused, plain):
        with torch.autocast("cpu", dtype=dtype):
            loss = criterion(fake, real)
        assert loss.dtype == torch.float32
        # Scaled like a GradScaler: the unscaled float16 gradient of autograd underflows.
        (gradient,) = torch.autograd.grad(loss * 2.0**16, fake)
        gradients.append(gradient / 2.0**16)
    ours, theirs = ((g - exact).norm() / exact.norm() for g in gradients)
    assert ours < 1.2 * theirs + 1e-3
    assert ours < error


def test_tiny_gradients_do_not_underflow_in_float16(vgg):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = VGGLoss(vgg=vgg, weights=[1e-6 * w for w in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)])(fake, real)
    (gradient,) = torch.autograd.grad(loss, fake)
    (exact,) = torch.autograd.grad(VGGLoss(vgg=vgg)(fake, real), fake)
    assert (gradient * 1e6 - exact).norm() / exact.norm() < 0.1
    assert gradient.abs().max() < 1e-8


def test_gradient_does_not_depend_on_the_strides_of_the_image(wide):
    fake, real = random_images(2, 3, 32, 32).double(), random_images(2, 3, 32, 32, seed=1).double()
    fused = VGGLoss(vgg=wide).double()
    expected = None
    for view in (
        fake,
        fake.contiguous(memory_format=torch.channels_last),
        fake.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([fake, fake], dim=3)[..., :32],
    ):
        leaf = view.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(fused(leaf, real), leaf)
        expected = gradient if expected is None else expected
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-18)


def test_compiles_without_a_graph_break(vgg):
    torch._dynamo.reset()
    fused = VGGLoss(vgg=vgg)
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    compiled = torch.compile(lambda x, y: fused(torch.tanh(x), y) * 2.0, fullgraph=True, backend="aot_eager")
    (a,), (b,) = (
        torch.autograd.grad(f(fake, real), fake) for f in (compiled, lambda x, y: fused(torch.tanh(x), y) * 2.0)
    )
    torch.testing.assert_close(a, b)


def test_perceptual_loss_passes_opcheck(vgg):
    weights, biases, layer_kinds = vgg.conv_stack()
    fake, real = random_images(1, 3, 16, 16).requires_grad_(), random_images(1, 3, 16, 16, seed=1)
    crop = random_images(1, 3, 17, 18).contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:-1]  # not dense
    permuted = random_images(16, 32, 3, 1).permute(3, 2, 0, 1)[..., ::2]
    layer_weights = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0]
    network = (weights, biases, layer_weights, layer_kinds)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for first, options in (
        ((fake, real, [], None), ("l1", [], torch.float32, None, True)),
        ((fake, real, [], torch.rand(1, 1, 16, 16)), ("mse", [], torch.bfloat16, 10**8, True)),
        ((fake, real, [], None), ("lpips", [torch.rand(x.shape[1]) for x in vgg(real)], torch.float32, None, True)),
        ((fake, None, vgg(real), None), ("l1", [], torch.float32, None, True)),
        ((fake.detach(), real, [], None), ("l1", [], torch.float32, None, False)),
        ((crop.detach().requires_grad_(), permuted, [], None), ("l1", [], torch.float32, None, True)),
        ((permuted.detach().requires_grad_(), crop, [], None), ("l1", [], torch.bfloat16, None, True)),
    ):
        arguments = (*first, *network, *options)
        torch.library.opcheck(torch.ops.pix2pixhd.perceptual_loss.default, arguments, test_utils=tests)


def test_training_losses_match_autograd_for_twenty_steps(vgg):
    curves = []
    for keep in (False, True):
        torch.manual_seed(0)
        generator = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 1))
        optimizer = torch.optim.SGD(generator.parameters(), lr=0.05)
        criterion = VGGLoss(vgg=vgg, keep_activations=keep)
        label, real = random_images(2, 3, 32, 32), random_images(2, 3, 32, 32, seed=1)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = criterion(torch.tanh(generator(label)), real)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(*curves, rtol=1e-4, atol=0)
