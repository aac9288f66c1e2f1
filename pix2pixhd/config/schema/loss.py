"""The ``loss`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.ranges import at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["GANMode", "LossOptions", "PresetName"]

PresetName = Literal["paper", "nvidia", "spade", "imaginaire", "mlops"]
GANMode = Literal["lsgan", "vanilla", "hinge", "wgan"]


@dataclasses.dataclass
class LossOptions:
    """Definition and weights of the loss terms: ``lambda_gan·L_GAN + lambda_feat·L_FM + lambda_vgg·L_VGG``.

    Attributes:
        preset: Implementation whose definition of the losses is used: ``paper``, ``nvidia``, ``spade``, ``imaginaire``
            or ``mlops``.
        gan_mode: GAN objective: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``. None uses the preset's.
        lambda_gan: Weight of the GAN loss. None uses the preset's: 0.5 for ``paper``.
        lambda_feat: Weight of the feature matching loss. None uses the preset's: 10. 0 disables the loss.
        lambda_vgg: Weight of the perceptual loss. None uses the preset's: 10 for ``paper``. 0 disables the loss.
        vgg: Weights of VGG19: ``imagenet``, the path of a state dict, or ``random`` (for tests).
        vgg_memory_limit: Maximum memory for the feature maps of the perceptual loss, in MiB. None for no limit.
        pool_size: Number of previously generated images that are stored and also shown to the discriminator. 0
            disables the pool.

    Raises:
        InputError: If a weight or size is negative, or if all weights are 0.

    Example:
        >>> LossOptions(preset="nvidia", lambda_vgg=0.0).preset
        'nvidia'
    """

    preset: PresetName = "paper"
    gan_mode: GANMode | None = None
    lambda_gan: float | None = None
    lambda_feat: float | None = None
    lambda_vgg: float | None = None
    vgg: str = "imagenet"
    vgg_memory_limit: int | None = None
    pool_size: int = 0

    def __post_init__(self) -> None:
        weights = ("lambda_gan", "lambda_feat", "lambda_vgg")
        check_ranges("loss", self, pool_size=at_least(0), vgg_memory_limit=at_least(1))
        check_ranges("loss", self, **dict.fromkeys(weights, at_least(0)))
        if all(getattr(self, weight) == 0 for weight in weights):
            raise InputError("loss: all weights are 0, so the generator would not be trained; set one of them")
