"""The perceptual loss for a super-resolution network: no GAN, one VGG loss and a pixel loss.

    python examples/super_resolution.py [--steps 20] [--vgg imagenet]

The same pattern serves an autoencoder: replace the network, and compare its output with its input. The images of this
example are in [0, 1]; `input_range` and `normalize` bring them to what VGG was trained on. The target images are the
same in every step, so their features are computed once.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.losses import L1Loss, VGGLoss


class Upscaler(nn.Module):
    """Doubles height and width: a residual on top of bilinear interpolation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [N, 3, H, W] to [N, 3, 2H, 2W]."""
        return F.interpolate(x, scale_factor=2.0, mode="bilinear") + self.body(x)


def train(steps: int, vgg: str) -> tuple[float, float]:
    """Trains and returns the loss of the first and of the last step."""
    torch.manual_seed(0)
    perceptual = VGGLoss(
        vgg=vgg,
        layers=["relu1_2", "relu2_2", "relu3_3"],
        criterion="mse",
        input_range=(0, 1),
        normalize="imagenet",
    )
    pixel = L1Loss()
    network = Upscaler()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    target = (torch.rand(4, 3, 16, 16) > 0.5).float()
    target = F.interpolate(target, size=(64, 64), mode="nearest")  # sharp edges, which interpolation blurs
    small = F.interpolate(target, scale_factor=0.5, mode="area")
    features = perceptual.features(target)

    values = []
    for step in range(steps):
        output = network(small)
        loss = pixel(output, target) + 0.1 * perceptual(output, features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
        if step % 10 == 0:
            print(f"step {step}: loss {values[-1]:.4f}")
    print(f"loss: {values[0]:.4f} at first, {values[-1]:.4f} after {steps} steps")
    return values[0], values[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--vgg", default="imagenet", help="imagenet, random, or the path of a state dict")
    options = parser.parse_args()
    train(options.steps, options.vgg)
