"""The losses' meanings in the code that people already have."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pix2pixhd.config.schema.loss import GANMode, PresetName
from pix2pixhd.losses.adversarial import Reduction
from pix2pixhd.losses.feature_matching import Weighting


@dataclasses.dataclass(frozen=True)
class Preset:
    """One code base's definition of the generator's and the discriminator's loss.

    Attributes:
        lambda_gan: Weight of the generator's adversarial term.
        lambda_feat: Weight of feature matching.
        lambda_vgg: Weight of the VGG loss.
        discriminator: Factor of the discriminator's loss, ``discriminator · (fake + real)``.
        gan_mode: The adversarial loss where the user names none.
        reduction: Over scales.
        lsgan_factor: Further factor of both adversarial losses in mode ``lsgan``.
        weighting: Of feature matching.
        normalize: What the VGG sees.
        vgg_follows_feat: Whether the user's weight of feature matching is the VGG loss's too.
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
        """The factor that ``mode`` adds to both adversarial losses."""
        return self.lsgan_factor if mode == "lsgan" else 1.0


PRESETS: dict[str, Preset] = {
    # arXiv 1711.11585 with the factors of arXiv 1611.04076.
    "paper": Preset(lambda_gan=0.5, lambda_feat=10.0, lambda_vgg=10.0, discriminator=0.5),
    # NVIDIA/pix2pixHD: one lambda_feat, 10, for both.
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
    """Look a preset up.

    Raises:
        ValueError: For an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {name!r}")
    return PRESETS[name]
