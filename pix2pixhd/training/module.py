"""The Lightning module: networks, losses and the training step."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

from pix2pixhd.checkpoints.format import describe
from pix2pixhd.checkpoints.pretrained import load_pretrained
from pix2pixhd.config.messages import as_options
from pix2pixhd.config.schema import ComputeOptions, DataOptions, LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.data import Sample, encode_input
from pix2pixhd.data.encoding import feature_region
from pix2pixhd.errors import InputError
from pix2pixhd.inference.padding import encode_padded, generate_padded
from pix2pixhd.losses import DiscriminatorLoss
from pix2pixhd.losses.perceptual_inputs import ImageSizeError
from pix2pixhd.models import LocalEnhancer
from pix2pixhd.models.build import build_discriminator, build_encoder, build_generator
from pix2pixhd.nn import lean
from pix2pixhd.ops.perceptual_tiling import MemoryLimitError
from pix2pixhd.reporting.metrics import build_metrics, update_metrics
from pix2pixhd.training.average import WeightAverage
from pix2pixhd.training.distributed import GradientAverager, gather_states, rank, share_buffers, world_size
from pix2pixhd.training.image_pool import ImagePool
from pix2pixhd.training.losses import generator_loss
from pix2pixhd.training.optimizer import Adam, can_step_in_backward, stepping_in_backward
from pix2pixhd.training.resume import apply_optimizer_options
from pix2pixhd.training.step import compute_gradients

__all__ = ["Pix2PixHD"]

# Weights that come from files, not from training.
_PRETRAINED = ("val_metrics.", "generator_loss.")


def _without(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


class Pix2PixHD(pl.LightningModule):
    """Generator and discriminator with their losses, trained alternately (arXiv 1711.11585).

    The gradients of a step are computed by ``pix2pixhd.training.step.compute_gradients``.

    Args:
        model: Options of the networks.
        data: Options of the data, which determine how images are encoded.
        loss: Options of the losses, such as the weights of the terms.
        optimizer: Options of Adam, the learning-rate schedule, the moving average and gradient accumulation.
        compute: Options of memory format, compilation and what is saved for backward.
        metrics: Names of the validation metrics, see ``RunOptions``.

    Attributes:
        netG: The generator.
        netD: The discriminator.
        netE: The encoder of instance features; None if the generator takes none.
        ema: Moving averages of ``netG`` and ``netE``; None if they are not averaged.
        channels_last: Whether the networks are in channels-last memory format; decided when training starts.

    Raises:
        InputError: For options that cannot be combined, and if pretrained weights are not available.

    Example:
        >>> module = Pix2PixHD(ModelOptions(ngf=8, ndf=8), DataOptions(label_nc=5), LossOptions(lambda_vgg=0.0))
    """

    def __init__(
        self,
        model: ModelOptions,
        data: DataOptions,
        loss: LossOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        compute: ComputeOptions | None = None,
        metrics: Sequence[str] = ("l1", "psnr", "ssim"),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model_options = model
        self.data_options = data
        self.optimizer_options = optimizer or OptimizerOptions()
        self.compute_options = compute or ComputeOptions()
        self.multiple = model.multiple
        loss = loss or LossOptions()
        self.save_hyperparameters(describe(model, data, loss, self.optimizer_options))
        self.netG = build_generator(model, data)
        self.netD = build_discriminator(model, data)
        self.netE = build_encoder(model, data)
        decay = self.optimizer_options.ema_decay
        self.ema = WeightAverage(self.averaged(), decay) if decay else None
        self.generator_loss = generator_loss(loss)
        self.pool = ImagePool(loss.pool_size)
        self.discriminator_loss = DiscriminatorLoss(preset=loss.preset, gan_mode=loss.gan_mode)
        self.val_metrics = build_metrics(metrics)
        self.channels_last = False
        self._steps_in_backward = False
        self._batches_since_step = 0
        self._check_options()

    def load_pretrained(self, path: pathlib.Path) -> str:
        """Loads trained weights before training, also into the moving average.

        Args:
            path: See ``pix2pixhd.checkpoints.pretrained.load_pretrained``.

        Returns:
            A one-line summary of what was loaded and what was not.

        Raises:
            InputError: If files are missing or damaged, or if the weights do not fit the networks.
        """
        loaded = load_pretrained(self.netG, self.netD, self.netE, path)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.averaged().state_dict())
        return loaded

    def averaged(self) -> nn.ModuleDict:
        """Returns the networks that are averaged, with their current weights."""
        return nn.ModuleDict({"netG": self.netG} | ({} if self.netE is None else {"netE": self.netE}))

    def _inference_networks(self) -> nn.ModuleDict:
        """Returns the networks used to generate images, with averaged weights if there are any."""
        return self.averaged() if self.ema is None else cast(nn.ModuleDict, self.ema.module)

    def _check_options(self) -> None:
        self.compute_options.check(self.model_options)
        if self.generator_loss.vgg is not None and self.data_options.output_nc not in (1, 3):
            raise InputError(
                "loss.lambda_vgg: the perceptual loss needs color or grayscale images, got "
                f"data.output_nc={self.data_options.output_nc} channels; set it to 0, or loss.perceptual: none"
            )
        if self.optimizer_options.niter_fix_global and not isinstance(self.netG, LocalEnhancer):
            raise InputError("optimizer.niter_fix_global needs model.netG: local, whose global part it keeps fixed")

    def setup(self, stage: str) -> None:
        """Applies the compute options to the networks, and seeds the image pool of this process."""
        self.pool = ImagePool(self.pool.size, f"{torch.initial_seed()}:{self.global_rank}")
        options = self.compute_options
        half = self.trainer.precision not in ("32", "32-true", "64-true")
        self.channels_last = half if options.channels_last is None else options.channels_last
        if self.channels_last:
            for network in (*self._networks(), *([] if self.ema is None else [self.ema])):
                network.to(memory_format=torch.channels_last)
        if options.checkpoint_activations:
            setattr(self.netG, "checkpoint_activations", True)  # noqa: B010 - both generators have this attribute
        for network in self._networks():
            lean(network, options.lean)
        if options.compile:
            # The discriminator's graph serves two backward passes; donated buffers would be reused by the first.
            functorch_config.donated_buffer = False
            for network in self._networks():
                network.compile()

    def _networks(self) -> list[nn.Module]:
        return [network for network in (self.netG, self.netD, self.netE) if network is not None]

    def encode(self, batch: Sample) -> Tensor:
        """Encodes labels and instance edges of a batch, the condition of both networks, as ``[N, C, H, W]``."""
        return encode_input(
            batch["input"], batch.get("instance"), self.data_options.label_nc, cast(torch.dtype, self.dtype)
        )

    def encode_features(self, batch: Sample) -> Tensor | None:
        """Encodes a batch's real images as features ``[N, feat_num, H, W]``; None without an encoder."""
        return None if self.netE is None else self.netE(self._images(batch), feature_region(batch, self.model_options))

    def _images(self, batch: Sample) -> Tensor:
        """Returns the real images in the networks' dtype; Lightning converts batches only in some hooks."""
        return batch["image"].to(cast(torch.dtype, self.dtype))

    def forward(self, condition: Tensor) -> Tensor:
        """Generates images ``[N, C, H, W]`` in [−1, 1] of any size, by padding the input and cropping the output.

        Args:
            condition: The result of ``encode``, concatenated with the features if there is an encoder.
        """
        network = self._inference_networks()["netG"]
        # Under bf16-true the average is kept and evaluated in float32, as in `pix2pixhd generate`.
        return generate_padded(network, condition.to(next(network.parameters()).dtype), self.multiple)

    def generate(self, batch: Sample) -> Tensor:
        """Generates the images of a batch, with averaged weights if there are any.

        If there is an encoder, the features are those of the real images.
        """
        condition = self.encode(batch)
        if self.netE is None:
            return self(condition)  # type: ignore[no-any-return]
        network = self._inference_networks()["netE"]
        images = batch["image"].to(next(network.parameters()).dtype)
        features = encode_padded(network, images, feature_region(batch, self.model_options), self.multiple)
        return self(torch.cat([condition, features], dim=1))  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        """Creates one Adam optimizer for G and E and one for D, with linear learning-rate decay."""
        options = self.optimizer_options
        # The fused step reads weights, gradients and moments once instead of nine times.
        optimizers = [
            Adam(networks.parameters(), lr=options.lr, betas=(options.beta1, options.beta2), fused=True)
            for networks in (self.averaged(), self.netD)
        ]
        schedulers = [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, options.rate), "name": f"lr-{name}"}
            for name, optimizer in zip("GD", optimizers, strict=True)
        ]
        return optimizers, schedulers

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients of one optimizer's networks, after they have been unscaled and averaged."""
        limit = self.optimizer_options.gradient_clip_val
        if limit is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, limit)

    def on_train_epoch_start(self) -> None:
        """Freezes the global part in the first ``niter_fix_global`` epochs; trains the whole generator afterwards."""
        if not self.optimizer_options.niter_fix_global:
            return
        assert isinstance(self.netG, LocalEnhancer)
        fixed = self.current_epoch < self.optimizer_options.niter_fix_global
        self.netG.requires_grad_(not fixed)
        if fixed:
            for part in self.netG.finest_enhancer():
                part.requires_grad_(True)

    def on_train_start(self) -> None:
        """Applies the configured optimizer options to restored state, also within an epoch."""
        apply_optimizer_options(self.trainer.optimizers, cast(list[Any], self.lr_schedulers()), self.optimizer_options)
        self._steps_in_backward = self._decide_stepping_in_backward()
        self.on_train_epoch_start()

    def _decide_stepping_in_backward(self) -> bool:
        wanted, precision = self.compute_options.optimizer_in_backward, str(self.trainer.precision)
        possible = can_step_in_backward(wanted, self.optimizer_options, precision, self.trainer.world_size)
        if wanted is not None:
            return wanted
        # Code of the user may read gradients at any time.
        callbacks = cast(list[pl.Callback], getattr(self.trainer, "callbacks"))  # noqa: B009
        owners = {type(owner).__module__.partition(".")[0] for owner in (self, *callbacks)}
        return possible and owners <= {"pix2pixhd", "lightning"}

    @property
    def mid_accumulation(self) -> bool:
        """Whether gradients have been accumulated since the last optimizer step."""
        return self._batches_since_step > 0

    def training_step(self, batch: Sample, batch_idx: int) -> None:
        """Runs one step of the generator and one of the discriminator, both computed with the same D."""
        optimizer_G, optimizer_D = cast(list[Any], self.optimizers())
        early = cast(list[Adam], self.trainer.optimizers) if self._steps_in_backward else []
        accumulate = self.optimizer_options.accumulate
        if not self._batches_since_step:
            optimizer_G.zero_grad()
            optimizer_D.zero_grad()
        # The last step of an epoch may have fewer batches.
        first = batch_idx - batch_idx % accumulate
        batches = min(accumulate, int(self.trainer.num_training_batches) - first)
        self._batches_since_step += 1
        stepping = self._batches_since_step >= batches
        try:
            with stepping_in_backward(early):
                terms = self.compute_gradients(
                    self.encode(batch), self._images(batch), self.encode_features(batch), batches, stepping
                )
        except (MemoryLimitError, ImageSizeError) as error:
            raise InputError(as_options(str(error))) from error
        if stepping:
            self._batches_since_step = 0
            optimizer_G.step()
            optimizer_D.step()
            if self.ema is not None:
                self.ema.update_parameters(self.averaged())
        if batch_idx + 1 >= self.trainer.num_training_batches:
            # Not in the hook for the epoch's end, so that a checkpoint before validation has the next epoch's rate.
            for scheduler in cast(list[Any], self.lr_schedulers()):
                scheduler.step()
        # The callback LossLog sends them to the loggers.
        self.log_dict(terms, prog_bar=True, logger=False, batch_size=len(batch["image"]))

    def compute_gradients(
        self, condition: Tensor, real: Tensor, features: Tensor | None = None, batches: int = 1, last: bool = True
    ) -> dict[str, Tensor]:
        """Adds one batch's contribution to the gradients of all networks.

        Args:
            condition: The result of ``encode``.
            real: The real images.
            features: The result of ``encode_features``.
            batches: Number of batches that are accumulated for the step.
            last: Whether this is the last of these batches; gradients are then averaged between processes.

        Returns:
            The detached loss terms of this process.
        """
        averager = GradientAverager()

        def backward(loss: Tensor, **options: Any) -> None:
            self.manual_backward(loss / batches if batches > 1 else loss, **options)

        terms = compute_gradients(
            self.netG,
            self.netD,
            self.generator_loss,
            self.discriminator_loss,
            condition,
            real,
            backward=backward,
            on_gradients=averager.start if last else None,
            pool=self.pool,
            features=features,
        )
        if last and self.netE is not None:
            averager.start(self.netE)
        averager.finish()
        if last:
            share_buffers(self._networks())
        return terms

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the image pool and random state of every process; removes pretrained weights of metrics and losses."""
        checkpoint["state_dict"] = _without(checkpoint["state_dict"], *_PRETRAINED)
        checkpoint["processes"] = gather_states({"pool": self.pool.state_dict(), "rng": torch.get_rng_state()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state of this process; if the number of processes has changed, the pools start empty.

        Metrics, losses and the moving average may have been changed, enabled or disabled since. A new average starts
        with the current weights.
        """
        if self._trainer is not None:
            # Lightning converts the module only after this hook, so float64 weights would be rounded to float32.
            self._trainer.precision_plugin.convert_module(self)
        weights = _without(checkpoint["state_dict"], *_PRETRAINED, *([] if self.ema else ["ema."]))
        own = self.state_dict()
        weights |= {name: value for name, value in own.items() if name.startswith(_PRETRAINED)}
        if self.ema is not None and "ema.n_averaged" not in weights:
            trained = {f"ema.module.{name}": value for name, value in weights.items() if f"ema.module.{name}" in own}
            weights |= {"ema.n_averaged": torch.ones_like(own["ema.n_averaged"]), **trained}
        checkpoint["state_dict"] = weights
        states = checkpoint.get("processes", [])
        if len(states) == world_size():
            state = states[rank()]
            self.pool.load_state_dict(state["pool"])
            torch.set_rng_state(state["rng"].cpu())

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Updates the metrics with generated and real images, both in [−1, 1].

        All processes get equally many images, so some images occur twice; these are counted once.
        """
        loader: Any = self.trainer.val_dataloaders
        if batch_idx * world_size() + rank() < len(loader.dataset):
            update_metrics(self.val_metrics, self.generate(batch), batch["image"])
        self.log_dict(self.val_metrics, batch_size=len(batch["image"]))
