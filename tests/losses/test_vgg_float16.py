"""The float16 gradient of VGGLoss neither overflows nor underflows for any weights, masks and sizes."""

import copy

import pytest
import torch

from pix2pixhd.losses import VGGLoss
from pix2pixhd.ops.perceptual_scaling import Float16Scale

from .helpers import WEIGHTS, random_images


def grad_scaler_gradient(criterion, fake, real, mask):
    """Returns the autocast gradient with the largest power-of-two loss scale that keeps it finite."""
    loss = criterion(fake, real, mask)
    for exponent in range(16, -40, -4):
        (gradient,) = torch.autograd.grad(loss * 2.0**exponent, fake, retain_graph=True)
        if gradient.isfinite().all():
            return gradient.double() / 2.0**exponent
    return pytest.fail("no scale gives a finite gradient")


def check(vgg, size, distance=1.0, mask=None, **options):
    """Checks that the error against float64 is at most twice that of autocast with a ``GradScaler``."""
    fake, real = random_images(1, 3, size, size).requires_grad_(), random_images(1, 3, size, size, seed=1)
    real = fake.detach() + distance * (real - fake.detach())
    exact = VGGLoss(vgg=copy.deepcopy(vgg), keep_activations=True, **options).double()
    (expected,) = torch.autograd.grad(exact(fake.double(), real.double(), mask), fake)
    plain = VGGLoss(vgg=vgg, keep_activations=True, dtype=torch.float16, **options)
    theirs = grad_scaler_gradient(plain, fake, real, mask)
    (ours,) = torch.autograd.grad(VGGLoss(vgg=vgg, dtype=torch.float16, **options)(fake, real, mask), fake)
    expected = expected.double()
    assert (ours.double() - expected).norm() <= 2.0 * (theirs - expected).norm()
    assert (ours.double() - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize(
    ("size", "criterion", "factor"),
    [(16, "l1", 40.0), (64, "l1", 100.0), (16, "mse", 60.0), (16, "mse", 1e6), (16, "l1", 1e-6), (16, "mse", 1e-6)],
)
def test_large_and_small_weights_keep_the_gradient_accurate(vgg, size, criterion, factor):
    check(vgg, size, criterion=criterion, weights=[factor * w for w in WEIGHTS])


@pytest.mark.parametrize("weights", [[1e5, 1, 1, 1, 1], [1, 1, 1, 1, 1e5], [1, 1e-7, 1, 0, 1e-7], [0, 0, 0, 0, 1]])
def test_weights_of_different_magnitude_keep_the_gradient_accurate(vgg, weights):
    check(vgg, 16, weights=weights)


@pytest.mark.parametrize("criterion", ["l1", "mse"])
@pytest.mark.parametrize("factor", [1e5, 1e-5])
def test_large_and_small_masks_keep_the_gradient_accurate(vgg, criterion, factor):
    mask = factor * torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    check(vgg, 16, mask=mask, criterion=criterion)


def test_differences_near_zero_keep_the_gradient_accurate(vgg):
    check(vgg, 16, distance=0.01, criterion="mse")


def test_gradients_that_grow_or_shrink_across_layers_stay_accurate(vgg):
    for shallow, deep in ((2.5, 0.4), (0.4, 2.5), (0.5, 0.5)):
        other = copy.deepcopy(vgg)
        for k, layer in enumerate(other.convolutions()):
            layer.weight *= shallow if k < 6 else deep
        check(other, 16)


def test_each_image_has_its_own_scale(vgg):
    """An outlier in one image must not underflow the gradients of the others."""
    fake, real = random_images(2, 3, 32, 32), random_images(2, 3, 32, 32, seed=1)
    mask = torch.ones(2, 1, 32, 32)
    mask[0] = 1e12
    criterion = VGGLoss(vgg=vgg, dtype=torch.float16, reduction="none")
    together, alone = fake.clone().requires_grad_(), fake[1:].clone().requires_grad_()
    (a,) = torch.autograd.grad(criterion(together, real, mask).sum(), together)
    (b,) = torch.autograd.grad(criterion(alone, real[1:], mask[1:]).sum(), alone)
    assert (a[1:] - b).norm() < 1e-3 * b.norm()
    assert a[0].isfinite().all()


def test_nan_in_the_mask_affects_only_its_image(vgg):
    fake, real = random_images(2, 3, 32, 32).requires_grad_(), random_images(2, 3, 32, 32, seed=1)
    mask = torch.ones(2, 1, 32, 32)
    mask[0, 0, 5, 5] = float("nan")
    (gradient,) = torch.autograd.grad(VGGLoss(vgg=vgg, dtype=torch.float16)(fake, real, mask), fake)
    assert gradient[0].isnan().any()
    assert gradient[1].isfinite().all()


def test_scale_is_a_power_of_two_for_any_peak():
    peaks = torch.tensor([0.0, 1e-30, 1e-7, 0.99, 1.0, 31.0, 1e30, torch.inf, torch.nan])
    scale = Float16Scale([None, peaks, None], len(peaks), peaks.device)
    factors = scale.weigh(None, torch.zeros(len(peaks), 32, 1, 1))[:, 0, 0]
    assert (torch.frexp(factors).mantissa == 0.5).all()
    scaled = (factors * peaks)[2:7]
    assert ((scaled >= 2.0**4) & (scaled < 2.0**5)).all()
    gradient = torch.rand(len(peaks), 32, 2, 2).half()
    before = gradient / factors.view(-1, 1, 1, 1)
    after = scale.undo(scale.adapt(gradient.clone(), 0))
    torch.testing.assert_close(after[2:7], before[2:7])
