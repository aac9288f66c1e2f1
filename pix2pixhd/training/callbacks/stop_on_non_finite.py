"""Stops training when losses, weights or float16 gradients are NaN or Inf."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from pix2pixhd.errors import InputError
from pix2pixhd.training.distributed import world_size
from pix2pixhd.training.processes import raise_together

__all__ = ["StopOnNonFinite"]

_MIN_LOSS_SCALE = 2.0**-10


class StopOnNonFinite(pl.Callback):
    """Stops training on a non-finite loss, before it overwrites a good checkpoint.

    The losses stay on the device. They are checked every ``every`` batches and at the end of an epoch, there together
    with the weights. Under float16, which skips steps with infinite gradients, the loss scale is checked instead of the
    losses.

    Args:
        every: Batches between two checks.

    Example:
        >>> stop = StopOnNonFinite(every=50)
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._non_finite: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records whether this step's losses are finite."""
        # Under float16 the scaler skips a step with an infinite loss, which is not an error.
        if not str(trainer.precision).startswith("16"):
            for name, term in trainer.callback_metrics.items():
                if name.startswith(("G_", "D_")):
                    flag = ~term.detach().isfinite()
                    self._non_finite[name] = self._non_finite[name] | flag if name in self._non_finite else flag
        if batch_idx % self.every == self.every - 1:
            self._check_losses(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks before the checkpoint of this epoch is written."""
        self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Checks the losses since the previous check, and all weights.

        Raises:
            InputError: In the first process, if one of them is not finite or if float16 skips every step.
        """
        self._check_losses(trainer)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                _stop(trainer, f"the weights {name} are no longer finite")

    def _check_losses(self, trainer: pl.Trainer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Averaged gradients, and so the scale, are the same in all processes. The scale starts at 2^16 and is halved
        # with every skipped step.
        if scaler is not None and scaler.get_scale() < _MIN_LOSS_SCALE:
            _stop(trainer, f"gradients are not finite in float16 even with a loss scale of {scaler.get_scale():.2g}")
        if not self._non_finite:
            return
        names = sorted(self._non_finite)
        flags = torch.stack([self._non_finite[name] for name in names]).int()  # [terms]
        self._non_finite.clear()
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)  # losses differ between processes
        failed = [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]
        if failed:
            _stop(trainer, f"{', '.join(failed)} {'is' if len(failed) == 1 else 'are'} no longer finite")


def _stop(trainer: pl.Trainer, what: str) -> None:
    raise_together(
        InputError(
            f"epoch {trainer.current_epoch}: {what}, so training was stopped; the last checkpoint is unchanged. Train "
            "again with a lower optimizer.lr or in another trainer.precision"
        )
    )
