"""One training run, from checked options to the last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, Timer

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.callbacks import LossBar, SampleSheets, StopAtNaN
from pix2pixhd.training.checkpoint import read_checkpoint
from pix2pixhd.training.checkpoint_io import AtomicCheckpointIO
from pix2pixhd.training.datamodule import PairedData
from pix2pixhd.training.distributed import AveragedGradients
from pix2pixhd.training.generate import check_writable
from pix2pixhd.training.loggers import make_loggers
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.options import ComputeOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions
from pix2pixhd.training.precision import SharedScalePrecision
from pix2pixhd.training.pretrained import load_pretrained
from pix2pixhd.training.results import ResultsPage
from pix2pixhd.training.saving import RunCheckpoints
from pix2pixhd.training.steps import trial_batches
from pix2pixhd.training.stopping import Stopped, StopRequests
from pix2pixhd.training.summary import RunSummary

__all__ = ["TrainConfig", "train"]

# Options of Lightning's Trainer that have a counterpart of ours, because they need automatic optimization.
_INSTEAD = {
    "accumulate_grad_batches": "set optimizer.accumulate instead, which both networks follow",
    "gradient_clip_val": "set optimizer.gradient_clip_val instead, which clips the gradients of each network",
    "gradient_clip_algorithm": "gradients are clipped by norm; set optimizer.gradient_clip_val",
}


@dataclasses.dataclass
class TrainConfig:
    """All options of a run.

    Attributes:
        data: Where the pictures are and how they are prepared.
        model: The networks.
        loss: Weights of the loss terms.
        optimizer: Adam's settings and the number of epochs.
        compute: How the step is computed.
        run: Output folder and seed.
        trainer: Arguments of Lightning's ``Trainer``. ``max_epochs`` defaults to ``niter + niter_decay``; ``max_steps``
            counts steps, each of which updates both networks; ``max_time`` is the time of this process, without that
            of the run that it resumes. With several ``devices`` or ``num_nodes``, or under
            torchrun, every process takes its share of the pictures, ``batchSize`` at a time; gradients are averaged.
    """

    data: DataOptions
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    compute: ComputeOptions = dataclasses.field(default_factory=ComputeOptions)
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)


def _last_checkpoint(config: TrainConfig, resume: bool) -> pathlib.Path | None:
    """The checkpoint to go on from; refuses to write over a run that was not asked to go on."""
    last = pathlib.Path(config.run.output) / "checkpoints" / "last.ckpt"
    if not resume:
        if last.exists():
            raise InputError(
                f"run.output: {config.run.output} holds a run already ({last}); continue it with --resume, or choose "
                "another folder"
            )
        return None
    if not last.exists():
        raise InputError(f"--resume: there is no {last} to continue from; start without --resume")
    saved = read_checkpoint(last)
    for section in ("model", "data"):
        before, now = dataclasses.asdict(getattr(saved, section)), dataclasses.asdict(getattr(config, section))
        fixed = before if section == "model" else {"label_nc", "input_nc", "output_nc", "no_instance"}
        for name in fixed:
            if before[name] != now[name]:
                raise InputError(
                    f"--resume: {last} was trained with {section}.{name}={before[name]!r}, the configuration says "
                    f"{now[name]!r}; set it back, or start anew in another folder"
                )
    return last


def _deadline(max_time: Any, began: float) -> float | None:
    """When a run has to stop, on ``time.monotonic``'s clock.

    Counted anew by every process that trains, so that a cluster's job and the job that resumes it have the same time.
    """
    remaining = Timer(max_time).time_remaining()
    return None if remaining is None else began + remaining


def _callbacks(config: TrainConfig, data: PairedData, start: str, began: float) -> list[pl.Callback]:
    run, trainer, output = config.run, config.trainer, pathlib.Path(config.run.output)
    shown, stop_at_nan = data.val or data.train, StopAtNaN()
    checkpoints = RunCheckpoints(
        output / "checkpoints",
        stop_at_nan.check,
        run.save_epoch_freq,
        run.save_latest_freq,
        max_steps=trainer.get("max_steps", -1),
        min_steps=trainer.get("min_steps") or 0,
        requests=StopRequests(_deadline(trainer.get("max_time"), began)),
    )
    return [
        RunSummary(config, data, start),
        stop_at_nan,
        SampleSheets(shown, output / "samples", run.display_freq, run.sample_count),
        ResultsPage(shown, output / "results", run.results_count),
        checkpoints,
    ]


def _check_limits(config: TrainConfig) -> None:
    """Refuses limits that contradict each other."""
    options, trainer = config.optimizer, config.trainer
    epochs, most = options.niter + options.niter_decay, trainer.get("max_epochs")
    if most is not None and not 0 < most <= epochs:
        raise InputError(
            f"trainer.max_epochs must be between 1 and optimizer.niter + optimizer.niter_decay = {epochs}, where the "
            f"learning rate ends, got {most}; raise optimizer.niter or optimizer.niter_decay to train longer"
        )
    max_steps, min_steps = trainer.get("max_steps", -1), trainer.get("min_steps") or 0
    if max_steps != -1 and max_steps < 1:
        raise InputError(f"trainer.max_steps must be at least 1, or -1 for no limit, got {max_steps}")
    if 0 < max_steps < min_steps:
        raise InputError(f"trainer.min_steps must be at most trainer.max_steps = {max_steps}, got {min_steps}")


def _precision_plugins(options: dict[str, Any]) -> list[Any]:
    """The plugin for float16, which takes the place of ``trainer.precision``.

    Raises:
        InputError: For pure float16.
    """
    precision = str(options.get("precision", ""))
    if precision == "16-true":
        raise InputError(
            "trainer.precision: 16-true cannot train: without float32 weights there is no loss scaling, and Adam's "
            "second moments vanish in float16; use 16-mixed or bf16-true"
        )
    if precision not in ("16", "16-mixed"):
        return []
    del options["precision"]
    accelerator = options.get("accelerator", "auto")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    return [SharedScalePrecision("cpu" if on_cpu else "cuda")]


def _trainer(config: TrainConfig, callbacks: list[pl.Callback], resume: bool) -> pl.Trainer:
    options: dict[str, Any] = {
        "max_epochs": None,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,  # the data have been checked
        "enable_model_summary": False,
        **({} if config.data.val_phase else {"limit_val_batches": 0}),
        **config.trainer,
    }
    for name, remedy in _INSTEAD.items():
        if options.get(name) not in (None, 1 if name == "accumulate_grad_batches" else None):
            raise InputError(f"trainer.{name}: {remedy}")
    if options["max_epochs"] is None:
        options["max_epochs"] = config.optimizer.niter + config.optimizer.niter_decay
    for limit in ("max_steps", "max_time"):
        options.pop(limit, None)  # RunCheckpoints stops there, since Lightning would take the epoch for finished
    if options.get("min_steps"):
        # Under manual optimization Lightning counts the step of every optimizer.
        options["min_steps"] *= 2
    output = pathlib.Path(config.run.output)
    loggers = [] if options.get("fast_dev_run") else make_loggers(config.run.loggers, output, resume)
    if loggers:
        callbacks = [*callbacks, LearningRateMonitor("epoch")]
    if options.get("enable_progress_bar") is not False:
        callbacks = [*callbacks, LossBar()]
    _spread(options)
    plugins = options.pop("plugins", None) or []
    trainer = pl.Trainer(
        callbacks=callbacks,
        logger=loggers,
        use_distributed_sampler=False,
        plugins=[
            *(plugins if isinstance(plugins, list) else [plugins]),
            *_precision_plugins(options),
            AtomicCheckpointIO(),
        ],
        **options,
    )
    # fast_dev_run limits steps too, as Lightning counts them; its limit of batches is enough.
    trainer.fit_loop.epoch_loop.max_steps = -1
    return trainer


def _spread(options: dict[str, Any]) -> None:
    """Chooses devices and strategy: one process, or as many as torchrun or ``trainer.devices`` say."""
    if options.get("devices", "auto") == "auto":
        options["devices"] = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if "GROUP_WORLD_SIZE" in os.environ:
            options["num_nodes"] = int(os.environ["GROUP_WORLD_SIZE"])
    several = options["devices"] not in (1, "1") or options.get("num_nodes", 1) > 1
    strategy = options.setdefault("strategy", "auto")
    if strategy not in ("auto", "ddp"):
        raise InputError(
            f"trainer.strategy: {strategy!r} cannot run this training step, which takes several backwards through one "
            "forward; leave it out, or use ddp"
        )
    if several:
        options["strategy"] = AveragedGradients()


def _quiet() -> None:
    """Keeps Lightning's advertisements and hints for its own examples off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # A profiler's report is no hint: it has been asked for.
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    for hint in (
        "does not have many workers",
        "The number of training batches",
        "Checkpoint directory",
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{hint}")


def train(config: TrainConfig, resume: bool = False, callbacks: Sequence[pl.Callback] = ()) -> Pix2PixHD:
    """Checks everything, then trains.

    Leaves behind in ``run.output``: ``checkpoints/last.ckpt`` and every ``save_epoch_freq``-th epoch's, ``samples/``
    with sheets (label | generated | real), ``results/index.html`` with the last ones, and ``logs/`` for TensorBoard,
    with the same figures in ``metrics.csv``.

    Args:
        config: All options.
        resume: Whether to continue from ``checkpoints/last.ckpt``.
        callbacks: More of Lightning's callbacks.

    Returns:
        The trained module.

    Raises:
        InputError: For anything the user can put right; nothing has been trained then.
        Stopped: If the process was asked to stop (SIGTERM, Ctrl-C); the run has been saved.

    Example:
        >>> module = train(TrainConfig(DataOptions(dataroot="datasets/cityscapes")))  # doctest: +SKIP
    """
    began = time.monotonic()
    _quiet()
    output = pathlib.Path(config.run.output)
    _check_pretrained(config)
    _check_limits(config)
    checkpoint = _last_checkpoint(config, resume)
    check_writable(output, "run.output")
    data = PairedData(config.data, config.model.multiple, config.run.seed)
    pl.seed_everything(config.run.seed, workers=True, verbose=False)
    module = Pix2PixHD(config.model, config.data, config.loss, config.optimizer, config.compute, config.run.metrics)
    start = "new weights"
    if config.run.load_pretrain and checkpoint is None:
        start = load_pretrained(module, pathlib.Path(config.run.load_pretrain))
    try:
        trainer = _trainer(config, [*_callbacks(config, data, start, began), *callbacks], resume)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {error}") from error
    except Stopped:
        kept = f"the run is saved, continue it with --resume ({output})"
        print(f"stopped; {'nothing was saved' if trial_batches(trainer) else kept}", file=sys.stderr)
        raise
    return module


def _check_pretrained(config: TrainConfig) -> None:
    if config.optimizer.niter_fix_global and not config.run.load_pretrain:
        raise InputError(
            "optimizer.niter_fix_global keeps the global part as it is, which without run.load_pretrain is random; "
            "name the checkpoint of a run with model.netG: global"
        )
