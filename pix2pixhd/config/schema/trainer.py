"""The ``trainer`` section: the supported options of Lightning's ``Trainer``."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from pix2pixhd.config.messages import readable_error
from pix2pixhd.config.schema.ranges import Range, at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["REFUSED", "TrainerOptions", "trainer_options"]

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")

# Lightning's short names.
_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}

_WHOLE_EPOCHS = "a run consists of whole epochs; use optimizer.niter, optimizer.niter_decay or trainer.max_steps"
_NO_TEST = "there is no such stage; generate images with `pix2pixhd generate`"

# The unsupported options of Lightning's Trainer, each with the reason or the remedy.
REFUSED: dict[str, str] = {
    "accumulate_grad_batches": "set optimizer.accumulate instead, which applies to both networks",
    "barebones": "it disables checkpoints and logging, which a run requires; to measure speed, use trainer.profiler",
    "callbacks": "pass them to pix2pixhd.training.run.train(config, callbacks=[...]) in Python",
    "default_root_dir": "set run.output instead",
    "enable_autolog_hparams": "the loggers always record the options of a run",
    "enable_checkpointing": "a run always writes checkpoints; set run.save_epoch_freq and run.save_latest_freq",
    "enable_model_summary": "the model section defines the networks",
    "gradient_clip_algorithm": "gradients are clipped by norm; set optimizer.gradient_clip_val",
    "gradient_clip_val": "set optimizer.gradient_clip_val instead, which clips each network's gradients",
    "inference_mode": "validation always runs without gradients",
    "limit_predict_batches": _NO_TEST,
    "limit_test_batches": _NO_TEST,
    "logger": "set run.loggers instead",
    "min_epochs": _WHOLE_EPOCHS,
    "model_registry": "checkpoints are written to run.output",
    "overfit_batches": "set data.max_dataset_size instead",
    "plugins": "precision and checkpoint plugins are chosen by this package; set trainer.precision",
    "reload_dataloaders_every_n_epochs": "the list of files is read once, when a run starts or resumes",
    "use_distributed_sampler": "this package's sampler distributes the images across processes",
    "val_check_interval": "validation runs after whole epochs; set trainer.check_val_every_n_epoch",
}


@dataclasses.dataclass
class TrainerOptions:
    """Devices, precision, duration and logging. The option names are those of Lightning's ``Trainer``.

    With several ``devices`` or ``num_nodes``, or under torchrun or SLURM, training is distributed: every process trains
    on a part of the images with a batch size of ``data.batchSize``, and gradients are averaged across processes.

    Attributes:
        accelerator: Device type: ``auto``, ``cpu``, ``gpu`` or ``cuda``.
        devices: Number of processes per node (on GPUs, one per GPU), a list of GPU ids such as ``0,2``, or -1 for all
            GPUs. ``auto`` uses one process, or as many as torchrun or SLURM started. Any other value must match the
            number that they started.
        num_nodes: Number of nodes. With ``devices: auto``, the number of nodes on which torchrun or SLURM started
            processes.
        strategy: ``auto`` or ``ddp``. Both average gradients across processes.
        precision: ``32-true``, ``16-mixed``, ``bf16-mixed``, ``bf16-true`` or ``64-true``.
        max_epochs: Maximum number of epochs. None trains ``niter + niter_decay`` epochs.
        max_steps: Maximum number of steps, each of which updates both networks. -1 for no limit.
        min_steps: Minimum number of steps before ``max_time`` may stop training.
        max_time: Time limit, as ``DD:HH:MM:SS``, after which the run saves a checkpoint and stops. The time is counted
            from the start of the process, so a resumed run has the full time again. None for no limit.
        log_every_n_steps: Number of steps between two logged rows of losses. 0 disables logging of losses.
        check_val_every_n_epoch: Number of epochs between two validations (``data.val_phase``). The epoch's checkpoint
            is written before validation, so a run that is stopped during validation resumes with the next epoch.
        num_sanity_val_steps: Number of validation batches to run before training. -1 runs all of them.
        limit_train_batches: Number (integer) or fraction (float) of an epoch's batches to train on. None uses all.
        limit_val_batches: Number (integer) or fraction (float) of the batches to validate on. None uses all; 0 disables
            validation.
        fast_dev_run: Runs this number of training and validation batches (true: one) and writes no checkpoint.
        deterministic: Whether PyTorch uses only deterministic algorithms. ``warn`` warns where there is none.
        benchmark: Whether cuDNN selects the fastest algorithm by measurement. None uses Lightning's default.
        sync_batchnorm: Whether batch norm (``model.norm: batch``) computes its statistics over all processes. GPU only.
        detect_anomaly: Whether autograd reports the operation that produced a NaN. Slow.
        enable_progress_bar: Whether to show the progress bar.
        profiler: Lightning's profiler: ``simple``, ``advanced`` or ``pytorch``. None disables profiling.

    Raises:
        InputError: If a value is invalid or out of range.

    Example:
        >>> TrainerOptions(devices="0,2").devices
        [0, 2]
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: int | str = "32-true"
    max_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | dict[str, int] | None = None
    log_every_n_steps: int = 10
    check_val_every_n_epoch: int = 1
    num_sanity_val_steps: int = 0
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    fast_dev_run: bool | int = False
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None
    sync_batchnorm: bool = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    profiler: Literal["simple", "advanced", "pytorch"] | None = None

    def __post_init__(self) -> None:
        one = at_least(1)
        check_ranges("trainer", self, num_nodes=one, max_epochs=one, min_steps=one, check_val_every_n_epoch=one)
        check_ranges("trainer", self, log_every_n_steps=at_least(0), num_sanity_val_steps=at_least(-1))
        if self.max_steps != -1:
            check_ranges("trainer", self, max_steps=one)
        if not isinstance(self.fast_dev_run, bool):
            check_ranges("trainer", self, fast_dev_run=at_least(0))
        if self.strategy not in ("auto", "ddp"):
            raise InputError(
                f"trainer.strategy must be auto or ddp, got {self.strategy!r}: other strategies do not support this "
                "training step, which has several backward passes per forward pass"
            )
        _check_limit("limit_train_batches", self.limit_train_batches, at_least(1), Range(0, 1, without_low=True))
        _check_limit("limit_val_batches", self.limit_val_batches, at_least(0), Range(0, 1))
        self.precision = _SHORT.get(str(self.precision), self.precision)
        if self.precision not in _PRECISIONS:
            # 16-true has no loss scaling, and the squares of small gradients underflow to 0 in float16.
            reason = ": Adam's second moments underflow in pure float16" if self.precision == "16-true" else ""
            known = ", ".join(_PRECISIONS)
            raise InputError(f"trainer.precision must be one of {known}, got {self.precision!r}{reason}")
        self.devices = _devices(self.devices)
        if self.accelerator == "cpu" and (isinstance(self.devices, list) or self.devices == -1):
            raise InputError(
                f"trainer.devices must be a number of processes with trainer.accelerator: cpu, got {self.devices}"
            )
        self.max_time = None if self.max_time is None else _duration(self.max_time)

    @property
    def on_cpu(self) -> bool:
        """Whether training runs on the CPU."""
        return self.accelerator == "cpu" or (self.accelerator == "auto" and not torch.cuda.is_available())

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of Lightning's ``Trainer``."""
        return dataclasses.asdict(self)


def trainer_options(given: Mapping[str, Any]) -> TrainerOptions:
    """Checks the names, types and ranges of options.

    Args:
        given: Options of Lightning's ``Trainer`` by name. None selects the default.

    Returns:
        The checked options.

    Raises:
        InputError: If an option is unknown or not supported, or if a value has the wrong type or is out of range.

    Example:
        >>> trainer_options({"precision": 16}).precision
        '16-mixed'
    """
    import jsonargparse

    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(given.get("max_time"), datetime.timedelta):
        given["max_time"] = {"seconds": int(given["max_time"].total_seconds())}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainerOptions, "trainer")
    try:
        parsed = parser.parse_object({"trainer": given})
        return TrainerOptions(**vars(parsed.trainer))
    except jsonargparse.ArgumentError as error:
        raise InputError(readable_error(error, parser)) from None


def _check_limit(name: str, value: float | None, batches: Range, share: Range) -> None:
    if value is None or value in (share if isinstance(value, float) else batches):
        return
    raise InputError(
        f"trainer.{name} must be a number of batches, an integer {batches}, or a fraction of them, a float {share}, "
        f"got {value!r}"
    )


def _devices(value: int | str | list[int]) -> int | str | list[int]:
    """Converts ``trainer.devices`` to ``auto``, a number or a list of GPU ids."""
    given: int | str | list[int] = value
    if isinstance(value, str):
        text = value.strip().strip("[]")
        if re.fullmatch(r"\d+(\s*,\s*\d+)*\s*,?", text) and "," in text:
            value = [int(index) for index in text.split(",") if index.strip()]
        elif re.fullmatch(r"-?\d+", text):
            value = int(text)
    if isinstance(value, list):
        valid = bool(value) and all(index >= 0 for index in value) and len(set(value)) == len(value)
    else:
        valid = value == "auto" if isinstance(value, str) else value == -1 or value >= 1
    if not valid:
        raise InputError(
            "trainer.devices must be auto, a number of devices (at least 1, or -1 for all GPUs) or a list of GPU ids "
            f"such as 0,2, got {given!r}"
        )
    return value


def _duration(value: str | dict[str, int]) -> str:
    """Normalizes a duration to the format ``DD:HH:MM:SS``."""
    try:
        if isinstance(value, str):
            match = re.fullmatch(r"(\d+):(\d\d?):(\d\d?):(\d\d?)", value.strip())
            parts = [] if match is None else [int(part) for part in match.groups()]
            value = dict(zip(("days", "hours", "minutes", "seconds"), parts, strict=True))
        seconds = datetime.timedelta(**value).total_seconds()
    except (TypeError, ValueError, OverflowError):
        seconds = 0
    if seconds < 1:
        raise InputError(
            "trainer.max_time must be a positive duration DD:HH:MM:SS, such as 00:12:00:00 for twelve hours, "
            f"got {value!r}"
        )
    minutes, second = divmod(math.floor(seconds), 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day:02}:{hour:02}:{minute:02}:{second:02}"
