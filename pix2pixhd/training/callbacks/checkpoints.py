"""When a run writes its checkpoints, and where it stops."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pix2pixhd.training.steps import epoch_finished, finished_epoch, finished_steps, trial_batches
from pix2pixhd.training.stopping import Stopped, StopRequests

__all__ = ["RunCheckpoints"]


def _validates(trainer: pl.Trainer) -> bool:
    """Whether validation follows the current epoch."""
    every = trainer.check_val_every_n_epoch or 1
    return bool(trainer.enable_validation) and (trainer.current_epoch + 1) % every == 0


class RunCheckpoints(Checkpoint):
    """Writes ``last.ckpt`` and the kept checkpoints, and stops a run that is asked to, or has reached a limit.

    ``last.ckpt`` is written after every epoch, every so many steps, and where a run stops. In an epoch with validation
    it is written before and after validation, which a run that was ended in between does not repeat. On a signal and
    at a limit the step is finished first, or the epoch's last step with its validation. A run that stops within an
    epoch is saved within that epoch, before Lightning takes the epoch for finished. Lightning calls these after all
    others, so that a stop that they request is seen too.

    Args:
        folder: The folder of checkpoints.
        check: Raises if the state must not be saved; called before a checkpoint within an epoch.
        keep_every: Epochs between two checkpoints that are kept, ``epoch_0009.ckpt``.
        every_n_steps: Steps between two writings of ``last.ckpt`` within an epoch; 0 for none.
        max_steps: Number of steps after which the run stops; -1 for no limit.
        min_steps: Number of steps before which the time does not end the run.
        requests: Signals and the time limit.

    Attributes:
        stopped_by: What ended the run before its last epoch did: ``max_steps``, ``max_time`` or ``a callback``.
        started: Whether training started; a resumed run may have trained all its epochs already.

    Example:
        >>> checkpoints = RunCheckpoints(pathlib.Path("runs/a/checkpoints"), lambda trainer, module: None)
    """

    def __init__(
        self,
        folder: pathlib.Path,
        check: Callable[[pl.Trainer, pl.LightningModule], None],
        keep_every: int = 1,
        every_n_steps: int = 0,
        max_steps: int = -1,
        min_steps: int = 0,
        requests: StopRequests | None = None,
    ) -> None:
        self.folder = folder
        self.check = check
        self.keep_every = keep_every
        self.every_n_steps = every_n_steps
        self.max_steps = max_steps
        self.min_steps = min_steps
        self.requests = requests or StopRequests()
        self.stopped_by: str | None = None
        self.started = False
        self._signal = 0
        self._asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to watch signals and time; a run that has been resumed at its limit stops here."""
        self.started = True
        self.requests.begin()
        if self._limit(trainer) == "max_steps":
            self._stop(trainer, "max_steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint when it is due, and stops the run when it is asked to."""
        if pl_module.mid_accumulation:
            # A stop that another callback requests waits for the step, too.
            self._asked, trainer.should_stop = self._asked or trainer.should_stop, False
            return
        request = self.requests.current()
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
            raise Stopped(128 + request.signal)
        if limit:
            self._stop(trainer, limit)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the checkpoints of a finished epoch; an unfinished one has been saved."""
        if not epoch_finished(trainer):
            return
        self._save_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the signals; a run that was asked to stop in an epoch's last step stops here."""
        self.requests.end()
        if self._signal:
            raise Stopped(128 + self._signal)

    def _limit(self, trainer: pl.Trainer, time_is_up: bool = False) -> str | None:
        """The limit that has been reached."""
        steps = finished_steps(trainer)
        if 0 < self.max_steps <= steps:
            return "max_steps"
        if time_is_up and steps >= self.min_steps:
            return "max_time"
        return "a callback" if (trainer.should_stop or self._asked) and steps >= self.min_steps else None

    def _stop(self, trainer: pl.Trainer, limit: str | None) -> None:
        trainer.should_stop = True
        self.stopped_by = limit

    def _save_epoch(self, trainer: pl.Trainer) -> None:
        # The kept one first: a run that is killed between the two repeats the epoch, and writes both.
        if (trainer.current_epoch + 1) % self.keep_every == 0:
            self._save(trainer, f"epoch_{trainer.current_epoch:04d}")
        self._save(trainer, "last")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if not trial_batches(trainer):
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")
