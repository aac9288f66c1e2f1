"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["LossProgressBar"]


class LossProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the loss terms, refreshed every ``refresh_rate`` steps.

    Every refresh copies the terms to the host, so the bar is not refreshed at every step.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Returns the loss terms, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
            if isinstance(value, (int, float))
        }
