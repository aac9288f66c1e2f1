"""The sections of a configuration besides ``data`` and ``trainer``."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.models import GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator, define_D, define_G

__all__ = ["LossOptions", "ModelOptions", "OptimizerOptions", "RunOptions"]


def _at_least(section: str, options: object, **least: float) -> None:
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise InputError(f"{section}.{name} must be at least {bound}, got {getattr(options, name)}")


@dataclasses.dataclass
class ModelOptions:
    """The networks. Names and defaults are those of NVIDIA's options.

    Attributes:
        netG: ``global`` for one generator, ``local`` for enhancers around it.
        ngf: Channels of the generator's first convolution.
        n_downsample_global: How often the global generator halves its input.
        n_blocks_global: Residual blocks of the global generator.
        n_local_enhancers: Number of enhancers (``local``).
        n_blocks_local: Residual blocks of each enhancer (``local``).
        norm: ``instance`` or ``batch``.
        ndf: Channels of the discriminator's first convolution.
        n_layers_D: Layers of each discriminator between the first and the prediction.
        num_D: Number of discriminator scales.

    Raises:
        InputError: For numbers out of range.

    Example:
        >>> ModelOptions(netG="local", n_downsample_global=4).multiple
        32
    """

    netG: Literal["global", "local"] = "global"
    ngf: int = 64
    n_downsample_global: int = 4
    n_blocks_global: int = 9
    n_local_enhancers: int = 1
    n_blocks_local: int = 3
    norm: Literal["instance", "batch"] = "instance"
    ndf: int = 64
    n_layers_D: int = 3
    num_D: int = 2

    def __post_init__(self) -> None:
        _at_least("model", self, ngf=1, n_downsample_global=0, n_blocks_global=0, n_local_enhancers=0)
        _at_least("model", self, n_blocks_local=0, ndf=1, n_layers_D=1, num_D=1)

    @property
    def multiple(self) -> int:
        """Height and width of what the generator takes must be multiples of this."""
        enhancers: int = self.n_local_enhancers if self.netG == "local" else 0
        return int(2 ** (self.n_downsample_global + enhancers))

    def generator(self, data: DataOptions) -> GlobalGenerator | LocalEnhancer:
        """A new generator for this kind of data."""
        return define_G(
            data.input_channels,
            data.output_nc,
            self.ngf,
            self.netG,
            self.n_downsample_global,
            self.n_blocks_global,
            self.n_local_enhancers,
            self.n_blocks_local,
            self.norm,
        )

    def discriminator(self, data: DataOptions) -> MultiscaleDiscriminator:
        """A new discriminator for this kind of data."""
        return define_D(
            data.input_channels + data.output_nc,
            self.ndf,
            self.n_layers_D,
            self.norm,
            num_D=self.num_D,
            getIntermFeat=True,
        )


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
        _at_least("loss", self, pool_size=0)
        if self.vgg_memory_limit is not None:
            _at_least("loss", self, vgg_memory_limit=1)
        weights = {name: getattr(self, name) for name in ("lambda_gan", "lambda_feat", "lambda_vgg")}
        _at_least("loss", self, **{name: 0 for name, weight in weights.items() if weight is not None})
        if all(weight == 0 for weight in weights.values()):
            raise InputError("loss: all weights are 0, so the generator has nothing to learn; set one of them")


@dataclasses.dataclass
class OptimizerOptions:
    """Adam for both networks, and how long to train.

    Attributes:
        lr: Learning rate.
        beta1: Adam's first momentum.
        beta2: Adam's second momentum.
        niter: Epochs at the full learning rate.
        niter_decay: Epochs in which it falls linearly towards 0.

    Raises:
        InputError: For numbers out of range.

    Example:
        >>> OptimizerOptions(niter=2, niter_decay=2).rate(3)
        0.5
    """

    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    niter: int = 100
    niter_decay: int = 100

    def __post_init__(self) -> None:
        _at_least("optimizer", self, lr=0, beta1=0, beta2=0, niter=0, niter_decay=0)
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise InputError(f"optimizer.beta1 and beta2 must be below 1, got {self.beta1} and {self.beta2}")
        if not self.niter + self.niter_decay:
            raise InputError(
                "optimizer: niter and niter_decay are both 0, so nothing would be trained; set one of them"
            )

    def rate(self, epoch: int) -> float:
        """The share of the learning rate in an epoch, counted from 0."""
        return 1.0 - max(0, epoch - self.niter) / max(self.niter_decay, 1)


@dataclasses.dataclass
class RunOptions:
    """What a run leaves behind, and its seed.

    Attributes:
        output: Folder for checkpoints, sample pictures and logs.
        seed: Seed of weights, order and augmentation.
        samples_every: Steps between two sheets of sample pictures; 0 for none.
        sample_count: Pictures per sheet.
        save_every: Epochs between two kept checkpoints (``last.ckpt`` is written after every epoch).

    Raises:
        InputError: For numbers out of range.

    Example:
        >>> RunOptions(output="runs/cityscapes").seed
        0
    """

    output: str = "runs/pix2pixhd"
    seed: int = 0
    samples_every: int = 100
    sample_count: int = 4
    save_every: int = 10

    def __post_init__(self) -> None:
        _at_least("run", self, seed=0, samples_every=0, sample_count=1, save_every=1)
