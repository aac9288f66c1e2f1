"""FrozenFeatureLoss and StyleLoss on a GPU, compared with autograd in float64."""

import copy

import pytest
import torch

from pix2pixhd.losses import FrozenFeatureLoss, StyleLoss

from ..losses.helpers import TAPS, conv_network, random_images


def images(device, dtype=torch.float64):
    fake, real = random_images(3, 3, 32, 36), random_images(3, 3, 32, 36, seed=1)
    return fake.to(device, dtype).requires_grad_(), real.to(device, dtype)


@pytest.mark.parametrize("distance", ["l1", "mse", "cosine", "lpips", "gram"])
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"memory_limit": 2**21}])
def test_value_and_gradient_match_autograd(distance, options, device):
    network, (fake, real) = conv_network().double(), images(device)
    ours = FrozenFeatureLoss(network, TAPS, distance, **options).to(device)
    plain = FrozenFeatureLoss(network, TAPS, distance, keep_activations=True)
    loss, expected = ours(fake, real), plain(fake, real)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    (gradient,), (wanted,) = (torch.autograd.grad(one, fake) for one in (loss, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10 * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float64(dtype, device):
    network, (fake, real) = conv_network().to(device), images(device, torch.float32)
    wide = FrozenFeatureLoss(copy.deepcopy(network).double(), TAPS, "mse", keep_activations=True)
    (wanted,) = torch.autograd.grad(wide(fake.double(), real.double()), fake)
    (gradient,) = torch.autograd.grad(FrozenFeatureLoss(network, TAPS, "mse", dtype=dtype)(fake, real), fake)
    assert (gradient - wanted).norm() < 0.05 * wanted.norm()


def test_style_and_compile_match_autograd(device):
    network, (fake, real) = conv_network().double().to(device), images(device)
    ours, plain = (
        StyleLoss(network, style_layers=["0", "2"], content_layers=["1"], keep_activations=keep)
        for keep in (False, True)
    )
    (wanted,) = torch.autograd.grad(plain(fake, real[:1], real), fake)
    compiled = torch.compile(lambda x: ours(x * 1, real[:1], real), fullgraph=True, backend="aot_eager")
    for function in (compiled, lambda x: ours(x, real[:1], real)):
        (gradient,) = torch.autograd.grad(function(fake), fake)
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10 * wanted.abs().max().item())


@pytest.mark.cuda_only
def test_no_host_synchronization(device):
    network, (fake, real) = conv_network().to(device), images(device, torch.float32)
    criterion = FrozenFeatureLoss(network, TAPS, "lpips", dtype=torch.float16)
    mask = torch.ones(32, 36, device=device)
    criterion(fake, real, mask).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(fake, real, mask).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
