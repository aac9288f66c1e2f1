"""Writes the results page at the end of training."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from pix2pixhd.data import PairedDataset
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.metrics import image_metrics
from pix2pixhd.reporting.results_page import sample_images, write_page
from pix2pixhd.training.progress_counters import trial_batches

__all__ = ["ResultsPage"]


class ResultsPage(pl.Callback):
    """Writes the results page when training ends.

    Args:
        dataset: The source of the samples.
        folder: The folder of the page.
        count: Maximum number of images on the page; 0 for no page.

    Example:
        >>> page = ResultsPage(data.val or data.train, pathlib.Path("runs/a/results"), count=50)  # doctest: +SKIP
    """

    def __init__(self, dataset: PairedDataset, folder: pathlib.Path, count: int) -> None:
        self.dataset = dataset.plain()
        self.folder = folder
        self.count = count

    def write_missing(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes the page of a finished run that was killed before it had one."""
        if not (self.folder / "index.html").exists():
            self.on_train_end(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the page in the first process."""
        if self.count and trainer.is_global_zero and not trial_batches(trainer):
            try:
                write_page(
                    self.folder,
                    f"{self.folder.parent.name}: images of {self.dataset.options.dataroot}",
                    self._rows(pl_module),
                )
            except InputError as error:
                # A full disk must not make a finished training fail.
                pl.utilities.rank_zero_warn(f"the results page was not written: {error}")

    def _rows(self, module: Any) -> Iterable[tuple[str, dict[str, Tensor], dict[str, float]]]:
        for i in range(min(self.count, len(self.dataset))):
            sample = self.dataset[i]
            label, generated, real = sample_images(module, sample)
            yield sample["name"], {"label": label, "generated": generated, "real": real}, image_metrics(generated, real)
