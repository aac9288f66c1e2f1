"""The training step of NVIDIA's pix2pixHD (train.py and models/pix2pixHD_model.py) in plain PyTorch.

The baseline of this package's step: three passes through the discriminator, one criterion call per layer and scale, and
unused gradients of the generator's loss with respect to the discriminator's weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OriginalStep"]

_VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
Predictions = list[list[Tensor]]


class OriginalStep:
    """One optimization step of G and D.

    Args:
        netG: The generator.
        netD: The discriminator, which returns the features of all layers.
        vgg: The frozen network, from images to five feature maps. None disables the perceptual loss.
        optimizers: The optimizers of G and of D.
        lambda_feat: Weight of feature matching and of the perceptual loss, as in NVIDIA's code.
    """

    def __init__(
        self, netG: nn.Module, netD: nn.Module, vgg: nn.Module | None, optimizers: Any, lambda_feat: float = 10.0
    ) -> None:
        self.netG, self.netD, self.vgg = netG, netD, vgg
        self.optimizers = self.optimizer_G, self.optimizer_D = optimizers
        self.lambda_feat = lambda_feat

    def __call__(self, condition: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Updates the weights and returns the loss terms."""
        terms = self.losses(condition, real)
        loss_G, loss_D = self.totals(terms)
        self.optimizer_G.zero_grad()
        torch.autograd.backward(loss_G)
        self.optimizer_G.step()
        self.optimizer_D.zero_grad()
        torch.autograd.backward(loss_D)
        self.optimizer_D.step()
        return {name: term.detach() for name, term in terms.items()}

    @staticmethod
    def totals(terms: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the losses of G and of D."""
        return terms["G_GAN"] + terms["G_GAN_Feat"] + terms["G_VGG"], (terms["D_fake"] + terms["D_real"]) * 0.5

    def losses(self, condition: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Returns the loss terms, with their graph."""
        fake = self.netG(condition)
        pred_fake_pool = self.netD(torch.cat((condition, fake.detach()), dim=1))
        pred_real = self.netD(torch.cat((condition, real.detach()), dim=1))
        pred_fake = self.netD(torch.cat((condition, fake), dim=1))
        return {
            "D_fake": gan_loss(pred_fake_pool, 0.0),
            "D_real": gan_loss(pred_real, 1.0),
            "G_GAN": gan_loss(pred_fake, 1.0),
            "G_GAN_Feat": self.feature_matching(pred_fake, pred_real),
            "G_VGG": self.perceptual(fake, real) * self.lambda_feat,
        }

    def feature_matching(self, pred_fake: Predictions, pred_real: Predictions) -> Tensor:
        """Returns the weighted feature matching loss."""
        feat_weights, d_weights = 4.0 / (len(pred_fake[0]) - 1), 1.0 / len(pred_fake)
        total = torch.zeros((), device=pred_fake[0][0].device)
        for scale_fake, scale_real in zip(pred_fake, pred_real, strict=True):
            for x, y in zip(scale_fake[:-1], scale_real[:-1], strict=True):
                total = total + d_weights * feat_weights * F.l1_loss(x, y.detach()) * self.lambda_feat
        return total

    def perceptual(self, fake: Tensor, real: Tensor) -> Tensor:
        """Returns the perceptual loss."""
        total = torch.zeros((), device=fake.device)
        if self.vgg is None:
            return total
        for weight, x, y in zip(_VGG_WEIGHTS, self.vgg(fake), self.vgg(real), strict=True):
            total = total + weight * F.l1_loss(x, y.detach())
        return total


def gan_loss(predictions: Predictions, label: float) -> Tensor:
    """Returns LSGAN summed over the scales, with labels expanded to the size of the predictions."""
    losses = [F.mse_loss(scale[-1], torch.full_like(scale[-1], label)) for scale in predictions]
    return torch.stack(losses).sum()
