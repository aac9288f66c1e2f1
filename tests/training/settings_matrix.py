"""Pairwise combinations of the values of all options that affect a run.

``rows()`` covers all pairs of values; ``run_row`` trains, validates, saves, interrupts, resumes and generates with one
combination. Run as a program under torchrun, this module works through the rows of two processes, so that they share
one start-up.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from covertable import make as covering_rows
from PIL import Image

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import (
    ComputeOptions,
    DataOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    TrainConfig,
)
from pix2pixhd.training.run import train
from pix2pixhd.training.shutdown import RunStopped

Row = dict[str, Any]

OPTIONS: dict[str, list[Any]] = {
    "precision": ["32-true", "bf16-mixed", "bf16-true", "64-true"],
    "losses": ["paper", "vgg", "no feature matching", "spade", "vanilla, lpips"],
    "interruption": ["epoch", "max_steps", "signal", "crash"],
    "netG": ["global", "local", "fixed global part"],
    "features": ["none", "instance", "label"],
    "data": ["labels", "no instances", "pairs"],
    "size": ["crop", "whole image"],
    "channels_last": [None, True, False],
    "metrics": ["l1,psnr,ssim", "l1", ""],
    "loggers": ["csv,tensorboard", "csv", ""],
    "num_D": [1, 2, 3],
    "validation": [True, False],
    "compile": [False, True],
    "accumulate": [1, 2],
    "ema_decay": [0.0, 0.9],
    "clip": [None, 0.5],
    "pool_size": [0, 2],
    "norm": ["instance", "batch"],
    "checkpoint_activations": [False, True],
    "lean": [True, False],
    "optimizer_in_backward": [None, True, False],
    "devices": [1, 2],
    "batchSize": [1, 2],
    "nThreads": [0, 1],
}

# Combinations that are rejected before training, and the error message.
REFUSED: list[tuple[Row, str]] = [
    ({"norm": "batch", "checkpoint_activations": True}, "compute.checkpoint_activations .* batch norm"),
    ({"optimizer_in_backward": True, "accumulate": 2}, "compute.optimizer_in_backward .* optimizer.accumulate: 2"),
    ({"optimizer_in_backward": True, "clip": 0.5}, "compute.optimizer_in_backward .* optimizer.gradient_clip_val"),
    ({"optimizer_in_backward": True, "devices": 2}, "compute.optimizer_in_backward .* the 2 processes"),
    ({"features": "instance", "data": "no instances"}, "model.instance_feat .* data.no_instance"),
    ({"features": "instance", "data": "pairs"}, "model.instance_feat .* data.no_instance"),
    ({"features": "label", "data": "pairs"}, "model.label_feat .* data.label_nc"),
]


def is_refused(row: Row) -> bool:
    """Returns whether a combination, or a partial one, is among ``REFUSED``."""
    return any(all(row.get(name) == value for name, value in part.items()) for part, _ in REFUSED)


def rows() -> list[Row]:
    """Returns combinations that contain every valid pair of values."""
    differs = [
        {
            "operator": "or",
            "conditions": [{"operator": "ne", "left": name, "value": value} for name, value in part.items()],
        }
        for part, _ in REFUSED
    ]
    # Indices of the values, because the library orders values by hash and some are None.
    positions = {name: list(range(len(values))) for name, values in OPTIONS.items()}
    for condition in differs:
        for unequal in condition["conditions"]:
            unequal["value"] = OPTIONS[unequal["left"]].index(unequal["value"])
    covering = covering_rows(positions, constraints=differs, tolerance=3)
    return [{name: OPTIONS[name][row[name]] for name in OPTIONS} for row in covering]


def make_data(root: pathlib.Path) -> None:
    """Writes five training and two validation images of 21x27: labels, instances, photographs, and A/B pairs."""
    rng = np.random.default_rng(0)
    for phase, names in (("train", "abcde"), ("test", "xy")):
        for name in names:
            photograph = rng.integers(0, 256, (21, 27, 3), dtype=np.uint8)
            for folder, array in (
                ("label", rng.integers(0, 4, (21, 27), dtype=np.uint8)),
                ("inst", rng.integers(40000, 40009, (21, 27)).astype(np.uint16)),
                ("img", photograph),
                ("A", rng.integers(0, 256, (21, 27, 3), dtype=np.uint8)),
                ("B", photograph),
            ):
                path = root / f"{phase}_{folder}" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def _losses(kind: str, pool_size: int) -> LossOptions:
    options: Row = {
        "paper": {"lambda_vgg": 0.0},
        "vgg": {"vgg": "random"},
        "no feature matching": {"lambda_vgg": 0.0, "lambda_feat": 0.0, "preset": "nvidia"},
        "spade": {"lambda_vgg": 0.0, "preset": "spade"},
        "vanilla, lpips": {
            "perceptual": "lpips",
            "perceptual_network": "squeeze",
            "vgg": "random",
            "gan_mode": "vanilla",
        },
    }[kind]
    return LossOptions(pool_size=pool_size, **options)


def make_config(row: Row, root: pathlib.Path, output: pathlib.Path) -> TrainConfig:
    """Returns the configuration of one combination, with two epochs and tiny networks."""
    fixed = row["netG"] == "fixed global part"
    size = {"resize_or_crop": "none"}
    if row["size"] == "crop":  # SqueezeNet needs 17 pixels
        size = {"resize_or_crop": "crop", "fineSize": 20 if row["losses"] == "vanilla, lpips" else 16}
    trainer: Row = {"accelerator": "cpu", "enable_progress_bar": False, "precision": row["precision"]}
    trainer["devices"] = "auto" if "WORLD_SIZE" in os.environ else row["devices"]
    return TrainConfig(
        data=DataOptions(
            dataroot=str(root),
            label_nc=0 if row["data"] == "pairs" else 4,
            no_instance=row["data"] != "labels",
            val_phase="test" if row["validation"] else None,
            batchSize=row["batchSize"],
            nThreads=row["nThreads"],
            **size,
        ),
        model=ModelOptions(
            netG="global" if row["netG"] == "global" else "local",
            ngf=4,
            n_downsample_global=1,
            n_blocks_global=1,
            n_blocks_local=1,
            norm=row["norm"],
            ndf=4,
            n_layers_D=1,
            num_D=row["num_D"],
            instance_feat=row["features"] == "instance",
            label_feat=row["features"] == "label",
            nef=4,
            n_downsample_E=2,
        ),
        loss=_losses(row["losses"], row["pool_size"]),
        optimizer=OptimizerOptions(
            niter=1,
            niter_decay=1,
            niter_fix_global=1 if fixed else 0,
            ema_decay=row["ema_decay"],
            accumulate=row["accumulate"],
            gradient_clip_val=row["clip"],
        ),
        compute=ComputeOptions(
            channels_last=row["channels_last"],
            compile=row["compile"],
            checkpoint_activations=row["checkpoint_activations"],
            lean=row["lean"],
            optimizer_in_backward=row["optimizer_in_backward"],
        ),
        run=RunOptions(
            output=str(output),
            display_freq=2,
            sample_count=1,
            results_count=1,
            save_epoch_freq=1,
            loggers=[name for name in row["loggers"].split(",") if name],
            metrics=[name for name in row["metrics"].split(",") if name],
        ),
        trainer=trainer,
    )


class _Interrupt(pl.Callback):
    """Interrupts a run at a batch, with a signal to this process or an exception."""

    def __init__(self, kind: str, batch: int) -> None:
        self.kind = kind
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        # Few images in two processes make fewer batches.
        last = int(trainer.num_training_batches * (trainer.max_epochs or 1))
        if trainer.fit_loop.total_batch_idx + 1 != min(self.batch, last):
            return
        if self.kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise _Crash


class _Crash(Exception):
    pass


def _interrupted(config: TrainConfig, kind: str) -> None:
    """Trains until the interruption, and leaves the configuration ready for the resumed run."""
    trainer = dict(config.trainer)
    if kind == "epoch":
        config.trainer = trainer | {"max_epochs": 1}
        train(config)
    elif kind == "max_steps":
        config.trainer = trainer | {"max_steps": 1}
        train(config)
    else:
        # A signal saves before it stops; the crash happens after the checkpoint of the first step.
        config.run.save_latest_freq = 1 if kind == "crash" else 0
        try:
            train(config, callbacks=[_Interrupt(kind, config.optimizer.accumulate + 1)])
        except (RunStopped, _Crash):
            pass
        else:
            raise AssertionError("the run was not interrupted")
    config.trainer = trainer


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone()
        for name, value in module.state_dict().items()
        if not name.startswith("val_metrics.")
    }


def _pretrain(row: Row, root: pathlib.Path, output: pathlib.Path) -> str:
    """Trains a global generator, and returns the checkpoint that ``netG: local`` starts from."""
    plain = row | {"netG": "global", "validation": False, "interruption": "epoch", "compile": False}
    config = make_config(plain, root, output)
    config.model.ngf *= 2  # ngf of the enhancers is the width at full resolution
    config.trainer["max_steps"] = 1
    train(config)
    return str(output / "checkpoints" / "last.ckpt")


def run_row(row: Row, root: pathlib.Path, folder: pathlib.Path) -> None:
    """Trains without and with an interruption, compares the weights, and generates images with them."""
    torch.manual_seed(0)
    configs = [make_config(row, root, folder / name) for name in ("whole", "interrupted")]
    if row["netG"] == "fixed global part":
        pretrained = _pretrain(row, root, folder / "pretrained")
        for config in configs:
            config.run.load_pretrain = pretrained
    whole, interrupted = configs
    expected = _weights(train(whole))
    _interrupted(interrupted, row["interruption"])
    resumed = _weights(train(interrupted, resume=True))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.isfinite(value).all(), f"{name} is not finite"
        assert torch.equal(value, resumed[name]), f"{name} differs after resuming"
    if int(os.environ.get("RANK", 0)) == 0:
        _check_outputs(row, root, folder)


def _check_outputs(row: Row, root: pathlib.Path, folder: pathlib.Path) -> None:
    checkpoints = {path.name for path in (folder / "interrupted" / "checkpoints").iterdir()}
    assert {"last.ckpt", "epoch_0000.ckpt", "epoch_0001.ckpt"} <= checkpoints, checkpoints
    inputs = root / ("test_A" if row["data"] == "pairs" else "test_label")
    more = ["--encode", str(root / "test_img")] if row["features"] != "none" else []
    arguments = ["generate", "--checkpoint", str(folder / "interrupted" / "checkpoints" / "last.ckpt"), *more]
    assert main([*arguments, "--input", str(inputs), "--output", str(folder / "generated")]) == 0
    images = [np.asarray(Image.open(folder / "generated" / f"{name}.png")) for name in "xy"]
    assert all(image.ndim == 3 and image.std() > 0 for image in images)


def _program(arguments: list[str]) -> None:
    """``TORCHRUN settings_matrix.py DATA FOLDER ROWS.json``: writes ``FOLDER/INDEX/outcome_RANK.txt`` for every row."""
    root, folder = pathlib.Path(arguments[0]), pathlib.Path(arguments[1])
    torch.nn.Module.compile = trace_only  # type: ignore[method-assign]
    torch.set_num_threads(1)
    for index, row in json.loads(pathlib.Path(arguments[2]).read_text()):
        own = folder / str(index)
        own.mkdir(exist_ok=True)
        outcome = own / f"outcome_{os.environ['RANK']}.txt"
        try:
            run_row(row, root, own)
        except BaseException:
            outcome.write_text(traceback.format_exc())
            os._exit(1)  # the other process may wait for this one
        outcome.write_text("")


_compile_module = torch.nn.Module.compile


def _compile_with(backend: str) -> Callable[..., None]:
    """Returns a replacement of ``Module.compile`` that does not generate C++, which takes minutes."""

    def compile_module(self: torch.nn.Module, *args: Any, **options: Any) -> None:
        _compile_module(self, *args, **{"backend": backend, **options})

    return compile_module


compile_eagerly = _compile_with("aot_eager")  # traces graphs and differentiates them
trace_only = _compile_with("eager")  # takes half the time; other tests differentiate the graphs


if __name__ == "__main__":
    _program(sys.argv[1:])
