"""The progress of a run, derived from Lightning's counters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

__all__ = ["epoch_finished", "finished_batches", "finished_epoch", "finished_steps", "trial_batches"]


def finished_steps(trainer: pl.Trainer) -> int:
    """Returns the number of training steps so far, over all epochs; each step updates every network.

    Under manual optimization Lightning's ``global_step`` counts the step of every optimizer.
    """
    return trainer.global_step // max(len(trainer.optimizers), 1)


def finished_batches(trainer: pl.Trainer) -> int:
    """Returns the number of batches of the current epoch that a run has trained on; 0 between two epochs."""
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return done if done < trainer.num_training_batches else 0


def epoch_finished(trainer: pl.Trainer) -> bool:
    """Returns whether the latest batch was the last of its epoch.

    Lightning also calls the hooks for the end of an epoch when a run stops within it.
    """
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


@contextlib.contextmanager
def finished_epoch(trainer: pl.Trainer) -> Iterator[None]:
    """Advances Lightning's counters to the end of the epoch, for a checkpoint written before the validation.

    A run that resumes from this checkpoint starts with the next epoch and does not repeat the validation.
    """
    loop: Any = trainer.fit_loop
    batch, epoch = loop.epoch_loop.batch_progress, loop.epoch_progress

    def advance(by: int) -> None:
        for progress in (batch.total, batch.current):
            progress.completed += by
        for progress in (epoch.total, epoch.current):
            progress.processed += by
        # The step that loggers record for learning rates and validation metrics.
        loop.epoch_loop._batches_that_stepped += by

    advance(1)
    try:
        yield
    finally:
        advance(-1)


def trial_batches(trainer: pl.Trainer) -> int:
    """Returns the number of batches of a trial (``trainer.fast_dev_run``), which writes no files; 0 for a real run."""
    return int(trainer.fast_dev_run)  # type: ignore[attr-defined]
