"""Stopping a run from outside, and going on in the middle of an epoch."""

from __future__ import annotations

import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from pix2pixhd.training.distributed import world_size

__all__ = ["SaveWithinEpoch", "Stopped"]


class Stopped(SystemExit):
    """The run was asked to stop, and did so after writing its checkpoint; the exit code is the shell's for it."""


class SaveWithinEpoch(pl.Callback):
    """Writes ``last.ckpt`` every so many steps, and when the process is asked to stop (SIGTERM, or Ctrl-C).

    On such a signal the step, or the epoch's last step with its validation, is brought to its end first. Ctrl-C a
    second time stops at once. With several processes each of them may get the signal; all stop after the same step.

    Args:
        path: The checkpoint.
        check: Raises where the state is none to keep, before it is written.
        every: Steps between two writings; 0 for none but at a signal.

    Example:
        >>> callback = SaveWithinEpoch(pathlib.Path("runs/a/checkpoints/last.ckpt"), lambda trainer, module: None)
    """

    def __init__(
        self, path: pathlib.Path, check: Callable[[pl.Trainer, pl.LightningModule], None], every: int = 0
    ) -> None:
        self.path = path
        self.check = check
        self.every = every
        self._group: Any = None
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the two signals from Lightning, whose handlers stop without a checkpoint."""
        if world_size() > 1:
            # Of the CPUs, so that asking at every step does not wait for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # The second time it ends the program, as ever.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.received = number
        again = "; Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{signal.Signals(number).name}: stopping after this step{again}", file=sys.stderr, flush=True)

    def _agreed(self) -> int:
        """The signal that any process received; 0 for none."""
        flag = torch.tensor(self.received or 0)
        if self._group is not None:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return int(flag)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint when it is time, and stops when asked to."""
        if pl_module.mid_accumulation:
            return
        received = self._agreed()
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # The epoch's own checkpoint comes next.
            trainer.should_stop = trainer.should_stop or received != 0
            self.received = received or None
            return
        step = trainer.fit_loop.total_batch_idx + 1
        if received or (self.every and step % self.every == 0):
            self.check(trainer, pl_module)
            trainer.save_checkpoint(self.path)
        if received:
            raise Stopped(128 + received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back, as Lightning does after an exception; a run that stopped at an epoch's end stops."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received is not None:
            raise Stopped(128 + self.received)
