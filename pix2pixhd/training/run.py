"""One training run, from checked options to the last checkpoint."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from pix2pixhd.data import InputError
from pix2pixhd.training.callbacks import LossBar, SampleSheets, StopAtNaN
from pix2pixhd.training.checkpoint import read_checkpoint
from pix2pixhd.training.checkpoint_io import AtomicCheckpointIO
from pix2pixhd.training.datamodule import PairedData
from pix2pixhd.training.distributed import AveragedGradients
from pix2pixhd.training.generate import check_writable
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.options import TrainConfig
from pix2pixhd.training.pretrained import load_pretrained
from pix2pixhd.training.results import ResultsPage
from pix2pixhd.training.resume import check_resumable, write_config
from pix2pixhd.training.stopping import SaveWithinEpoch, Stopped

__all__ = ["TrainConfig", "train"]


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
    check_resumable(config, read_checkpoint(last))
    return last


def _loggers(names: Sequence[str], output: pathlib.Path) -> list[Any]:
    taken = [int(path.name[4:]) for path in (output / "logs").glob("run_*") if path.name[4:].isdigit()]
    version = f"run_{max(taken, default=-1) + 1}"
    database = f"sqlite:///{output.resolve() / 'mlflow.db'}"
    make: dict[str, Callable[[], Any]] = {
        "csv": lambda: CSVLogger(str(output), "logs", version),
        "tensorboard": lambda: TensorBoardLogger(str(output), "logs", version),
        "mlflow": lambda: MLFlowLogger(
            output.name, version, tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", database)
        ),
        "wandb": lambda: WandbLogger(version, str(output), project=output.name),
    }
    # In this order: CSVLogger warns of a folder that exists already.
    loggers = []
    for name in sorted(set(names), key=list(make).index):
        try:
            loggers.append(make[name]())
            if name in ("mlflow", "wandb"):
                # Connects now, so that what does not work is told before anything else is done.
                _ = loggers[-1].experiment
        except ModuleNotFoundError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"run.loggers: {name} is not installed ({reason}); pip install {name}") from None
        except Exception as error:  # a server that does not answer, a key that is missing: each in its library's words
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"run.loggers: {name} cannot be used ({reason}); set it up, or leave it out") from error
    return loggers


def _callbacks(config: TrainConfig, data: PairedData, output: pathlib.Path) -> list[pl.Callback]:
    def checkpoint(filename: str, every: int, keep: int) -> ModelCheckpoint:
        return ModelCheckpoint(
            output / "checkpoints",
            filename,
            every_n_epochs=every,
            save_top_k=keep,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    run, stop_at_nan = config.run, StopAtNaN()
    return [
        checkpoint("last", every=1, keep=1),
        checkpoint("epoch_{epoch:04d}", every=run.save_epoch_freq, keep=-1),
        stop_at_nan,  # before what saves
        SaveWithinEpoch(output / "checkpoints" / "last.ckpt", stop_at_nan.check, run.save_latest_freq),
        SampleSheets(data.val or data.train, output / "samples", run.display_freq, run.sample_count),
        ResultsPage(data.val or data.train, output / "results", run.results_count),
        LearningRateMonitor("epoch"),
    ]


def _trainer(config: TrainConfig, callbacks: list[pl.Callback], output: pathlib.Path) -> pl.Trainer:
    options = config.check().arguments()
    if not config.data.val_phase:
        options["limit_val_batches"] = 0
    if options["max_epochs"] is None:
        options["max_epochs"] = config.optimizer.niter + config.optimizer.niter_decay
    if options["max_steps"] > 0:
        # Under manual optimisation Lightning counts every optimiser's step, two of ours.
        options["max_steps"] *= 2
    if options.get("enable_progress_bar") is not False:
        callbacks = [*callbacks, LossBar()]
    _spread(options)
    loggers = _loggers(config.run.loggers, output)
    try:
        return pl.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO()],
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        # Options that this machine does not have, such as a GPU.
        raise InputError(f"trainer: {error}") from error


def _spread(options: dict[str, Any]) -> None:
    """Chooses devices and strategy: one process, or as many as torchrun or ``trainer.devices`` say."""
    if options["devices"] == "auto":
        options["devices"] = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if "GROUP_WORLD_SIZE" in os.environ:
            options["num_nodes"] = int(os.environ["GROUP_WORLD_SIZE"])
    devices = options["devices"]
    local = len(devices) if isinstance(devices, list) else torch.cuda.device_count() if devices == -1 else devices
    if local > 1 or options["num_nodes"] > 1:
        options["strategy"] = AveragedGradients()


def _quiet() -> None:
    """Keeps Lightning's advertisements and hints for its own examples off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
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
    _quiet()
    config.check()
    output = pathlib.Path(config.run.output)
    _check_pretrained(config)
    checkpoint = _last_checkpoint(config, resume)
    check_writable(output, "run.output")
    data = PairedData(config.data, config.model.multiple, config.run.seed)
    pl.seed_everything(config.run.seed, workers=True, verbose=False)
    module = Pix2PixHD(config.model, config.data, config.loss, config.optimizer, config.compute, config.run.metrics)
    if config.run.load_pretrain and checkpoint is None:
        print(load_pretrained(module, pathlib.Path(config.run.load_pretrain)), flush=True)
    try:
        trainer = _trainer(config, [*_callbacks(config, data, output), *callbacks], output)
        if not config.check().fast_dev_run:
            write_config(config)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {error}") from error
    except Stopped:
        print(f"stopped; the run is saved, continue it with --resume ({output})", file=sys.stderr)
        raise
    return module


def _check_pretrained(config: TrainConfig) -> None:
    if config.optimizer.niter_fix_global and not config.run.load_pretrain:
        raise InputError(
            "optimizer.niter_fix_global keeps the global part as it is, which without run.load_pretrain is random; "
            "name the checkpoint of a run with model.netG: global"
        )
