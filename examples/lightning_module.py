"""The losses in a Lightning module with manual optimization.

    python examples/lightning_module.py [--steps 10] [--vgg imagenet]

`pix2pixhd train` is a complete training program; this file is for those who have a Lightning project already.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_G


class ImageTranslation(pl.LightningModule):
    """A pix2pixHD-style GAN: condition [N, 3, H, W] to image [N, 3, H, W], both in [−1, 1]."""

    def __init__(self, vgg: str = "imagenet") -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimizers, whose losses share the discriminator's outputs
        self.netG = define_G(3, 3, ngf=8, netG="global", n_downsample_global=2, n_blocks_global=1)
        self.netD = define_D(6, ndf=8, n_layers_D=2, num_D=2, getIntermFeat=True)
        self.loss_G = GeneratorLoss(vgg=vgg)  # its VGG is not part of the checkpoint
        self.loss_D = DiscriminatorLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """One step of both networks."""
        condition, real = batch
        optimizer_G, optimizer_D = self.optimizers()
        fake = self.netG(condition)

        self.toggle_optimizer(optimizer_G)
        pred_real = self.netD(torch.cat([condition, real], dim=1))
        terms = self.loss_G(self.netD(torch.cat([condition, fake], dim=1)), pred_real, fake, real)
        optimizer_G.zero_grad()
        self.manual_backward(terms.total)
        optimizer_G.step()
        self.untoggle_optimizer(optimizer_G)

        self.toggle_optimizer(optimizer_D)
        pred_fake = self.netD(torch.cat([condition, fake.detach()], dim=1))
        pred_real = self.netD(torch.cat([condition, real], dim=1))
        loss_D = self.loss_D(pred_fake, pred_real).total
        optimizer_D.zero_grad()
        self.manual_backward(loss_D)
        optimizer_D.step()
        self.untoggle_optimizer(optimizer_D)

        self.log_dict({"G": terms.total, "G_vgg": terms.vgg, "D": loss_D}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam with the settings of the paper."""
        return (
            torch.optim.Adam(self.netG.parameters(), lr=2e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(self.netD.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        )


def train(steps: int, vgg: str) -> pl.Trainer:
    """Trains on random images and returns the trainer."""
    pl.seed_everything(0)
    condition = torch.rand(8, 3, 32, 32) * 2 - 1
    loader = DataLoader(TensorDataset(condition, -condition), batch_size=2)
    trainer = pl.Trainer(
        max_steps=2 * steps,  # Lightning counts the steps of both optimizers
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageTranslation(vgg), loader)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--vgg", default="imagenet", help="imagenet, random, or the path of a state dict")
    options = parser.parse_args()
    train(options.steps, options.vgg)
