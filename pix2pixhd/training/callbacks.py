"""What a run shows while it trains."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from pix2pixhd.data import InputError, PairedDataset, save_picture
from pix2pixhd.data.images import tensor_to_picture
from pix2pixhd.training.loggers import log_samples, logger_errors
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.pictures import sheet
from pix2pixhd.training.results import sample_pictures, viewable
from pix2pixhd.training.steps import finished_steps, trial_batches

__all__ = ["LossBar", "SampleSheets", "StopAtNaN"]


class SampleSheets(pl.Callback):
    """Writes a sheet (label | generated | real) every so many steps, as a PNG and to the loggers that take images.

    Args:
        dataset: Where the samples come from; the same ones on every sheet.
        folder: Where the sheets go, as ``step_000100.png``.
        every: Steps between two sheets; 0 for none.
        count: Samples per sheet.

    Example:
        >>> sheets = SampleSheets(data.val or data.train, pathlib.Path("runs/a/samples"), 100, 4)  # doctest: +SKIP
    """

    def __init__(self, dataset: PairedDataset, folder: pathlib.Path, every: int, count: int) -> None:
        plain = dataset.plain()
        step = max(len(plain) // count, 1)
        self.samples = [plain[i] for i in range(0, len(plain), step)[:count]]
        first = self.samples[0]["image"].shape
        self.samples = [sample for sample in self.samples if sample["image"].shape == first]
        self.folder = folder
        self.every = every
        self._warned = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a sheet after every ``every``-th step."""
        step = finished_steps(trainer)
        if self.every and step % self.every == 0 and not pl_module.mid_accumulation and trainer.is_global_zero:
            self._write(trainer, pl_module, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the last sheet."""
        step = finished_steps(trainer)
        if self.every and step % self.every and trainer.is_global_zero:
            self._write(trainer, pl_module, step)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        assert isinstance(module, Pix2PixHD)
        if trial_batches(trainer):
            return
        grid = sheet([[viewable(x) for x in sample_pictures(module, sample)] for sample in self.samples])
        try:
            save_picture(grid, self.folder / f"step_{step:06d}.png")
        except InputError as error:
            # A full disk must not cost the run its training.
            pl.utilities.rank_zero_warn(f"no sample pictures: {error}")
        for logger in trainer.loggers:
            # Loggers count batches, of which several make a step.
            try:
                log_samples(logger, tensor_to_picture(grid), trainer.fit_loop.total_batch_idx + 1)
            except logger_errors() as error:
                if not self._warned:
                    pl.utilities.rank_zero_warn(f"{type(logger).__name__} did not take the sample images: {error}")
                self._warned = True


class StopAtNaN(pl.Callback):
    """Ends a run whose losses are no longer numbers, before a checkpoint of it replaces a good one.

    The losses stay on the device; they are looked at every ``every`` steps and at the end of an epoch. Under float16
    the weights are, at its end only: there a step with an infinite gradient is skipped, as it should be.

    Args:
        every: Steps between two looks.

    Example:
        >>> stop = StopAtNaN(every=50)
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._bad: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of this step's losses."""
        if str(trainer.precision).startswith("16"):
            return
        for name, term in trainer.callback_metrics.items():
            if name.startswith(("G_", "D_")):
                bad = ~term.detach().isfinite()
                self._bad[name] = self._bad[name] | bad if name in self._bad else bad
        if batch_idx % self.every == self.every - 1:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks before the checkpoint of this epoch is written."""
        self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Looks at the losses since the last time, and at all weights.

        Raises:
            InputError: If one of them is not finite.
        """
        self._look(trainer)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                self._raise(trainer, f"the weights {name} are")

    def _look(self, trainer: pl.Trainer) -> None:
        bad = [name for name, flag in self._bad.items() if bool(flag)]
        self._bad.clear()
        if bad:
            self._raise(trainer, f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'}")

    @staticmethod
    def _raise(trainer: pl.Trainer, what: str) -> None:
        raise InputError(
            f"epoch {trainer.current_epoch}: {what} no longer finite, so training was stopped; the last "
            "checkpoint is untouched. Train again with a lower optimizer.lr or in another trainer.precision"
        )


class LossBar(TQDMProgressBar):
    """Lightning's progress bar with the loss terms, brought up to date every ``refresh_rate`` steps.

    Every refresh copies the terms to the host, so it is not done at every step.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss terms, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
            if isinstance(value, (int, float))
        }
