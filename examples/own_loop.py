"""The losses in your own training loop, with networks of your own or of this package.

    python examples/own_loop.py [--steps 20] [--vgg imagenet]

Trains a small generator to invert images. `--vgg random` needs no pretrained weights and is for tests only.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_G


def batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth random images [N, 3, H, W] in [−1, 1] and their negatives."""
    coarse = torch.rand(count, 3, size // 8, size // 8) * 2 - 1
    condition = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return condition, -condition


def train(steps: int, vgg: str) -> tuple[float, float]:
    """Trains and returns the L1 error before and after."""
    torch.manual_seed(0)
    netG = define_G(3, 3, ngf=8, netG="global", n_downsample_global=2, n_blocks_global=1)
    netD = define_D(6, ndf=8, n_layers_D=2, num_D=2, getIntermFeat=True)
    loss_G = GeneratorLoss(preset="nvidia", vgg=vgg)
    loss_D = DiscriminatorLoss(preset="nvidia")
    optimizer_G = torch.optim.Adam(netG.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_D = torch.optim.Adam(netD.parameters(), lr=2e-3, betas=(0.5, 0.999))

    condition, real = batch(4, 64)
    before = float((netG(condition) - real).abs().mean().detach())
    for step in range(steps):
        fake = netG(condition)

        # The discriminator, on a detached image.
        pred_fake = netD(torch.cat([condition, fake.detach()], dim=1))
        pred_real = netD(torch.cat([condition, real], dim=1))
        terms_D = loss_D(pred_fake, pred_real)
        optimizer_D.zero_grad()
        terms_D.total.backward()
        optimizer_D.step()

        # The generator. Real features are detached inside the loss.
        netD.requires_grad_(False)
        pred_fake = netD(torch.cat([condition, fake], dim=1))
        pred_real = netD(torch.cat([condition, real], dim=1))
        terms = loss_G(pred_fake, pred_real, fake, real)
        optimizer_G.zero_grad()
        terms.total.backward()
        optimizer_G.step()
        netD.requires_grad_(True)

        if step % 10 == 0:
            parts = ", ".join(f"{name} {value.item():.3f}" for name, value in terms._asdict().items())
            print(f"step {step}: D {terms_D.total.item():.3f}; G {parts}")
    after = float((netG(condition) - real).abs().mean().detach())
    print(f"L1 error: {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--vgg", default="imagenet", help="imagenet, random, or the path of a state dict")
    options = parser.parse_args()
    train(options.steps, options.vgg)
