"""Prints a summary at the start of a run, and at its end the files that it wrote."""

from __future__ import annotations

import pathlib
import shlex

import lightning.pytorch as pl
import torch
from torch import nn

from pix2pixhd.config.schema import TrainConfig
from pix2pixhd.training.callbacks.checkpoints import CheckpointSchedule
from pix2pixhd.training.datamodule import PairedData
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.progress_counters import finished_batches, finished_steps, trial_batches

__all__ = ["RunSummary", "already_trained", "closing_message", "limit_reached", "resume_command", "stop_signal"]


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"{device}{name}{processes}"


def _parameters(network: nn.Module) -> str:
    number = sum(parameter.numel() for parameter in network.parameters())
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} K"


def _count(number: int, what: str, several: str) -> str:
    return f"{number} {what if number == 1 else several}"


class RunSummary(pl.Callback):
    """Prints the device, data, networks and initial weights of a run when training starts.

    Args:
        config: All options of the run.
        data: The images of the run.
        start: The source of the initial weights, for a run that is not resumed.

    Example:
        >>> summary = RunSummary(config, data, "new weights")  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, data: PairedData, start: str) -> None:
        self.config = config
        self.data = data
        self.start = start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the summary in the first process."""
        assert isinstance(pl_module, Pix2PixHD)
        if trainer.is_global_zero:
            lines = self.lines(trainer, pl_module)
            print("\n".join(f"{name:<11} {value}" for name, value in lines.items()), flush=True)

    def lines(self, trainer: pl.Trainer, module: Pix2PixHD) -> dict[str, str]:
        """Returns the summary as values by name."""
        options = self.config.optimizer
        batch = self.config.data.batchSize
        effective = batch * options.accumulate * trainer.world_size
        factors = [
            f"batchSize {batch}",
            *([f"accumulate {options.accumulate}"] if options.accumulate > 1 else []),
            *([f"{trainer.world_size} processes"] if trainer.world_size > 1 else []),
        ]
        validation = 0 if self.data.val is None else len(self.data.val)
        height, width = self.data.train[0]["image"].shape[-2:]
        networks = {"G": module.netG, "D": module.netD, "E": module.netE}
        return {
            "device": _device(trainer),
            "precision": f"{trainer.precision}{', channels-last' if module.channels_last else ''}",
            "images": f"{len(self.data.train)} for training, {validation} for validation",
            "image size": f"{width}x{height} (first image, as trained on)",
            "parameters": ", ".join(f"{name} {_parameters(net)}" for name, net in networks.items() if net is not None),
            "batch": str(effective) + (f" = {' x '.join(factors)}" if len(factors) > 1 else ""),
            "epochs": f"{trainer.max_epochs} of {_count(int(trainer.num_training_batches), 'batch', 'batches')}",
            "output": self.config.run.output,
            "start": self._start(trainer),
        }

    def _start(self, trainer: pl.Trainer) -> str:
        if trainer.ckpt_path is None:
            return self.start
        within = finished_batches(trainer)
        position = f", batch {within}" if within else ""
        return (
            f"resumed from {trainer.ckpt_path} at epoch {trainer.current_epoch}{position} "
            f"(after {_count(finished_steps(trainer), 'step', 'steps')})"
        )


def _checkpoints(trainer: pl.Trainer) -> CheckpointSchedule:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, CheckpointSchedule))


def already_trained(trainer: pl.Trainer) -> bool:
    """Returns whether there was nothing to train, because the resumed run had trained all its epochs."""
    return not _checkpoints(trainer).started


def limit_reached(trainer: pl.Trainer) -> str | None:
    """Returns what ended a run before its last epoch, see ``CheckpointSchedule.stopped_by``."""
    return _checkpoints(trainer).stopped_by


def stop_signal(trainer: pl.Trainer) -> int:
    """Returns the signal that asked this process to stop; 0 for none."""
    return _checkpoints(trainer).shutdown.received


def closing_message(trainer: pl.Trainer, output: pathlib.Path) -> str:
    """Returns the final message of a run: how it ended and where its files are.

    Args:
        trainer: The run's trainer.
        output: The run's folder.
    """
    if batches := trial_batches(trainer):
        return f"done: {_count(batches, 'batch', 'batches')} ran without an error (fast_dev_run); nothing was saved"
    saved = f"checkpoints, samples and logs are in {output}"
    checkpoints = _checkpoints(trainer)
    limit = checkpoints.stopped_by
    if limit is None and already_trained(trainer):
        return (
            f"done: all {trainer.max_epochs} epochs had already been trained; to train longer, raise "
            f"optimizer.niter or optimizer.niter_decay, and trainer.max_epochs where it is set; {saved}"
        )
    if limit is None:
        return f"done: {saved}"
    steps = _count(finished_steps(trainer), "step", "steps")
    # --resume reads the run's configuration, which still contains the limit.
    further = " and a larger --trainer.max_steps" if limit == "max_steps" else ""
    return f"stopped by {limit} after {steps}: {saved}; continue with {resume_command(output)}{further}"


def resume_command(output: pathlib.Path) -> str:
    """Returns the options that resume a run, quoted for a shell.

    Example:
        >>> resume_command(pathlib.Path("my runs/a"))
        "--resume --run.output 'my runs/a'"
    """
    return f"--resume --run.output {shlex.quote(str(output))}"
