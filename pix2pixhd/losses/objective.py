"""Complete training objectives of the generator and the discriminator."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd.config.schema.loss import GANMode, PresetName
from pix2pixhd.losses.adversarial import GANLoss
from pix2pixhd.losses.feature_matching import FeatureMatchingLoss
from pix2pixhd.losses.frozen_module import OperatorLoss
from pix2pixhd.losses.perceptual import VGGLoss
from pix2pixhd.losses.perceptual_features import VGGFeatures
from pix2pixhd.losses.predictions import Prediction, as_scales
from pix2pixhd.losses.presets import get_preset
from pix2pixhd.ops.scalars import one_number


class GeneratorTerms(NamedTuple):
    """Terms of the generator loss. ``total`` is the sum of the weighted terms."""

    gan: Tensor
    feat: Tensor
    vgg: Tensor
    total: Tensor


class DiscriminatorTerms(NamedTuple):
    """Terms of the discriminator loss. ``total`` is the sum of the weighted terms."""

    fake: Tensor
    real: Tensor
    total: Tensor


class GeneratorLoss(nn.Module):
    """Generator loss ``L_G = λ_gan·L_GAN + λ_feat·L_FM + λ_vgg·L_VGG`` (pix2pixHD, arXiv 1711.11585).

    A weight of 0 disables its term: the term is not computed, needs no inputs, loads no VGG, and its value is 0.
    ``L_VGG`` may be another perceptual loss, such as ``LPIPS``.

    Args:
        lambda_gan: Weight of the adversarial term. None selects the preset's: 0.5 for ``paper``, 1 for the others.
        lambda_feat: Weight of feature matching. None selects the preset's, 10.
        lambda_vgg: Weight of the perceptual loss. None selects the preset's: 1 for ``mlops``, 10 for the others.
            NVIDIA's code has one weight for both terms: with the preset ``nvidia``, None uses ``lambda_feat`` if it is
            not 0.
        preset: Definition of the terms: ``paper``, ``nvidia`` (pix2pixHD's code), ``spade``, ``imaginaire`` or
            ``mlops``; see ``pix2pixhd.losses.presets``.
        gan_mode: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``. None selects the preset's mode.
        vgg: The ``vgg`` argument of ``VGGLoss``, or a perceptual loss of this package (``VGGLoss``, ``LPIPS``,
            ``FrozenFeatureLoss``, ``StyleLoss``) with its own options, which takes images in [−1, 1]. The mean of
            LPIPS's values is the term.

    Raises:
        ValueError: If the preset or mode is unknown, or ``vgg`` is a loss whose ``reduction`` is not ``"mean"``.
        RuntimeError: If pretrained VGG weights cannot be downloaded.

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
        self.vgg: OperatorLoss | None = None
        if self.lambda_vgg != 0.0:
            self.vgg = vgg if isinstance(vgg, OperatorLoss) else VGGLoss(vgg=vgg, normalize=chosen.normalize)
            if getattr(self.vgg, "reduction", "mean") != "mean":
                kind = type(self.vgg).__name__
                raise ValueError(f'vgg must be a {kind}(..., reduction="mean"): the total is one number')

    def forward(
        self,
        pred_fake: Prediction,
        pred_real: Prediction | None = None,
        fake: Tensor | None = None,
        real: Tensor | VGGFeatures | None = None,
    ) -> GeneratorTerms:
        """Computes the terms.

        Args:
            pred_fake: Discriminator output for generated images: a list over scales of lists over layers.
            pred_real: Discriminator output for real images. Required for feature matching.
            fake: Generated images ``[N, 3, H, W]`` in [−1, 1]. Required for the perceptual loss.
            real: Real images, or their features from the ``features`` of ``vgg``. Required for the perceptual loss.

        Returns:
            The scalars ``gan``, ``feat``, ``vgg`` and ``total``. Call ``total.backward()``.

        Raises:
            ValueError: If the input of an enabled term is missing, or shapes do not match.
        """
        gan, feat = self.adversarial(pred_fake, pred_real)
        vgg = torch.zeros_like(gan) if self.vgg is None else self.perceptual(fake, real)
        return GeneratorTerms(gan, feat, vgg, gan + feat + vgg)

    def adversarial(self, pred_fake: Prediction, pred_real: Prediction | None = None) -> tuple[Tensor, Tensor]:
        """Computes the terms ``gan`` and ``feat``. See ``forward`` for arguments and errors."""
        gan = feat = None
        fake = as_scales("pred_fake", pred_fake)
        if self.lambda_gan != 0.0:
            gan = self.gan.weighted(fake, True, False, self.lambda_gan * self.gan_factor)
        if self.lambda_feat != 0.0:
            if pred_real is None:
                raise ValueError("pred_real is needed for feature matching; pass it or set lambda_feat=0")
            feat = self.feat.weighted(fake, as_scales("pred_real", pred_real), self.lambda_feat)
        on = gan if feat is None else feat
        # A disabled term must not change the dtype of the total.
        off = torch.zeros_like(on) if on is not None else torch.zeros((), device=fake[0][-1].device)
        return off if gan is None else gan, off if feat is None else feat

    def perceptual(self, fake: Tensor | None, real: Tensor | VGGFeatures | None) -> Tensor:
        """Computes the term ``vgg``. See ``forward`` for arguments and errors.

        To reduce peak memory, call this method and its backward before the discriminator allocates its activations.
        """
        if fake is None or real is None:
            raise ValueError("fake and real are needed for the perceptual loss; pass them or set lambda_vgg=0")
        if self.vgg is None:
            return torch.zeros((), device=fake.device)
        value: Tensor = self.vgg(fake, real)
        # The factor is not an argument of the operator, which torch.compile would recompile for every new value.
        return (value.mean() if value.dim() else value) * self.lambda_vgg

    def extra_repr(self) -> str:
        """Formats the weights for ``repr``."""
        return f"lambda_gan={self.lambda_gan}, lambda_feat={self.lambda_feat}, lambda_vgg={self.lambda_vgg}"


class DiscriminatorLoss(nn.Module):
    """Discriminator loss; for LSGAN ``0.5·E[(D(x) − 1)²] + 0.5·E[D(G(z))²]`` (arXiv 1611.04076).

    Args:
        preset: Definition of the loss: ``paper``, ``nvidia``, ``spade``, ``imaginaire`` or ``mlops``.
        gan_mode: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``. None selects the preset's mode.

    Raises:
        ValueError: If the preset or mode is unknown.

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
            pred_fake: Discriminator output for generated images, computed from detached images.
            pred_real: Discriminator output for real images.

        Returns:
            The scalars ``fake``, ``real`` and ``total``. Call ``total.backward()``.
        """
        fake = self.gan.weighted(as_scales("pred_fake", pred_fake), False, True, self.factor)
        real = self.gan.weighted(as_scales("pred_real", pred_real), True, True, self.factor)
        return DiscriminatorTerms(fake, real, fake + real)
