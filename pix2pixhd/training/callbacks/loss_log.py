"""Sends the losses to the loggers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

__all__ = ["LossLog"]


class LossLog(pl.Callback):
    """Sends the losses of every ``trainer.log_every_n_steps``-th step to the loggers.

    Lightning would send them after all callbacks, so the losses of a step whose checkpoint is the last thing that a
    run does, for example after SIGTERM, would be lost: the resumed run starts with the next step.

    Example:
        >>> log = LossLog()
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sends this step's losses, if they are due."""
        step, every = trainer.fit_loop.total_batch_idx, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not (trainer.is_global_zero and trainer.loggers and every and (step + 1) % every == 0):
            return
        terms = {name: term for name, term in trainer.callback_metrics.items() if name.startswith(("G_", "D_"))}
        metrics = {"epoch": trainer.current_epoch, **{name: term.item() for name, term in terms.items()}}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
            logger.save()
