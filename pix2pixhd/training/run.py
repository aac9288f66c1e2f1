"""Training runs: checks the options, then trains."""

from __future__ import annotations

import logging
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from torch._dynamo.exc import TorchDynamoException

from pix2pixhd.checkpoints.atomic import AtomicCheckpointIO
from pix2pixhd.checkpoints.format import last_checkpoint_path, read_checkpoint
from pix2pixhd.config.parser import absolute_paths
from pix2pixhd.config.schema import TrainConfig
from pix2pixhd.config.schema.trainer import TrainerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.callbacks.checkpoints import CheckpointSchedule
from pix2pixhd.training.callbacks.loss_log import LossLog
from pix2pixhd.training.callbacks.progress_bar import LossProgressBar
from pix2pixhd.training.callbacks.results_page import ResultsPage
from pix2pixhd.training.callbacks.sample_sheets import SampleSheets
from pix2pixhd.training.callbacks.stop_on_non_finite import StopOnNonFinite
from pix2pixhd.training.callbacks.summary import RunSummary, already_trained, resume_command, stop_signal
from pix2pixhd.training.datamodule import PairedData, reporting_dead_workers
from pix2pixhd.training.first_process import on_first_process
from pix2pixhd.training.loggers import make_loggers
from pix2pixhd.training.losses import check_loss
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.optimizer import can_step_in_backward
from pix2pixhd.training.precision import SharedScalePrecision
from pix2pixhd.training.processes import distribution_options, ending_together, process_count
from pix2pixhd.training.progress_counters import finished_steps, trial_batches
from pix2pixhd.training.resume import ConfigRecord, check_resumable, earlier_checkpoint_remedy
from pix2pixhd.training.run_folder import check_run_folder, check_run_folder_writable, remove_leftovers, removing_empty
from pix2pixhd.training.shutdown import GracefulShutdown, RunStopped
from pix2pixhd.training.tolerant_loggers import quiet_writer_threads

__all__ = ["TrainConfig", "train"]


def _check_run(config: TrainConfig, trainer: TrainerOptions, resume: bool) -> None:
    """Raises an error if options conflict with each other, the launcher, or the contents of the run's folder."""
    processes = process_count(trainer)
    check_loss(config.loss)
    _check_pretrained(config)
    _check_limits(config, trainer)
    _check_combinations(trainer, resume)
    can_step_in_backward(
        config.compute.optimizer_in_backward, config.optimizer, str(trainer.precision), processes
    )  # raises an error if it is configured and not possible
    _check_checkpoint(config, resume)
    output = pathlib.Path(config.run.output)
    check_run_folder(output, config.data, resume)
    check_run_folder_writable(output)
    if not trainer.fast_dev_run:
        remove_leftovers(output)


def _check_checkpoint(config: TrainConfig, resume: bool) -> None:
    """Raises an error if ``--resume`` has no compatible checkpoint, or if a run would be overwritten without it."""
    last = last_checkpoint_path(pathlib.Path(config.run.output))
    if not resume and last.exists():
        raise InputError(
            f"run.output: {config.run.output} already contains a run ({last}); continue it with --resume, or choose "
            "another folder"
        )
    if resume and not last.exists():
        # A run that is killed after its first epoch may have written that epoch's checkpoint only.
        kept = any(last.parent.glob("epoch_*.ckpt"))
        remedy = earlier_checkpoint_remedy(last) if kept else "start without --resume"
        raise InputError(f"--resume: there is no {last} to continue from; {remedy}")
    if resume:
        check_resumable(config, read_checkpoint(last, earlier_checkpoint_remedy(last), mapped=True))


def _deadline(max_time: Any, began: float) -> float | None:
    """Returns the time at which a run has to stop, on the clock of ``time.monotonic``.

    The time is counted from the start of each job, so that a job of a cluster and the job that resumes it both get all
    of ``max_time``.
    """
    remaining = Timer(max_time).time_remaining()
    return None if remaining is None else began + remaining


def _callbacks(
    config: TrainConfig, trainer: TrainerOptions, data: PairedData, start: str, began: float
) -> list[pl.Callback]:
    run, output = config.run, pathlib.Path(config.run.output)
    shown, stop_at_nan = data.val or data.train, StopOnNonFinite()
    checkpoints = CheckpointSchedule(
        output / "checkpoints",
        stop_at_nan.check,
        run.save_epoch_freq,
        run.save_latest_freq,
        max_steps=trainer.max_steps,
        min_steps=trainer.min_steps or 0,
        shutdown=GracefulShutdown(_deadline(trainer.max_time, began)),
    )
    return [
        ConfigRecord(config),
        RunSummary(config, data, start),
        stop_at_nan,
        LossLog(),
        SampleSheets(shown, output / "samples", run.display_freq, run.sample_count),
        ResultsPage(shown, output / "results", run.results_count),
        checkpoints,
    ]


def _check_limits(config: TrainConfig, trainer: TrainerOptions) -> None:
    """Raises an error if limits conflict with each other."""
    options = config.optimizer
    epochs = options.niter + options.niter_decay
    if trainer.max_epochs is not None and trainer.max_epochs > epochs:
        raise InputError(
            f"trainer.max_epochs must be at most optimizer.niter + optimizer.niter_decay = {epochs}, where the "
            f"learning rate ends, got {trainer.max_epochs}; raise niter or niter_decay to train longer"
        )
    if 0 < trainer.max_steps < (trainer.min_steps or 0):
        raise InputError(
            f"trainer.min_steps must be at most trainer.max_steps = {trainer.max_steps}, got {trainer.min_steps}"
        )


def _check_combinations(trainer: TrainerOptions, resume: bool) -> None:
    """Raises an error for options that this machine or a resumed run does not support."""
    if resume and trainer.fast_dev_run:
        raise InputError(
            "--resume: trainer.fast_dev_run runs the first batches of a run, which a resumed run has finished; try "
            "the configuration without --resume and with another run.output"
        )
    if trainer.sync_batchnorm and trainer.on_cpu:
        raise InputError(
            "trainer.sync_batchnorm needs GPUs, because PyTorch has no such layer for the CPU; leave it out, or set "
            "model.norm: instance"
        )


def _precision_plugins(options: dict[str, Any], on_cpu: bool) -> list[Any]:
    """Returns the plugin for float16, and removes ``precision``, which it replaces."""
    if options["precision"] != "16-mixed":
        return []
    del options["precision"]
    return [SharedScalePrecision("cpu" if on_cpu else "cuda")]


def _trainer(
    config: TrainConfig, trainer_options: TrainerOptions, callbacks: list[pl.Callback], resume: bool
) -> pl.Trainer:
    options = trainer_options.arguments()
    if not config.data.val_phase:
        options["limit_val_batches"] = 0
    if options["max_epochs"] is None:
        options["max_epochs"] = config.optimizer.niter + config.optimizer.niter_decay
    for limit in ("max_steps", "max_time"):
        del options[limit]  # CheckpointSchedule stops there, because Lightning would count the epoch as finished
    # Lightning counts batches, of which several make a step.
    options["log_every_n_steps"] *= config.optimizer.accumulate
    if options["min_steps"]:
        # Under manual optimization Lightning counts the step of every optimizer.
        options["min_steps"] *= 2
    output = pathlib.Path(config.run.output)
    loggers = [] if options["fast_dev_run"] else make_loggers(config.run.loggers, output, resume)
    if loggers:
        callbacks = [*callbacks, LearningRateMonitor("epoch")]
    if options["enable_progress_bar"]:
        callbacks = [*callbacks, LossProgressBar()]
    options |= distribution_options(trainer_options)
    try:
        trainer = pl.Trainer(
            callbacks=callbacks,
            logger=loggers,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[*_precision_plugins(options, trainer_options.on_cpu), AtomicCheckpointIO()],
            **options,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        # For example a device that this machine does not have.
        raise InputError(f"trainer: {error}") from error
    # fast_dev_run also limits Lightning's count of steps; its limit of batches is enough.
    trainer.fit_loop.epoch_loop.max_steps = -1
    return trainer


def _quiet() -> None:
    """Hides Lightning's promotional messages and the hints that do not apply to this package."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # A profiler's report is not a hint; the user has requested it.
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    for hint in (
        "does not have many workers",
        r"Found \d+ module\(s\) in eval mode",  # the VGG, which is frozen on purpose
        "The number of training batches",
        "Checkpoint directory",
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{hint}")


def train(config: TrainConfig, resume: bool = False, callbacks: Sequence[pl.Callback] = ()) -> Pix2PixHD:
    """Checks all options, then trains.

    Writes into ``run.output``: ``checkpoints/`` with ``last.ckpt`` and a checkpoint of every ``save_epoch_freq``-th
    epoch, ``samples/`` with sheets (label | generated | real), ``results/index.html`` with images of the trained
    generator, and ``logs/`` for TensorBoard, with the same metrics in ``metrics.csv``.

    Args:
        config: All options.
        resume: Whether to continue from ``checkpoints/last.ckpt``.
        callbacks: Additional Lightning callbacks.

    Returns:
        The trained module.

    Raises:
        InputError: For errors that the user can correct. Most are raised before training.
        RunStopped: If the run was stopped by SIGTERM or Ctrl-C, after it was saved, unless it had not reached its
            first step.

    Example:
        >>> module = train(TrainConfig(DataOptions(dataroot="datasets/cityscapes")))  # doctest: +SKIP
    """
    with removing_empty(pathlib.Path(config.run.output)):
        return _train(config, resume, callbacks, time.monotonic())


def _train(config: TrainConfig, resume: bool, callbacks: Sequence[pl.Callback], began: float) -> Pix2PixHD:
    _quiet()
    trainer_options = config.check()
    output = pathlib.Path(config.run.output)
    on_first_process(lambda: _check_run(config, trainer_options, resume))
    checkpoint = last_checkpoint_path(output) if resume else None
    data = PairedData(config.data, config.model.multiple, config.run.seed)
    pl.seed_everything(config.run.seed, workers=True, verbose=False)
    # The checkpoint contains the absolute path of the data, so that `pix2pixhd features` works from any folder.
    data_options = absolute_paths(config).data
    module = Pix2PixHD(config.model, data_options, config.loss, config.optimizer, config.compute, config.run.metrics)
    start = "new weights"
    if config.run.load_pretrain and checkpoint is None:
        start = module.load_pretrained(pathlib.Path(config.run.load_pretrain))
    try:
        own_callbacks = _callbacks(config, trainer_options, data, start, began)
        with quiet_writer_threads():
            trainer = _trainer(config, trainer_options, [*own_callbacks, *callbacks], resume)
            with ending_together(trainer), reporting_dead_workers():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                _write_missing(trainer, module)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {error}") from error
    except TorchDynamoException as error:
        number = stop_signal(trainer)
        if not number:
            raise
        # The signal reached the compiler's processes too.
        steps = finished_steps(trainer)
        when = "before the first step" if not steps else f"while compiling, after {steps} steps"
        if trainer.is_global_zero:
            print(f"stopped {when}", file=sys.stderr, flush=True)
        raise RunStopped(128 + number) from error
    except RunStopped:
        kept = f"the run was saved, continue it with {resume_command(output)}"
        if trainer.is_global_zero:
            print(f"stopped; {'nothing was saved' if trial_batches(trainer) else kept}", file=sys.stderr, flush=True)
        raise
    return module


def _write_missing(trainer: pl.Trainer, module: Pix2PixHD) -> None:
    """Writes what a run lacks that was killed after its last checkpoint, if there was nothing left to train."""
    if already_trained(trainer):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (SampleSheets, ResultsPage)):
                callback.write_missing(trainer, module)


def _check_pretrained(config: TrainConfig) -> None:
    if config.optimizer.niter_fix_global and not config.run.load_pretrain:
        raise InputError(
            "optimizer.niter_fix_global keeps the global part fixed, which is random without run.load_pretrain; "
            "set it to the checkpoint of a run with model.netG: global"
        )
