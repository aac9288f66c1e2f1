"""The configuration of a run, and its sections besides ``data`` and ``trainer``."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor, nn

from pix2pixhd.data import DataOptions, InputError, Sample
from pix2pixhd.models import Encoder, MultiscaleDiscriminator, define_D, define_E, define_G
from pix2pixhd.training.ranges import FRACTION, POSITIVE, at_least, check_ranges
from pix2pixhd.training.trainer_options import TrainerOptions, trainer_options

__all__ = ["ComputeOptions", "LossOptions", "ModelOptions", "OptimizerOptions", "RunOptions", "TrainConfig"]

Logger = Literal["csv", "tensorboard", "mlflow", "wandb"]
Metric = Literal["l1", "psnr", "ssim", "lpips", "fid"]

# NumPy's limit, whose generators are seeded too.
_MAX_SEED = 2**32 - 1

# Channels double, and sizes halve, with each of these layers; more than this is a typing error.
_MOST_SCALES = 10
_LAYERS = at_least(1, _MOST_SCALES)


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
        instance_feat: Whether an encoder gives the generator features of every instance's look, which can be exchanged
            when pictures are generated.
        label_feat: The same for every class, instead of every instance.
        feat_num: Number of features (``instance_feat``, ``label_feat``).
        nef: Channels of the encoder's first convolution.
        n_downsample_E: How often the encoder halves its input.

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
    instance_feat: bool = False
    label_feat: bool = False
    feat_num: int = 3
    nef: int = 16
    n_downsample_E: int = 4

    def __post_init__(self) -> None:
        one, several, scales = at_least(1), at_least(0), at_least(0, _MOST_SCALES)
        check_ranges("model", self, ngf=one, ndf=one, nef=one, feat_num=one)
        check_ranges("model", self, n_blocks_global=several, n_blocks_local=several)
        check_ranges("model", self, n_downsample_global=scales, n_downsample_E=scales)
        check_ranges("model", self, **dict.fromkeys(("n_local_enhancers", "n_layers_D", "num_D"), _LAYERS))
        if self.instance_feat and self.label_feat:
            raise InputError("model: instance_feat and label_feat are both true; features are of one or the other")

    @property
    def has_features(self) -> bool:
        """Whether the generator takes an encoder's features beside its other input."""
        return self.instance_feat or self.label_feat

    @property
    def multiple(self) -> int:
        """Height and width of what the networks take must be multiples of this."""
        enhancers: int = self.n_local_enhancers if self.netG == "local" else 0
        generator = int(2 ** (self.n_downsample_global + enhancers))
        return max(generator, 2**self.n_downsample_E) if self.has_features else generator

    def region(self, sample: Sample) -> Tensor:
        """Ids of what features are averaged over, of a sample or a batch: classes, or instances."""
        return sample["input"] if self.label_feat else sample["instance"]

    def check(self, data: DataOptions) -> None:
        """Whether the data have what the encoder averages over.

        Raises:
            InputError: If they do not.
        """
        if self.instance_feat and data.no_instance:
            raise InputError("model.instance_feat averages over instances; set data.no_instance: false")
        if self.label_feat and not data.label_nc:
            raise InputError("model.label_feat averages over classes, so data.label_nc must not be 0")

    def encoder(self, data: DataOptions) -> Encoder | None:
        """A new encoder for this kind of data; None without features."""
        if not self.has_features:
            return None
        return define_E(data.output_nc, self.feat_num, self.nef, self.n_downsample_E, self.norm)

    def generator(self, data: DataOptions) -> nn.Module:
        """A new generator for this kind of data."""
        self.check(data)
        return define_G(
            data.input_channels + (self.feat_num if self.has_features else 0),
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
        weights = ("lambda_gan", "lambda_feat", "lambda_vgg")
        check_ranges("loss", self, pool_size=at_least(0), vgg_memory_limit=at_least(1))
        check_ranges("loss", self, **dict.fromkeys(weights, at_least(0)))
        if all(getattr(self, weight) == 0 for weight in weights):
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
        niter_fix_global: Of these, the first epochs in which only the finest enhancer is trained (``model.netG:
            local``, with the global part from ``run.load_pretrain``).
        ema_decay: Keeps a moving average of the generator's weights, ``ema = decay·ema + (1 − decay)·weight`` at each
            step, which validation, samples and ``generate`` then take; 0 for none, 0.999 is usual.
        accumulate: Batches whose gradients are averaged before each step.
        gradient_clip_val: Largest norm of a step's gradients: of the generator's, together with the encoder's, and of
            the discriminator's. Larger gradients are scaled down to it, after they have been averaged over batches and
            processes. None for no limit.

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
    niter_fix_global: int = 0
    ema_decay: float = 0.0
    accumulate: int = 1
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        epochs = at_least(0)
        check_ranges("optimizer", self, lr=POSITIVE, beta1=FRACTION, beta2=FRACTION, ema_decay=FRACTION)
        check_ranges("optimizer", self, niter=epochs, niter_decay=epochs, niter_fix_global=epochs)
        check_ranges("optimizer", self, accumulate=at_least(1), gradient_clip_val=POSITIVE)
        if not self.niter + self.niter_decay:
            raise InputError(
                "optimizer: niter and niter_decay are both 0, so nothing would be trained; set one of them"
            )

    def rate(self, epoch: int) -> float:
        """The share of the learning rate in an epoch, counted from 0; 0 from the end of the decay on."""
        return max(0.0, 1.0 - max(0, epoch - self.niter) / max(self.niter_decay, 1))


@dataclasses.dataclass
class ComputeOptions:
    """How the step is computed; what it computes stays the same.

    Attributes:
        channels_last: Whether feature maps lie channels last in memory; None does so under bfloat16 and float16, where
            convolutions are faster that way.
        compile: Whether generator and discriminator go through ``torch.compile``.
        checkpoint_activations: Whether the generator keeps only every third activation for its backward and computes
            the others again: less memory, for one more forward of the generator.

    Example:
        >>> ComputeOptions(checkpoint_activations=True).compile
        False
    """

    channels_last: bool | None = None
    compile: bool = False
    checkpoint_activations: bool = False

    def check(self, model: ModelOptions) -> None:
        """Whether these networks can be trained this way.

        Raises:
            InputError: If they cannot.
        """
        if self.checkpoint_activations and model.norm == "batch":
            raise InputError(
                "compute.checkpoint_activations runs layers twice, which would update batch norm's statistics twice; "
                "set model.norm: instance, or leave it out"
            )


@dataclasses.dataclass
class RunOptions:
    """What a run leaves behind, what it begins with, and its seed.

    Attributes:
        output: Folder for checkpoints, sample pictures and logs.
        seed: Seed of weights, order and augmentation.
        load_pretrain: Weights to begin with: a ``.ckpt``, or a folder with NVIDIA's ``latest_net_G.pth``. A trained
            global generator is taken as the global part of ``model.netG: local``.
        display_freq: Steps between two sheets of sample images; 0 for none.
        sample_count: Pictures per sheet.
        results_count: Most pictures on the results page, which is written when training ends; 0 for none.
        save_epoch_freq: Epochs between two kept checkpoints (``last.ckpt`` is written after every epoch).
        save_latest_freq: Steps between two writings of ``last.ckpt`` within an epoch; 0 for none.
        loggers: Where figures go: ``csv``, ``tensorboard``, ``mlflow`` (``MLFLOW_TRACKING_URI``, else a database in
            ``output``), ``wandb``.
        metrics: Of validation: ``l1``, ``psnr``, ``ssim``; ``lpips`` and ``fid``, which need pretrained weights.

    Raises:
        InputError: For numbers out of range.

    Example:
        >>> RunOptions(output="runs/cityscapes").seed
        0
    """

    output: str = "runs/pix2pixhd"
    seed: int = 0
    load_pretrain: str | None = None
    display_freq: int = 100
    sample_count: int = 4
    results_count: int = 50
    save_epoch_freq: int = 10
    save_latest_freq: int = 1000
    loggers: list[Logger] | Logger = dataclasses.field(default_factory=lambda: ["csv", "tensorboard"])
    metrics: list[Metric] | Metric = dataclasses.field(default_factory=lambda: ["l1", "psnr", "ssim"])

    def __post_init__(self) -> None:
        check_ranges("run", self, seed=at_least(0, _MAX_SEED))
        check_ranges("run", self, display_freq=at_least(0), save_latest_freq=at_least(0), results_count=at_least(0))
        check_ranges("run", self, sample_count=at_least(1), save_epoch_freq=at_least(1))
        # One name stands for a list of one.
        self.loggers = [self.loggers] if isinstance(self.loggers, str) else list(self.loggers)
        self.metrics = [self.metrics] if isinstance(self.metrics, str) else list(self.metrics)


@dataclasses.dataclass
class TrainConfig:
    """All options of a run.

    Attributes:
        data: Where the images are and how they are prepared.
        model: The networks.
        loss: Weights of the loss terms.
        optimizer: Adam's settings and the number of epochs.
        compute: How the step is computed.
        run: Output folder and seed.
        trainer: Options of Lightning's ``Trainer`` by name, those of ``TrainerOptions``.

    Raises:
        InputError: For an option of ``trainer`` that is unknown, not supported, or has a wrong value.
    """

    data: DataOptions
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    compute: ComputeOptions = dataclasses.field(default_factory=ComputeOptions)
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> TrainerOptions:
        """Checks all sections again, since fields may have been assigned to; returns the options of the trainer.

        Raises:
            InputError: For a value of a wrong type or out of range.
        """
        for field in dataclasses.fields(self):
            if field.name != "trainer":
                dataclasses.replace(getattr(self, field.name))
        self.compute.check(self.model)
        return trainer_options(self.trainer)
