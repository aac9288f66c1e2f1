"""Writes the checkpoints of a run, and stops the run at its limits."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pix2pixhd.training.progress_counters import epoch_finished, finished_epoch, finished_steps, trial_batches
from pix2pixhd.training.shutdown import GracefulShutdown, RunStopped

__all__ = ["CheckpointSchedule"]


def _validates(trainer: pl.Trainer) -> bool:
    """Returns whether validation follows the current epoch."""
    every = trainer.check_val_every_n_epoch or 1
    return bool(trainer.enable_validation) and (trainer.current_epoch + 1) % every == 0


class CheckpointSchedule(Checkpoint):
    """Writes ``last.ckpt`` and the kept checkpoints, and stops a run on a signal or at a limit.

    ``last.ckpt`` is written after every epoch, every so many steps, and when a run stops. In an epoch with validation
    it is written before and after the validation, so that a run that is killed in between resumes with the next epoch.
    On a signal or at a limit the current step is finished first; if it is the last step of the epoch, the validation
    too. A run that stops within an epoch is saved before Lightning counts the epoch as finished. Lightning calls
    ``Checkpoint`` callbacks after all others, so a stop that another callback requests is handled in the same batch.

    Args:
        folder: The folder of checkpoints.
        check: Called before a checkpoint within an epoch; raises if the state must not be saved.
        keep_every: Epochs between two checkpoints that are kept, ``epoch_0009.ckpt``.
        every_n_steps: Steps between two updates of ``last.ckpt`` within an epoch; 0 for none.
        max_steps: Number of steps after which the run stops; -1 for no limit.
        min_steps: Number of steps before which the time limit does not stop the run.
        shutdown: Handles signals and the time limit.

    Attributes:
        stopped_by: The limit that stopped the run early: ``max_steps``, ``max_time`` or ``a callback``; None if the
            run was not stopped early.
        started: Whether training started. It does not if the resumed run has already trained all its epochs.

    Example:
        >>> checkpoints = CheckpointSchedule(pathlib.Path("runs/a/checkpoints"), lambda trainer, module: None)
    """

    def __init__(
        self,
        folder: pathlib.Path,
        check: Callable[[pl.Trainer, pl.LightningModule], None],
        keep_every: int = 1,
        every_n_steps: int = 0,
        max_steps: int = -1,
        min_steps: int = 0,
        shutdown: GracefulShutdown | None = None,
    ) -> None:
        self.folder = folder
        self.check = check
        self.keep_every = keep_every
        self.every_n_steps = every_n_steps
        self.max_steps = max_steps
        self.min_steps = min_steps
        self.shutdown = shutdown or GracefulShutdown()
        self.stopped_by: str | None = None
        self.started = False
        self._signal = 0
        self._stop_requested = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to watch signals and time; stops a resumed run that is already at its step limit."""
        self.started = True
        self.shutdown.install()
        if self._limit(trainer) == "max_steps":
            self._stop(trainer, "max_steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint when it is due, and stops the run on a signal or at a limit."""
        if pl_module.mid_accumulation:
            # A stop that another callback requests is delayed until the step is complete.
            self._stop_requested, trainer.should_stop = self._stop_requested or trainer.should_stop, False
            return
        request = self.shutdown.request()
        limit = self._limit(trainer, request.time_is_up)
        if epoch_finished(trainer):
            self._signal = request.signal
            if request.signal or limit:
                self._stop(trainer, limit)
            if _validates(trainer):
                self.check(trainer, pl_module)
                with finished_epoch(trainer):
                    self._save_epoch(trainer)
            return
        due = self.every_n_steps and finished_steps(trainer) % self.every_n_steps == 0
        if due or request.signal or limit:
            self.check(trainer, pl_module)
            self._save(trainer, "last")
        if request.signal:
            raise RunStopped(128 + request.signal)
        if limit:
            self._stop(trainer, limit)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoints of a finished epoch; an unfinished epoch has been saved when the run stopped."""
        if not epoch_finished(trainer):
            return
        self._save_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the signal handlers; exits if a signal arrived in the last step of an epoch."""
        self.shutdown.restore()
        if self._signal:
            raise RunStopped(128 + self._signal)

    def _limit(self, trainer: pl.Trainer, time_is_up: bool = False) -> str | None:
        """Returns the limit that has been reached, if any."""
        steps = finished_steps(trainer)
        if 0 < self.max_steps <= steps:
            return "max_steps"
        if time_is_up and steps >= self.min_steps:
            return "max_time"
        return "a callback" if (trainer.should_stop or self._stop_requested) and steps >= self.min_steps else None

    def _stop(self, trainer: pl.Trainer, limit: str | None) -> None:
        trainer.should_stop = True
        self.stopped_by = limit

    def _save_epoch(self, trainer: pl.Trainer) -> None:
        # The kept checkpoint first: a run that is killed between the two repeats the epoch and writes both.
        if (trainer.current_epoch + 1) % self.keep_every == 0:
            self._save(trainer, f"epoch_{trainer.current_epoch:04d}")
        self._save(trainer, "last")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if not trial_batches(trainer):
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")
