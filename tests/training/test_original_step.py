"""Twenty training steps have the same losses as NVIDIA's step in plain PyTorch."""

import copy

import pytest
import torch

from pix2pixhd.bench.original_step import OriginalStep
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_G
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.training.step import compute_gradients


def adam(*nets):
    return [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in nets]


@pytest.mark.parametrize("with_vgg", [False, True])
def test_losses_follow_those_of_nvidias_step(with_vgg):
    torch.manual_seed(0)
    netG = define_G(4, 3, 4, "global", 2, 1).double()
    netD = define_D(7, 4, 2, num_D=2, getIntermFeat=True).double()
    vgg = None
    if with_vgg:
        with pytest.warns(UserWarning, match="random weights"):
            vgg = load_vgg("random").double()
    nets = copy.deepcopy(netG), copy.deepcopy(netD)
    theirs = OriginalStep(*nets, vgg, adam(*nets))
    loss_G = GeneratorLoss(preset="nvidia", lambda_vgg=10.0 if with_vgg else 0.0, vgg=vgg or "imagenet").double()
    loss_D, optimizers = DiscriminatorLoss(preset="nvidia"), adam(netG, netD)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        condition = torch.rand(1, 4, 32, 48, generator=generator, dtype=torch.float64)
        real = torch.rand(1, 3, 32, 48, generator=generator, dtype=torch.float64) * 2 - 1
        for optimizer in optimizers:
            optimizer.zero_grad()
        ours = compute_gradients(netG, netD, loss_G, loss_D, condition, real)
        for optimizer in optimizers:
            optimizer.step()
        expected = theirs(condition, real)
        for name in ("G_GAN", "G_GAN_Feat", "G_VGG"):
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-9, check_dtype=False)
        for name in ("D_fake", "D_real"):  # our terms include NVIDIA's factor of 0.5
            torch.testing.assert_close(ours[name], 0.5 * expected[name], rtol=1e-6, atol=1e-9)
