"""The training step."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pix2pixhd.data import DataOptions, Sample, encode_input
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.training.options import LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.training.padding import generate_padded

__all__ = ["Pix2PixHD"]

# Frozen and the same for everybody: VGG19 in every checkpoint would be 80 MB of nothing new.
_NOT_SAVED = "generator_loss."


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(prefix + _NOT_SAVED)]:
        del state[name]


def _keep_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Fills in what was left out, so that loading can be strict about everything else."""
    own = module.get_submodule(_NOT_SAVED.rstrip(".")).state_dict()
    state.update({f"{prefix}{_NOT_SAVED}{name}": value for name, value in own.items()})


class Pix2PixHD(pl.LightningModule):
    """Generator, discriminator and their losses, trained by turns (arXiv 1711.11585).

    A step runs G once, D once on the generated and once on the real picture. The generator's backward leaves out the
    discriminator's weights, the discriminator's stops at the generated picture: no gradient is computed to be thrown
    away, and D's pass over the generated picture serves both losses. Generated and real pictures go through D apart
    rather than as one batch, because the generator's backward would then run through the real half too.

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
        self.generator_loss = GeneratorLoss(
            loss.lambda_gan, loss.lambda_feat, loss.lambda_vgg, preset=loss.preset, vgg=loss.vgg
        )
        self.discriminator_loss = DiscriminatorLoss(preset=loss.preset)
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_keep_own)  # type: ignore[no-untyped-call]
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
        optimizers = [
            torch.optim.Adam(net.parameters(), lr=options.lr, betas=(options.beta1, options.beta2))
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
        """Fills both networks' gradients; returns the loss terms, detached."""
        generated = self.netG(condition)
        # Everything after the generator starts at this leaf: its gradient is all that G needs to know of the losses.
        fake = generated.detach().requires_grad_()
        pred_fake = self.netD(torch.cat([condition, fake], dim=1))
        pred_real = self.netD(torch.cat([condition, real], dim=1))

        loss_G = self.generator_loss(pred_fake, pred_real, fake, real)
        loss_D = self.discriminator_loss(pred_fake, pred_real)
        # D's pass over the generated picture is needed once more, VGG's activations are not: they go first.
        if loss_G.vgg.requires_grad:
            self.manual_backward(loss_G.vgg, inputs=[fake])
        through_D = loss_G.gan + loss_G.feat
        if through_D.requires_grad:
            self.manual_backward(through_D, inputs=[fake], retain_graph=True)
        generated.backward(fake.grad)
        self.manual_backward(loss_D.total, inputs=list(self.netD.parameters()))
        terms = {
            "D_real": loss_D.real,
            "D_fake": loss_D.fake,
            "G_GAN": loss_G.gan,
            "G_GAN_Feat": loss_G.feat,
            "G_VGG": loss_G.vgg,
            "G_total": loss_G.total,
        }
        return {name: term.detach() for name, term in terms.items()}

    def on_train_epoch_end(self) -> None:
        """Lowers the learning rate."""
        for scheduler in cast(list[Any], self.lr_schedulers()):
            scheduler.step()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Compares generated with real pictures, both in [−1, 1]."""
        self.val_metrics.update(self(self.encode(batch)), batch["image"])
        self.log_dict(self.val_metrics, batch_size=len(batch["image"]))
