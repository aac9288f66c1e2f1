"""Resuming a run: checks of changed options, their effect, and the record of the configuration."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from pix2pixhd.checkpoints.format import Checkpoint
from pix2pixhd.config.parser import absolute_paths, config_text
from pix2pixhd.config.schema import OptimizerOptions, TrainConfig
from pix2pixhd.errors import InputError
from pix2pixhd.files import write_text
from pix2pixhd.training.progress_counters import trial_batches

__all__ = [
    "ConfigRecord",
    "apply_optimizer_options",
    "check_resumable",
    "division_problem",
    "earlier_checkpoint_remedy",
]

_ENCODING = ("label_nc", "input_nc", "output_nc", "no_instance")
_ORDER = ("phase", "batchSize", "serial_batches", "max_dataset_size")

_WEIGHTS = "the saved weights depend on it"
_POSITION = "the run stopped within an epoch, whose remaining batches depend on it"


def check_resumable(config: TrainConfig, saved: Checkpoint) -> None:
    """Raises an error if an option has changed that the checkpoint depends on.

    The weights depend on the networks and the encoding of the data, so these options must not change. Options that
    determine the batches of an epoch may change only between epochs. The number of
    epochs must not be lower than the number of finished epochs.

    Raises:
        InputError: For the first such change.
    """
    _enough_epochs(config, saved)
    for name in (field.name for field in dataclasses.fields(saved.model)):
        _same(saved.path, f"model.{name}", getattr(saved.model, name), getattr(config.model, name), _WEIGHTS)
    for name in _ENCODING:
        _same(saved.path, f"data.{name}", getattr(saved.data, name), getattr(config.data, name), _WEIGHTS)
    if not saved.batches:
        return
    for name in _ORDER:
        _same(saved.path, f"data.{name}", getattr(saved.data, name), getattr(config.data, name), _POSITION)
    accumulate = saved.optimizer.accumulate, config.optimizer.accumulate
    _same(saved.path, "optimizer.accumulate", *accumulate, _POSITION)
    _same(saved.path, "run.seed", saved.position.get("seed", config.run.seed), config.run.seed, _POSITION)


def _enough_epochs(config: TrainConfig, saved: Checkpoint) -> None:
    """Raises an error for fewer epochs than the run has finished."""
    limit, epochs = config.check().max_epochs, config.optimizer.niter + config.optimizer.niter_decay
    name, remedy = "trainer.max_epochs", "trainer.max_epochs"
    if limit is None:
        limit, name, remedy = epochs, "optimizer.niter + optimizer.niter_decay", "optimizer.niter or niter_decay"
    if saved.epochs > limit:
        raise InputError(
            f"--resume: {saved.path} was trained for {saved.epochs} epochs, more than {name} = {limit}; raise {remedy} "
            f"to at least {saved.epochs} in all, or start a new run in another folder"
        )


def _same(path: pathlib.Path, name: str, before: object, now: object, reason: str) -> None:
    if before != now:
        raise InputError(
            f"--resume: {path} was trained with {name}={before!r}, the configuration has {now!r}, and {reason}; set "
            "it back, or start a new run in another folder"
        )


def division_problem(path: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> InputError | None:
    """Returns why a run that stopped within an epoch cannot resume it: the remaining batches would differ.

    Args:
        path: The checkpoint.
        before: The saved number of ``processes``, hash of the ``images``, and ``max_batches`` of the epoch. None for
            values that an older checkpoint does not contain.
        now: The current values.

    Returns:
        The error for the first difference; None if there is none.
    """
    changed = [name for name in now if before[name] not in (None, now[name])]
    if not changed:
        return None
    was, become = before[changed[0]], now[changed[0]]
    what, remedy = {
        "processes": (
            f"was divided between {_processes(was)}, now there is {become}"
            if become == 1
            else f"was divided between {_processes(was)}, now there are {become}",
            f"resume with {_processes(was)}",
        ),
        "images": ("had other images than data.dataroot has now", "restore the images"),
        "max_batches": (
            f"had {was} batches per process, now it has {become}",
            "set trainer.limit_train_batches and the data back",
        ),
    }[changed[0]]
    return InputError(
        f"--resume: {path} was written within an epoch that {what}; {remedy} until the epoch ends, or "
        f"{earlier_checkpoint_remedy(path)}"
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def earlier_checkpoint_remedy(last: pathlib.Path) -> str:
    """Returns how to resume from an earlier checkpoint than ``last.ckpt``, for an error message."""
    kept = sorted(last.parent.glob("epoch_*.ckpt"), key=lambda path: (len(path.name), path.name))
    if not kept:
        return "start a new run in another folder, since no earlier checkpoint was kept (run.save_epoch_freq)"
    return f"copy {kept[-1]}, the latest kept checkpoint, over {last.name}"


def apply_optimizer_options(
    optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any], options: OptimizerOptions
) -> None:
    """Replaces the learning rates and betas that a checkpoint restored by the configured ones.

    The learning-rate schedule continues at its epoch with the new base rate.

    Args:
        optimizers: The Adam optimizers.
        schedulers: Their ``LambdaLR`` schedulers, in the same order.
        options: The configured options.
    """
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        rate = options.lr * options.rate(scheduler.last_epoch)
        for group in optimizer.param_groups:
            group |= {"initial_lr": options.lr, "lr": rate, "betas": (options.beta1, options.beta2)}
        scheduler.base_lrs = [options.lr] * len(optimizer.param_groups)
        scheduler._last_lr = [rate] * len(optimizer.param_groups)


def _config_path(config: TrainConfig) -> pathlib.Path:
    return pathlib.Path(config.run.output) / "config.yaml"


class ConfigRecord(pl.Callback):
    """Writes all options to ``run.output/config.yaml``, from which ``pix2pixhd train --resume`` reads them.

    The file is written when training starts, after all checks, so that invalid options are never read by ``--resume``.
    Paths are made absolute, because a run may be resumed from another folder. An existing ``config.yaml`` with other
    contents is kept as ``config_1.yaml``, ``config_2.yaml`` and so on.

    Args:
        config: All options of the run.

    Example:
        >>> record = ConfigRecord(config)  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file in the first process."""
        if trainer.is_global_zero and not trial_batches(trainer):
            _write_config(self.config)


def _write_config(config: TrainConfig) -> None:
    path, text = _config_path(config), config_text(absolute_paths(config))
    if path.exists() and path.read_bytes() != text.encode():
        number = 1
        while (kept := path.with_name(f"config_{number}.yaml")).exists():
            number += 1
        shutil.copy2(path, kept)
    write_text(path, text, force=True)  # the previous file has been copied
