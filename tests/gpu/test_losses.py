"""The losses on the GPU against plain PyTorch on the GPU, in float64 where near ties would differ otherwise."""

import copy

import pytest
import torch

import pix2pixhd
from pix2pixhd.losses import DiscriminatorLoss, FeatureMatchingLoss, GANLoss, GeneratorLoss, L1Loss, VGGLoss

from ..losses.conftest import predictions
from ..losses.helpers import random_images


def both_backends(run):
    """The results of ``run`` with the fused and with the reference backend."""
    with pix2pixhd.backend("fused"):
        ours = run()
    with pix2pixhd.backend("reference"):
        return ours, run()


def scales(device, seed, **options):
    found = predictions(num_D=3, seed=seed, **options)
    return [[x.detach().to(device).requires_grad_() for x in scale] for scale in found]


def leaves(*many):
    return [x for scales_ in many for scale in scales_ for x in scale]


@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "hinge", "wgan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gan_losses_match_plain_pytorch(mode, dtype, device):
    pred = scales(device, 0, dtype=dtype)

    def run():
        loss = GANLoss(mode=mode)(pred, True) + 2.0 * GANLoss(mode=mode)(pred, False)
        return loss.detach(), torch.autograd.grad(loss, [scale[-1] for scale in pred])

    torch.testing.assert_close(*both_backends(run), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("preset", ["paper", "nvidia", "spade", "imaginaire", "mlops"])
def test_objectives_of_all_presets_match_plain_pytorch(preset, device, vgg):
    pred_fake, pred_real = (scales(device, seed, dtype=torch.float64) for seed in (0, 1))
    fake, real = (random_images(2, 3, 33, 48, seed=seed).double().to(device) for seed in (0, 1))
    fake.requires_grad_()
    loss_G = GeneratorLoss(preset=preset, vgg=copy.deepcopy(vgg).double()).to(device).double()
    loss_D = DiscriminatorLoss(preset=preset)

    def run():
        g, d = loss_G(pred_fake, pred_real, fake, real), loss_D(pred_fake, pred_real)
        wrt = [*leaves(pred_fake), fake]
        gradients = torch.autograd.grad(g.total + d.total, wrt)
        return [*(term.detach() for term in (*g, *d)), *gradients]

    torch.testing.assert_close(*both_backends(run), rtol=1e-9, atol=1e-14)


def test_feature_matching_and_l1_match_plain_pytorch(device):
    pred_fake, pred_real = (scales(device, seed) for seed in (0, 1))
    x, y = (random_images(2, 3, 40, 41, seed=seed).to(device) for seed in (0, 1))
    x.requires_grad_()

    def run():
        loss = FeatureMatchingLoss()(pred_fake, pred_real) + L1Loss()(x, y)
        found = [z for scale in pred_fake for z in scale[:-1]]
        return loss.detach(), torch.autograd.grad(loss, [*found, x])

    torch.testing.assert_close(*both_backends(run), rtol=1e-6, atol=1e-9)


OPTIONS = [
    {},
    {"criterion": "mse"},
    {"reduction": "none"},
    {"scale_weights": (1.0, 0.5)},
    {"normalize": "imagenet", "input_range": (0.0, 1.0)},
    {"memory_limit": 24 * 2**20},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_vgg_loss_matches_plain_pytorch(options, masked, device, vgg):
    fake, real = (random_images(2, 3, 403, 35, seed=seed).double().to(device) for seed in (0, 1))
    fake.requires_grad_()
    mask = random_images(403, 35, seed=2).to(device) if masked else None
    criterion = VGGLoss(vgg=copy.deepcopy(vgg), **options).to(device).double()
    expected = (
        VGGLoss(vgg=criterion.vgg, keep_activations=True, **{**options, "memory_limit": None}).to(device).double()
    )
    wanted = expected(fake, real, mask)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum() * -2.0, fake)
    for other in (real, criterion.features(real)):
        loss = criterion(fake, other, mask)
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=0)
        (gradient,) = torch.autograd.grad(loss.sum() * -2.0, fake)
        assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-9


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.6), (torch.float16, 0.2)])
def test_vgg_loss_under_autocast_is_close_to_float32(dtype, error, device, vgg):
    fake, real = (random_images(1, 3, 64, 64, seed=seed).to(device) for seed in (0, 1))
    fake.requires_grad_()
    (exact,) = torch.autograd.grad(VGGLoss(vgg=vgg, keep_activations=True)(fake, real), fake)
    with torch.autocast(device.type, dtype=dtype):
        loss = VGGLoss(vgg=vgg)(fake, real)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, fake)
    assert (gradient - exact).norm() / exact.norm() < error
    with torch.autocast(device.type, dtype=dtype):
        tiny = VGGLoss(vgg=vgg, weights=[1e-6 * w for w in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)])(fake, real)
    (scaled,) = torch.autograd.grad(tiny, fake)
    assert (scaled * 1e6 - gradient).norm() / gradient.norm() < 0.1


def test_vgg_loss_trains_with_a_grad_scaler(device, vgg):
    torch.manual_seed(0)
    netG = torch.nn.Conv2d(3, 3, 3, padding=1).to(device)
    optimizer = torch.optim.SGD(netG.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type)
    criterion = VGGLoss(vgg=vgg)
    label, real = (random_images(1, 3, 48, 48, seed=seed).to(device) for seed in (0, 1))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16):
            loss = criterion(torch.tanh(netG(label)), real)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_compiled_losses_equal_eager_losses(device, vgg):
    torch._dynamo.reset()
    criterion = GeneratorLoss(vgg=copy.deepcopy(vgg).double()).to(device).double()
    pred_fake, pred_real = (scales(device, seed, dtype=torch.float64) for seed in (0, 1))
    fake, real = (random_images(1, 3, 32, 32, seed=seed).double().to(device) for seed in (0, 1))
    fake.requires_grad_()

    def total(fake):
        return criterion(pred_fake, pred_real, torch.tanh(fake), real).total

    compiled = torch.compile(total, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")
    wrt = [fake, *leaves(pred_fake)]
    a, b = (torch.autograd.grad(run(fake), wrt) for run in (compiled, total))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
