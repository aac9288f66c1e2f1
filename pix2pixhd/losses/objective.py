"""The whole objectives of generator and discriminator."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd.config.schema.loss import GANMode, PresetName
from pix2pixhd.losses.adversarial import GANLoss
from pix2pixhd.losses.feature_matching import FeatureMatchingLoss
from pix2pixhd.losses.perceptual import VGGLoss
from pix2pixhd.losses.perceptual_features import VGGFeatures
from pix2pixhd.losses.predictions import Prediction, as_scales
from pix2pixhd.losses.presets import get_preset
from pix2pixhd.ops.scalars import one_number


def _device(pred: Prediction) -> torch.device:
    return as_scales("pred_fake", pred)[0][-1].device


class GeneratorTerms(NamedTuple):
    """The generator's loss; the terms are weighted and add up to the total."""

    gan: Tensor
    feat: Tensor
    vgg: Tensor
    total: Tensor


class DiscriminatorTerms(NamedTuple):
    """The discriminator's loss; the terms are weighted and add up to the total."""

    fake: Tensor
    real: Tensor
    total: Tensor


class GeneratorLoss(nn.Module):
    """``L_G = λ_gan·L_GAN + λ_feat·L_FM + λ_vgg·L_VGG`` (pix2pixHD, arXiv 1711.11585).

    A weight of 0 turns its term off: nothing of it is built, computed or asked for, and it reads 0.

    Args:
        lambda_gan: Weight of the adversarial term; None for the preset's: 0.5 for ``paper``, 1 for the others.
        lambda_feat: Weight of feature matching; None for the preset's, 10.
        lambda_vgg: Weight of the VGG loss; None for the preset's: 10, and 1 for ``mlops``. In ``nvidia``, whose code
            has one weight for both, None follows a ``lambda_feat`` other than 0.
        preset: Whose definition of the terms: ``paper``, ``nvidia`` (pix2pixHD's code), ``spade``, ``imaginaire`` or
            ``mlops``; see ``pix2pixhd.losses.presets``.
        gan_mode: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``; None for the preset's.
        vgg: What ``VGGLoss`` takes as ``vgg``; or a ``VGGLoss``, which is used as it is, its ``normalize`` too.

    Raises:
        ValueError: For an unknown preset or mode.
        RuntimeError: If pretrained VGG weights cannot be fetched.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import GeneratorLoss
        >>> criterion = GeneratorLoss(lambda_vgg=0.0)
        >>> pred = [[torch.zeros(1, 8, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> criterion(pred, pred).total
        tensor(0.5000)
    """

    def __init__(
        self,
        lambda_gan: float | None = None,
        lambda_feat: float | None = None,
        lambda_vgg: float | None = None,
        *,
        preset: PresetName = "paper",
        gan_mode: GANMode | None = None,
        vgg: str | pathlib.Path | nn.Module = "imagenet",
    ) -> None:
        super().__init__()
        chosen = get_preset(preset)
        self.lambda_gan = chosen.lambda_gan if lambda_gan is None else one_number("lambda_gan", lambda_gan)
        self.lambda_feat = chosen.lambda_feat if lambda_feat is None else one_number("lambda_feat", lambda_feat)
        if lambda_vgg is None:
            lambda_vgg = self.lambda_feat if chosen.vgg_follows_feat and self.lambda_feat != 0.0 else chosen.lambda_vgg
        self.lambda_vgg = one_number("lambda_vgg", lambda_vgg)
        self.gan = GANLoss(mode=gan_mode or chosen.gan_mode, reduction=chosen.reduction)
        self.gan_factor = chosen.adversarial(self.gan.mode)
        self.feat = FeatureMatchingLoss(chosen.weighting)
        self.vgg: VGGLoss | None = None
        if self.lambda_vgg != 0.0:
            self.vgg = vgg if isinstance(vgg, VGGLoss) else VGGLoss(vgg=vgg, normalize=chosen.normalize)
            if self.vgg.reduction != "mean":
                raise ValueError('vgg must be a VGGLoss(..., reduction="mean"): the total is one number')

    def forward(
        self,
        pred_fake: Prediction,
        pred_real: Prediction | None = None,
        fake: Tensor | None = None,
        real: Tensor | VGGFeatures | None = None,
    ) -> GeneratorTerms:
        """Computes the terms.

        Args:
            pred_fake: The discriminator's output for generated pictures, scales of layers.
            pred_real: The same for the real pictures; needed for feature matching.
            fake: Generated pictures ``[N, 3, H, W]`` in [−1, 1]; needed for the VGG loss.
            real: The real pictures, or what ``VGGLoss.features`` returned for them; needed for the VGG loss.

        Returns:
            ``gan``, ``feat``, ``vgg`` and ``total``, scalars; call ``total.backward()``.

        Raises:
            ValueError: If a term that is on lacks its input, and for shapes that do not agree.
        """
        gan, feat = self.adversarial(pred_fake, pred_real)
        vgg = torch.zeros_like(gan) if self.vgg is None else self.perceptual(fake, real)
        return GeneratorTerms(gan, feat, vgg, gan + feat + vgg)

    def adversarial(self, pred_fake: Prediction, pred_real: Prediction | None = None) -> tuple[Tensor, Tensor]:
        """The terms that see predictions, ``gan`` and ``feat``; arguments and errors are those of a call."""
        gan = feat = None
        if self.lambda_gan != 0.0:
            gan = self.gan.weighted(pred_fake, True, False, self.lambda_gan * self.gan_factor)
        if self.lambda_feat != 0.0:
            if pred_real is None:
                raise ValueError("pred_real is needed for feature matching; pass it or set lambda_feat=0")
            feat = self.feat.weighted(pred_fake, pred_real, self.lambda_feat)
        on = gan if feat is None else feat
        # A term that is off must not change the dtype of the total.
        off = torch.zeros_like(on) if on is not None else torch.zeros((), device=_device(pred_fake))
        return off if gan is None else gan, off if feat is None else feat

    def perceptual(self, fake: Tensor | None, real: Tensor | VGGFeatures | None) -> Tensor:
        """The term that sees pictures, ``vgg``; arguments and errors are those of a call.

        On its own it can be computed, and its gradient taken, before the discriminator's activations need memory.
        """
        if fake is None or real is None:
            raise ValueError("fake and real are needed for the VGG loss; pass them or set lambda_vgg=0")
        if self.vgg is None:
            return torch.zeros((), device=fake.device)
        return self.vgg.weighted(fake, real, self.lambda_vgg)

    def extra_repr(self) -> str:
        """The weights, for ``repr``."""
        return f"lambda_gan={self.lambda_gan}, lambda_feat={self.lambda_feat}, lambda_vgg={self.lambda_vgg}"


class DiscriminatorLoss(nn.Module):
    """The discriminator's loss; for LSGAN ``0.5·E[(D(x) − 1)²] + 0.5·E[D(G(z))²]`` (arXiv 1611.04076).

    Args:
        preset: Whose definition: ``paper``, ``nvidia``, ``spade``, ``imaginaire`` or ``mlops``.
        gan_mode: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``; None for the preset's.

    Raises:
        ValueError: For an unknown preset or mode.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import DiscriminatorLoss
        >>> DiscriminatorLoss()(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)).total
        tensor(1.)
    """

    def __init__(self, preset: PresetName = "paper", *, gan_mode: GANMode | None = None) -> None:
        super().__init__()
        chosen = get_preset(preset)
        self.gan = GANLoss(mode=gan_mode or chosen.gan_mode, reduction=chosen.reduction)
        self.factor = chosen.discriminator * chosen.adversarial(self.gan.mode)

    def forward(self, pred_fake: Prediction, pred_real: Prediction) -> DiscriminatorTerms:
        """Computes the terms.

        Args:
            pred_fake: The discriminator's output for generated pictures, computed from a detached picture.
            pred_real: The same for real pictures.

        Returns:
            ``fake``, ``real`` and ``total``, scalars; call ``total.backward()``.
        """
        fake = self.gan.weighted(pred_fake, False, True, self.factor)
        real = self.gan.weighted(pred_real, True, True, self.factor)
        return DiscriminatorTerms(fake, real, fake + real)
