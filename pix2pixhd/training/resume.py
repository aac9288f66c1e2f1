"""Resuming a run: which options may change, how the changed ones take effect, and the record of all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_only

from pix2pixhd.data import InputError
from pix2pixhd.files import write_text
from pix2pixhd.training.checkpoint import Checkpoint
from pix2pixhd.training.config import absolute_paths, config_text
from pix2pixhd.training.options import OptimizerOptions, TrainConfig

__all__ = ["apply_optimizer_options", "check_resumable", "write_config"]

_ENCODING = ("label_nc", "input_nc", "output_nc", "no_instance")
_ORDER = ("phase", "batchSize", "serial_batches", "max_dataset_size")

_WEIGHTS = "the saved weights belong to it"
_POSITION = "the run stopped within an epoch, whose remaining batches depend on it"


def check_resumable(config: TrainConfig, saved: Checkpoint) -> None:
    """Refuses changes of options that a checkpoint depends on.

    The networks and the encoding of the data may not change, because the weights depend on them. What determines the
    batches of an epoch may change between epochs only.

    Raises:
        InputError: For the first such change.
    """
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
    _same(saved.path, "run.seed", _saved_seed(config), config.run.seed, _POSITION)


def _same(path: pathlib.Path, name: str, before: object, now: object, reason: str) -> None:
    if before != now:
        raise InputError(
            f"--resume: {path} was trained with {name}={before!r}, the configuration says {now!r}, and {reason}; set "
            "it back, or start a new run in another folder"
        )


def _saved_seed(config: TrainConfig) -> object:
    """The seed of the run to resume; the current one if its configuration cannot be read."""
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        return yaml.safe_load(_config_path(config).read_text())["run"]["seed"]
    return config.run.seed


def apply_optimizer_options(
    optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any], options: OptimizerOptions
) -> None:
    """Puts the configured rates and momenta in place of those that a checkpoint restored.

    The learning-rate schedule continues at its epoch, from the new base rate.

    Args:
        optimizers: Adam of each network.
        schedulers: Their ``LambdaLR``, in the same order.
        options: The configuration's.
    """
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        rate = options.lr * options.rate(scheduler.last_epoch)
        for group in optimizer.param_groups:
            group |= {"initial_lr": options.lr, "lr": rate, "betas": (options.beta1, options.beta2)}
        scheduler.base_lrs = [options.lr] * len(optimizer.param_groups)
        scheduler._last_lr = [rate] * len(optimizer.param_groups)


def _config_path(config: TrainConfig) -> pathlib.Path:
    return pathlib.Path(config.run.output) / "config.yaml"


@rank_zero_only
def write_config(config: TrainConfig) -> None:
    """Writes all options to ``run.output/config.yaml``, from which ``pix2pixhd train --resume`` reads them.

    Paths are written as absolute ones, since a run may be resumed from another folder.
    A different ``config.yaml`` that is there is kept as ``config_1.yaml``, ``config_2.yaml`` and so on.
    """
    path, text = _config_path(config), config_text(absolute_paths(config))
    if path.exists() and path.read_bytes() != text.encode():
        number = 1
        while (kept := path.with_name(f"config_{number}.yaml")).exists():
            number += 1
        shutil.copy2(path, kept)
    write_text(path, text, force=True)  # what was there has been kept
