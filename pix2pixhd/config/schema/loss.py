"""The ``loss`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.ranges import at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["LossOptions"]


@dataclasses.dataclass
class LossOptions:
    """The weights of the loss terms: ``lambda_gan·L_GAN + lambda_feat·L_FM + lambda_vgg·L_VGG``.

    Attributes:
        preset: Whose definition of the losses: ``paper``, ``nvidia``, ``spade``, ``imaginaire`` or ``mlops``.
        gan_mode: ``lsgan``, ``vanilla``, ``hinge`` or ``wgan``; the preset's when None.
        lambda_gan: Weight of the GAN loss; the preset's when None, 0.5 for ``paper``.
        lambda_feat: Weight of discriminator feature matching; the preset's when None, 10. 0 turns it off.
        lambda_vgg: Weight of the perceptual loss; the preset's when None, 10 for ``paper``. 0 turns it off.
        vgg: Weights of VGG19: ``imagenet``, a path to a state dict, or ``random`` (for tests).
        vgg_memory_limit: Most MiB that the perceptual loss's maps may take at a time; None for no bound.
        pool_size: Generated pictures kept from earlier steps, which the discriminator is shown too; 0 for none.

    Raises:
        InputError: For negative weights and sizes.

    Example:
        >>> LossOptions(preset="nvidia", lambda_vgg=0.0).preset
        'nvidia'
    """

    preset: Literal["paper", "nvidia", "spade", "imaginaire", "mlops"] = "paper"
    gan_mode: Literal["lsgan", "vanilla", "hinge", "wgan"] | None = None
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
            raise InputError("loss: all weights are 0, so the generator has nothing to learn; set one of them")
