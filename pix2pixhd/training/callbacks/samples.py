"""What a run shows while it trains."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from pix2pixhd.data import PairedDataset, save_image
from pix2pixhd.data.images import tensor_to_image
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.image_grid import image_grid
from pix2pixhd.reporting.results_page import sample_images, viewable
from pix2pixhd.training.distributed import world_size
from pix2pixhd.training.loggers import log_samples, logger_errors
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.processes import raise_together
from pix2pixhd.training.steps import finished_steps, trial_batches

__all__ = ["LossBar", "SampleSheets", "StopAtNaN"]

_LEAST_SCALE = 2.0**-10


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
        grid = image_grid([[viewable(x) for x in sample_images(module, sample)] for sample in self.samples])
        try:
            save_image(grid, self.folder / f"step_{step:06d}.png")
        except InputError as error:
            # A full disk must not cost the run its training.
            pl.utilities.rank_zero_warn(f"no sample pictures: {error}")
        for logger in trainer.loggers:
            # Loggers count batches, of which several make a step.
            try:
                log_samples(logger, tensor_to_image(grid), trainer.fit_loop.total_batch_idx + 1)
            except logger_errors() as error:
                if not self._warned:
                    pl.utilities.rank_zero_warn(f"{type(logger).__name__} did not take the sample images: {error}")
                self._warned = True


class StopAtNaN(pl.Callback):
    """Stops training on a non-finite loss, before it overwrites a good checkpoint.

    The losses stay on the device; they are checked every ``every`` batches, and with the weights at the end of an
    epoch. Under float16, which skips steps with an infinite gradient, the loss scale is checked instead of the losses.

    Args:
        every: Batches between two checks.

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
        # Under float16 a step with an infinite loss is skipped, as it should be.
        if not str(trainer.precision).startswith("16"):
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
            InputError: If one of them is not finite, or if float16 skips every step; in the first process.
        """
        self._look(trainer)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                _stop(trainer, f"the weights {name} are no longer finite")

    def _look(self, trainer: pl.Trainer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Gradients and so the scale are the same in all processes. It starts at 2^16 and is halved with every step that
        # is skipped.
        if scaler is not None and scaler.get_scale() < _LEAST_SCALE:
            _stop(trainer, f"gradients are not finite in float16 even with a loss scale of {scaler.get_scale():.2g}")
        if not self._bad:
            return
        names = sorted(self._bad)
        flags = torch.stack([self._bad[name] for name in names]).int()  # [terms]
        self._bad.clear()
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)  # losses are each process's own
        bad = [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]
        if bad:
            _stop(trainer, f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} no longer finite")


def _stop(trainer: pl.Trainer, what: str) -> None:
    raise_together(
        InputError(
            f"epoch {trainer.current_epoch}: {what}, so training was stopped; the last checkpoint is untouched. Train "
            "again with a lower optimizer.lr or in another trainer.precision"
        )
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
