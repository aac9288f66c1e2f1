"""The training step."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pix2pixhd.data import DataOptions, InputError, Sample, encode_input
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.training.distributed import GradientAverager
from pix2pixhd.training.options import LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.training.padding import generate_padded
from pix2pixhd.training.pool import ImagePool
from pix2pixhd.training.step import compute_gradients

__all__ = ["Pix2PixHD"]


def generator_loss(options: LossOptions) -> GeneratorLoss:
    """The generator's loss of a configuration.

    Raises:
        InputError: If the weights of VGG19 cannot be had; says which file to put where.
    """
    try:
        loss = GeneratorLoss(
            options.lambda_gan,
            options.lambda_feat,
            options.lambda_vgg,
            preset=options.preset,
            gan_mode=options.gan_mode,
            vgg=options.vgg,
        )
    except (RuntimeError, FileNotFoundError, ValueError) as error:
        raise InputError(f"loss.vgg: {error}\nOr train without the perceptual loss: loss.lambda_vgg: 0") from error
    if loss.vgg is not None and options.vgg_memory_limit is not None:
        loss.vgg.memory_limit = options.vgg_memory_limit * 2**20
    return loss


class Pix2PixHD(pl.LightningModule):
    """Generator, discriminator and their losses, trained by turns (arXiv 1711.11585).

    The step itself is ``pix2pixhd.training.step.compute_gradients``.

    Args:
        model: The networks.
        data: How pictures are encoded.
        loss: Weights of the loss terms.
        optimizer: Adam's settings and the learning rate's course.

    Attributes:
        netG: The generator.
        netD: The discriminator.

    Example:
        >>> module = Pix2PixHD(ModelOptions(ngf=8, ndf=8), DataOptions(label_nc=5), LossOptions(lambda_vgg=0.0))
    """

    def __init__(
        self,
        model: ModelOptions,
        data: DataOptions,
        loss: LossOptions | None = None,
        optimizer: OptimizerOptions | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.data_options = data
        self.optimizer_options = optimizer or OptimizerOptions()
        self.multiple = model.multiple
        loss = loss or LossOptions()
        # Plain dictionaries of numbers and strings, which torch.load(weights_only=True) reads back.
        self.save_hyperparameters(
            {
                "format": 1,
                "model": dataclasses.asdict(model),
                "data": dataclasses.asdict(data),
                "loss": dataclasses.asdict(loss),
                "optimizer": dataclasses.asdict(self.optimizer_options),
            }
        )
        self.netG = model.generator(data)
        self.netD = model.discriminator(data)
        self.generator_loss = generator_loss(loss)
        self.pool = ImagePool(loss.pool_size, f"{torch.initial_seed()}:{os.environ.get('RANK', 0)}")
        self.discriminator_loss = DiscriminatorLoss(preset=loss.preset, gan_mode=loss.gan_mode)
        self.val_metrics = MetricCollection(
            {
                "L1": MeanAbsoluteError(),
                "PSNR": PeakSignalNoiseRatio(data_range=(-1.0, 1.0)),
                "SSIM": StructuralSimilarityIndexMeasure(data_range=(-1.0, 1.0)),
            },
            prefix="val_",
        )

    def encode(self, batch: Sample) -> Tensor:
        """The networks' input ``[N, C, H, W]`` of a batch."""
        return encode_input(batch["input"], batch.get("instance"), self.data_options.label_nc)

    def forward(self, condition: Tensor) -> Tensor:
        """Generates pictures ``[N, C, H, W]`` in [−1, 1] of any size; sizes are padded and cropped back."""
        return generate_padded(self.netG, condition, self.multiple)

    def configure_optimizers(self) -> Any:
        """Adam for G and D, with the learning rate's linear decay."""
        options = self.optimizer_options
        # Fused: one pass over weights, gradients and moments instead of nine.
        optimizers = [
            torch.optim.Adam(net.parameters(), lr=options.lr, betas=(options.beta1, options.beta2), fused=True)
            for net in (self.netG, self.netD)
        ]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, options.rate) for optimizer in optimizers]

    def training_step(self, batch: Sample, batch_idx: int) -> None:
        """One step of the generator and one of the discriminator, both against the same D."""
        optimizer_G, optimizer_D = cast(list[Any], self.optimizers())
        optimizer_G.zero_grad()
        optimizer_D.zero_grad()
        terms = self.compute_gradients(self.encode(batch), batch["image"])
        optimizer_G.step()
        optimizer_D.step()
        self.log_dict(terms, prog_bar=True, batch_size=len(batch["image"]))

    def compute_gradients(self, condition: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Fills both networks' gradients, averaged between processes; returns this one's loss terms, detached."""
        averager = GradientAverager()
        terms = compute_gradients(
            self.netG,
            self.netD,
            self.generator_loss,
            self.discriminator_loss,
            condition,
            real,
            backward=self.manual_backward,
            on_gradients=averager.start,
            pool=self.pool,
        )
        averager.finish()
        return terms

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the image pool, of the process that writes."""
        if self.pool.size:
            checkpoint["image_pool"] = self.pool.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the image pool back; a run that had none begins with an empty one."""
        if "image_pool" in checkpoint:
            self.pool.load_state_dict(checkpoint["image_pool"])

    def on_train_epoch_end(self) -> None:
        """Lowers the learning rate."""
        for scheduler in cast(list[Any], self.lr_schedulers()):
            scheduler.step()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Compares generated with real pictures, both in [−1, 1]."""
        self.val_metrics.update(self(self.encode(batch)), batch["image"])
        self.log_dict(self.val_metrics, batch_size=len(batch["image"]))
