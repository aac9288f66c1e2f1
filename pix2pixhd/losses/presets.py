"""Loss definitions of published code bases, as presets."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pix2pixhd.config.schema.loss import GANMode, PresetName
from pix2pixhd.losses.adversarial import Reduction
from pix2pixhd.losses.feature_matching import Weighting


@dataclasses.dataclass(frozen=True)
class Preset:
    """Definition of the generator and discriminator losses in one code base.

    Attributes:
        lambda_gan: Weight of the generator's adversarial term.
        lambda_feat: Weight of feature matching.
        lambda_vgg: Weight of the VGG loss.
        discriminator: Factor of the discriminator loss, ``discriminator · (fake + real)``.
        gan_mode: Default mode of the adversarial loss.
        reduction: Reduction of the adversarial loss over scales.
        lsgan_factor: Additional factor of both adversarial losses in mode ``lsgan``.
        weighting: Layer weighting of feature matching.
        normalize: Input normalization of the VGG.
        vgg_follows_feat: Whether the weight of feature matching is also the default weight of the VGG loss.
    """

    lambda_gan: float
    lambda_feat: float
    lambda_vgg: float
    discriminator: float
    gan_mode: GANMode = "lsgan"
    reduction: Reduction = "sum"
    lsgan_factor: float = 1.0
    weighting: Weighting = "pix2pixhd"
    normalize: Literal["none", "imagenet"] = "none"
    vgg_follows_feat: bool = False

    def adversarial(self, mode: GANMode) -> float:
        """Returns the additional factor of both adversarial losses for ``mode``."""
        return self.lsgan_factor if mode == "lsgan" else 1.0


PRESETS: dict[str, Preset] = {
    # arXiv 1711.11585 with the factors of arXiv 1611.04076.
    "paper": Preset(lambda_gan=0.5, lambda_feat=10.0, lambda_vgg=10.0, discriminator=0.5),
    # NVIDIA/pix2pixHD: a single lambda_feat of 10 weights both feature matching and the VGG loss.
    "nvidia": Preset(lambda_gan=1.0, lambda_feat=10.0, lambda_vgg=10.0, discriminator=0.5, vgg_follows_feat=True),
    # NVlabs/SPADE.
    "spade": Preset(
        lambda_gan=1.0,
        lambda_feat=10.0,
        lambda_vgg=10.0,
        discriminator=1.0,
        gan_mode="hinge",
        reduction="mean",
        weighting="scales",
    ),
    # NVlabs/imaginaire.
    "imaginaire": Preset(
        lambda_gan=1.0,
        lambda_feat=10.0,
        lambda_vgg=10.0,
        discriminator=1.0,
        gan_mode="hinge",
        reduction="mean",
        lsgan_factor=0.5,
        weighting="scales",
        normalize="imagenet",
    ),
    # quangzp/pix2pix-mlops.
    "mlops": Preset(lambda_gan=1.0, lambda_feat=10.0, lambda_vgg=1.0, discriminator=1.0, weighting="features"),
}


def get_preset(name: str) -> Preset:
    """Returns a preset by name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {name!r}")
    return PRESETS[name]
