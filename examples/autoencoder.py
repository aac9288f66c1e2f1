"""A small autoencoder trained with LPIPS, a PatchGAN discriminator and feature matching, as for latent diffusion.

    python examples/autoencoder.py [--steps 40] [--trunk imagenet]

LPIPS keeps no activations of its VGG16, which is what runs out of memory in such trainings. The perceptual gradient is
computed first, so that VGG's memory is free before the discriminator runs.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.losses import LPIPS, DiscriminatorLoss, FeatureMatchingLoss, GANLoss
from pix2pixhd.models import define_D
from pix2pixhd.nn import InstanceNormAct2d, lean


def autoencoder(width: int = 16, latent: int = 4) -> nn.Module:
    """Four times smaller in height and width, with ``latent`` channels, and back."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), InstanceNormAct2d(outputs, activation="relu")]

    encoder = [*block(3, width), *block(width, 2 * width, 2), *block(2 * width, 4 * width, 2)]
    decoder = [*block(latent, 4 * width), nn.Upsample(scale_factor=2), *block(4 * width, 2 * width)]
    decoder += [nn.Upsample(scale_factor=2), *block(2 * width, width), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()]
    return lean(nn.Sequential(*encoder, nn.Conv2d(4 * width, latent, 1), *decoder))


def photographs(count: int, size: int) -> torch.Tensor:
    """Smooth random images in [−1, 1] with a few sharp shapes; replace them by your own."""
    images = F.interpolate(torch.rand(count, 3, 4, 4), size=(size, size), mode="bicubic").clamp(0, 1)
    shapes = F.interpolate((torch.rand(count, 1, 8, 8) > 0.8).float(), size=(size, size), mode="nearest")
    return (images * (1 - 0.7 * shapes)) * 2 - 1


def train(steps: int, trunk: str) -> tuple[float, float]:
    """Trains and returns the LPIPS of the reconstructions before the first and after the last step."""
    torch.manual_seed(0)
    images = photographs(4, 64)
    lpips, gan, matching, for_D = LPIPS(net="vgg", trunk=trunk), GANLoss(), FeatureMatchingLoss(), DiscriminatorLoss()
    network, discriminator = autoencoder(), define_D(3, 16, n_layers_D=2, num_D=1, getIntermFeat=True)
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.9)) for m in (network, discriminator)]
    features = lpips.features(images)  # the images are the same in every step

    with torch.no_grad():
        before = float(lpips(network(images), features).mean())
    for step in range(steps):
        output = network(images)
        fake = output.detach().requires_grad_()
        perceptual = lpips(fake, features).mean() + F.l1_loss(fake, images)
        perceptual.backward()
        pred_fake, pred_real = discriminator(fake), discriminator(images)
        discriminator_loss = for_D(pred_fake, pred_real).total
        adversarial = 0.1 * gan(pred_fake, True) + 0.1 * matching(pred_fake, pred_real)
        adversarial.backward(inputs=[fake], retain_graph=True)
        for optimizer in optimizers:
            optimizer.zero_grad()
        discriminator_loss.backward(inputs=list(discriminator.parameters()))
        output.backward(fake.grad)
        for optimizer in optimizers:
            optimizer.step()
        if step % 10 == 0:
            print(
                f"step {step}: perceptual {float(perceptual.detach()):.4f}, D {float(discriminator_loss.detach()):.4f}"
            )
    with torch.no_grad():
        after = float(lpips(network(images), features).mean())
    print(f"LPIPS of the reconstructions: {before:.4f} before training, {after:.4f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trunk", default="imagenet", help="imagenet, random, or the path of VGG16's state dict")
    options = parser.parse_args()
    train(options.steps, options.trunk)
