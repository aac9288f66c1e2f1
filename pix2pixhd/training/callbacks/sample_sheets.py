"""Sheets of sample images, written during training."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl

from pix2pixhd.data import PairedDataset, save_image
from pix2pixhd.data.images import tensor_to_image
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.image_grid import image_grid
from pix2pixhd.reporting.results_page import sample_images, viewable
from pix2pixhd.training.loggers import log_samples
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.progress_counters import finished_steps, trial_batches
from pix2pixhd.training.tolerant_loggers import logger_errors

__all__ = ["SampleSheets"]


class SampleSheets(pl.Callback):
    """Writes a sheet (label | generated | real) every so many steps, as a PNG and to the loggers that accept images.

    Args:
        dataset: The source of the samples, which are the same on every sheet.
        folder: Folder of the sheets, ``step_000100.png``.
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

    def write_missing(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes the last sheet of a finished run that was killed before it had one."""
        if not self._path(finished_steps(trainer)).exists():
            self.on_train_end(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the last sheet."""
        step = finished_steps(trainer)
        if self.every and step % self.every and trainer.is_global_zero:
            self._write(trainer, pl_module, step)

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"step_{step:06d}.png"

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        assert isinstance(module, Pix2PixHD)
        if trial_batches(trainer):
            return
        grid = image_grid([[viewable(x) for x in sample_images(module, sample)] for sample in self.samples])
        try:
            save_image(grid, self._path(step))
        except InputError as error:
            # A full disk must not stop the training.
            pl.utilities.rank_zero_warn(f"the sample images were not written: {error}")
        for logger in trainer.loggers:
            # Loggers count batches, of which several make a step.
            try:
                log_samples(logger, tensor_to_image(grid), trainer.fit_loop.total_batch_idx + 1)
            except logger_errors() as error:
                if not self._warned:
                    pl.utilities.rank_zero_warn(f"{type(logger).__name__} did not accept the sample images: {error}")
                self._warned = True
