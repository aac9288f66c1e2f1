"""One training run, from checked options to the last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.callbacks import LossBar, SampleSheets, StopAtNaN
from pix2pixhd.training.checkpoint import read_checkpoint
from pix2pixhd.training.checkpoint_io import AtomicCheckpointIO
from pix2pixhd.training.datamodule import PairedData, reporting_dead_workers
from pix2pixhd.training.distributed import AveragedGradients
from pix2pixhd.training.generate import check_writable
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.options import ComputeOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions
from pix2pixhd.training.pretrained import load_pretrained
from pix2pixhd.training.results import ResultsPage
from pix2pixhd.training.stopping import SaveWithinEpoch, Stopped

__all__ = ["TrainConfig", "train"]


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
            counts steps, each of which updates both networks. With several ``devices`` or ``num_nodes``, or under
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
    options: dict[str, Any] = {
        "max_epochs": None,
        "max_steps": -1,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,  # the data have been checked
        "enable_model_summary": False,
        **({} if config.data.val_phase else {"limit_val_batches": 0}),
        **config.trainer,
    }
    if options.get("accumulate_grad_batches", 1) != 1:
        raise InputError(
            "trainer.accumulate_grad_batches: set optimizer.accumulate instead, which both networks follow"
        )
    if options["max_epochs"] is None:
        options["max_epochs"] = config.optimizer.niter + config.optimizer.niter_decay
    if options["max_steps"] > 0:
        # Under manual optimisation Lightning counts every optimiser's step, two of ours.
        options["max_steps"] *= 2
    if options.get("enable_progress_bar") is not False:
        callbacks = [*callbacks, LossBar()]
    _spread(options)
    plugins = options.pop("plugins", None) or []
    return pl.Trainer(
        **options,
        callbacks=callbacks,
        logger=_loggers(config.run.loggers, output),
        use_distributed_sampler=False,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
    )


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
        with reporting_dead_workers():
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
