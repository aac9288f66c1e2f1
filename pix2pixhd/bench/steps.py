"""Training steps with the same weights: NVIDIA's in plain PyTorch, and this package's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.bench.original_step import OriginalStep
from pix2pixhd.bench.step_setup import StepSetup
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_G
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.nn import lean
from pix2pixhd.training.optimizer import Adam, stepping_in_backward
from pix2pixhd.training.step import compute_gradients

__all__ = ["OurStep", "batch", "free_gradients", "make_step"]


def networks(setup: StepSetup, device: str | torch.device = "cpu") -> tuple[nn.Module, nn.Module]:
    """Returns a generator and a discriminator with random weights, which are the same in every call."""
    torch.manual_seed(0)
    channels = setup.label_nc + 1  # one-hot labels and instance edges
    netG = define_G(channels, 3, setup.ngf, setup.network, setup.n_downsample, setup.n_blocks)
    netD = define_D(channels + 3, setup.ndf, 3, num_D=setup.num_D, getIntermFeat=True)
    return netG.to(device), netD.to(device)


def batch(
    setup: StepSetup, device: str | torch.device = "cpu", images: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns encoded label maps of 16×16 regions, and images, both random."""
    width, height = setup.width_height
    generator = torch.Generator().manual_seed(seed)
    regions = (images, -(-height // 16), -(-width // 16))
    labels = torch.randint(0, setup.label_nc, regions, generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]
    one_hot = F.one_hot(labels, setup.label_nc).permute(0, 3, 1, 2).float()
    condition = torch.cat([one_hot, torch.zeros(images, 1, height, width)], dim=1)
    real = torch.rand(images, 3, height, width, generator=generator) * 2 - 1
    return condition.to(device), real.to(device)


class OurStep:
    """One optimization step of G and D as in the training package, with the interface of ``OriginalStep``."""

    def __init__(self, netG: nn.Module, netD: nn.Module, vgg: nn.Module, optimizers: Any) -> None:
        self.netG, self.netD, self.vgg = netG, netD, vgg
        self.optimizers = optimizers
        self.loss_G = GeneratorLoss(preset="nvidia", vgg=vgg).to(next(netG.parameters()).device)
        self.loss_D = DiscriminatorLoss(preset="nvidia")

    def __call__(self, condition: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Updates the weights and returns the loss terms."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with stepping_in_backward(self.optimizers):
            terms = self.gradients(condition, real)
        for optimizer in self.optimizers:
            optimizer.step()
        return terms

    def gradients(self, condition: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Computes the gradients only."""
        return compute_gradients(self.netG, self.netD, self.loss_G, self.loss_D, condition, real)


def make_step(
    implementation: str,
    setup: StepSetup,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    lr: float = 2e-4,
    dtype: torch.dtype = torch.float32,
) -> OurStep | OriginalStep:
    """Returns a function from the encoded input and the image to the loss terms, which updates the weights.

    Args:
        implementation: ``ours`` or ``original``.
        setup: The networks.
        device: Device of the networks.
        channels_last: Memory format of our networks, as in the training package under autocast.
        lr: Learning rate. With 0 the weights stay what they are, at the same cost.
        dtype: Dtype of the weights.
    """
    netG, netD = (network.to(dtype) for network in networks(setup, device))
    vgg = load_vgg("random").to(device, dtype)
    own = implementation == "ours"
    kind = Adam if own else torch.optim.Adam  # as in the training package
    optimizers = [kind(net.parameters(), lr=lr, betas=(0.5, 0.999), fused=own) for net in (netG, netD)]
    if not own:
        vgg.to(memory_format=torch.contiguous_format)
        return OriginalStep(netG, netD, vgg, optimizers)
    for net in (netG, netD):
        if channels_last:
            net.to(memory_format=torch.channels_last)
        lean(net)
    return OurStep(netG, netD, vgg, optimizers)


def free_gradients(step: OurStep | OriginalStep) -> None:
    """Frees the gradients that a step leaves behind.

    The memory before a step is then the same for all implementations, whenever they free their gradients.
    """
    for optimizer in step.optimizers:
        optimizer.zero_grad()
