"""``pix2pixhd demo``: a complete training in minutes, on photographs shipped with scikit-image."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import default_collate

from pix2pixhd.config.parser import config_text
from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from pix2pixhd.config.schema.ranges import Range
from pix2pixhd.data import PairedDataset, find_pairs
from pix2pixhd.data.images import save_png, tensor_to_image
from pix2pixhd.demo.dataset import LABEL_NC, write_demo_data
from pix2pixhd.demo.savings import Savings, measure_savings
from pix2pixhd.demo.weights import usable_vgg
from pix2pixhd.errors import InputError
from pix2pixhd.files import Record, check_writable, write_text
from pix2pixhd.reporting.image_grid import image_grid, with_titles
from pix2pixhd.reporting.results_page import sample_images
from pix2pixhd.training.callbacks.summary import limit_reached
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.program import command_name
from pix2pixhd.training.progress_counters import finished_steps
from pix2pixhd.training.run import train

__all__ = ["Results", "demo_config", "run_demo"]

_EPOCHS = 16
_CROPS = 320
_BATCH = 8
_FINER = 4  # with the perceptual loss, epochs are as many times shorter and as many times more
_CONFIG = "demo.yaml"
_RESULTS = "results.png"
_MINUTES = Range(0, 100_000, without_low=True)
_SEEDS = Range(0, 2**32 - 1)
_OVERHEAD_SECONDS = 15.0  # for validation, samples and results


def _epochs(vgg: str | None) -> tuple[int, int]:
    """Returns the numbers of epochs and of steps per epoch.

    A step with the perceptual loss takes several times as long. With shorter epochs the schedule still adapts to the
    time limit in time.
    """
    steps = _CROPS // _BATCH
    if vgg is None:
        return _EPOCHS, steps
    fewer = max(steps // _FINER, 1)
    return _EPOCHS * steps // fewer, fewer


def demo_config(out: pathlib.Path, seed: int, vgg: str | None = None) -> TrainConfig:
    """Returns the demo's configuration: a small global generator, two discriminator scales and 64×64 crops.

    Args:
        out: Folder of the demo.
        seed: Seed of the training.
        vgg: Weights of VGG19 for the perceptual loss, as in ``loss.vgg``; None to train without it.
    """
    epochs, steps = _epochs(vgg)
    trainer: dict[str, Any] = {"accelerator": "cpu", "check_val_every_n_epoch": 4}
    if vgg is not None:
        trainer |= {"limit_train_batches": steps, "check_val_every_n_epoch": 4 * _FINER}
    return TrainConfig(
        data=DataOptions(
            dataroot=str(out / "data"),
            val_phase="test",
            label_nc=LABEL_NC,
            resize_or_crop="crop",
            fineSize=64,
            batchSize=_BATCH,
            nThreads=0,
        ),
        # Batch norm, because instance norm removes the information about the class from a crop that lies in one class,
        # and learns colours several times more slowly.
        model=ModelOptions(ngf=32, n_downsample_global=2, n_blocks_global=3, norm="batch", ndf=32),
        # By default without the perceptual loss, which may need a download of 550 MB, VGG19's ImageNet weights.
        loss=LossOptions(lambda_vgg=0.0) if vgg is None else LossOptions(vgg=vgg),
        optimizer=OptimizerOptions(lr=1e-3, niter=epochs - epochs // 2, niter_decay=epochs // 2),
        run=RunOptions(output=str(out / "run"), seed=seed, display_freq=160, save_epoch_freq=epochs),
        trainer=trainer,
    )


@torch.no_grad()
def _held_out_error(module: Pix2PixHD, dataset: PairedDataset) -> float:
    """Computes the mean absolute error of the generated images, in [−1, 1]."""
    module.eval()
    errors = []
    for i in range(len(dataset)):
        batch: Any = default_collate([dataset[i]])
        errors.append((module(module.encode(batch)) - batch["image"]).abs().mean())
    module.train()
    return float(torch.stack(errors).mean())


class _UntrainedError(pl.Callback):
    """Measures the error of the untrained generator."""

    def __init__(self, dataset: PairedDataset) -> None:
        self.dataset = dataset
        self.error = float("nan")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pix2PixHD)
        self.error = _held_out_error(pl_module, self.dataset)


class _FitSchedule(pl.Callback):
    """Reduces the number of epochs to fit the time limit, and scales the learning-rate schedule accordingly.

    The duration is estimated again after every epoch, because the first seconds are not representative.
    """

    def __init__(self, options: OptimizerOptions, seconds: float) -> None:
        self.options = options
        self.epochs = options.niter + options.niter_decay
        self.end = time.perf_counter() + seconds
        self.times = [time.perf_counter()]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        self.times.append(time.perf_counter())
        recent = self.times[-4:]
        per_epoch = (recent[-1] - recent[0]) / (len(recent) - 1)
        total = min(self.epochs, done + max(0, int((self.end - recent[-1]) / per_epoch)))
        # The learning-rate schedulers read these options for the next epoch.
        self.options.niter, self.options.niter_decay = total - total // 2, total // 2
        trainer.should_stop = trainer.should_stop or done >= total


def _shortened(limit: str | None, steps: int, total: int, seconds: float) -> str:
    """Describes how much of the training the time limit removed.

    Args:
        limit: The limit that stopped the run; ``max_time`` stops it within an epoch.
        steps: Number of steps that were trained.
        total: Number of steps of the complete training.
        seconds: Duration of the training.

    Returns:
        The description; empty for a complete training.
    """
    if steps >= total:
        return ""
    minutes = math.ceil((seconds * total / max(steps, 1) + _OVERHEAD_SECONDS) / 60)
    remedy = f"give it more time with --max-minutes {minutes}"
    if limit == "max_time":
        return f"stopped by the time limit after {steps} of {total} steps; the images are unfinished; {remedy}"
    return f"shortened to {steps} of {total} steps to meet the time limit; for better images {remedy}"


def _save_results(module: Pix2PixHD, dataset: PairedDataset, path: pathlib.Path, generated: str) -> None:
    rows = [sample_images(module, dataset[i]) for i in range(len(dataset))]
    grid = tensor_to_image(image_grid(rows, rows_across=2))
    save_png(with_titles(grid, ["label", generated, "real"] * 2), path)


def _held_out(config: TrainConfig) -> PairedDataset:
    return PairedDataset(find_pairs(config.data, "test"), config.data, config.model.multiple, augment=False)


def _savings(module: Pix2PixHD, config: TrainConfig) -> Savings:
    """Measures the savings on the features of one training batch."""
    pairs = find_pairs(config.data, "train")
    dataset = PairedDataset(pairs, config.data, config.model.multiple, augment=True)
    batch: Any = default_collate([dataset[i] for i in range(config.data.batchSize)])
    condition = module.encode(batch)
    with torch.no_grad():
        fake = module(condition)
    return measure_savings(module, condition, fake, batch["image"])


def _describe_savings(savings: Savings) -> str:
    fused, plain = savings.fused, savings.plain
    return (
        f"fused {fused.seconds * 1e3:.2f} ms per step, plain PyTorch {plain.seconds * 1e3:.2f} ms: "
        f"{savings.ratio:.1f} times as fast; saved for backward {fused.saved / 2**20:.1f} instead of "
        f"{plain.saved / 2**20:.1f} MiB ({savings.elements / 1e6:.1f} M feature elements)"
    )


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of the demo.

    Attributes:
        untrained: L1 error of the untrained generator on held-out crops, for images in [−1, 1].
        trained: L1 error after training.
        savings: Time and memory that the fused losses save.
    """

    untrained: float
    trained: float
    savings: Savings


def run_demo(out: pathlib.Path, max_minutes: float = 4.0, seed: int = 0, perceptual: str | None = None) -> Results:
    """Creates the dataset, trains, and writes an image grid of results on held-out crops.

    Args:
        out: Folder for the data, the run and ``results.png``. Only files of an earlier demo are replaced.
        max_minutes: Maximum duration, without a download of weights.
        seed: Seed of the data and the training.
        perceptual: Weights of VGG19 for the perceptual loss: ``"imagenet"``, ``"random"`` or the path of a state dict.
            None to train without it.

    Returns:
        The errors before and after training, and the savings of the fused losses.

    Raises:
        InputError: If a number is out of range, the weights cannot be had, ``out`` cannot be written to, or files of
            other origin would be replaced.
    """
    for option, value, allowed in (("--max-minutes", max_minutes, _MINUTES), ("--seed", seed, _SEEDS)):
        if value not in allowed:
            raise InputError(f"{option} must be {allowed}, got {value}; choose another value")
    vgg = None if perceptual is None else usable_vgg(perceptual)
    check_writable(out, "--out")
    record = Record(out, ["data", "run", _CONFIG, _RESULTS])
    record.clear("--out")
    try:
        return _run(out, max_minutes, seed, vgg)
    finally:
        record.save()


def _run(out: pathlib.Path, max_minutes: float, seed: int, vgg: str | None) -> Results:
    began = time.perf_counter()
    config = demo_config(out, seed, vgg)
    write_text(out / _CONFIG, config_text(config))
    print("1/3  data: training and held-out crops of four photographs, with label and instance maps", flush=True)
    write_demo_data(out / "data", _CROPS, seed)

    budget = max_minutes * 60 - (time.perf_counter() - began) - _OVERHEAD_SECONDS
    # The limit is not in the configuration file, since that can be used for longer runs.
    config.trainer["max_time"] = {"seconds": max(int(budget), 1)}
    epochs, steps = _epochs(vgg)
    loss = (
        "without the perceptual loss, which needs VGG19's weights (--perceptual)"
        if vgg is None
        else f"with the perceptual loss (VGG19, {vgg})"
    )
    print(f"2/3  training: up to {epochs} epochs of {steps * _BATCH} crops on the CPU, {loss}", flush=True)
    held_out = _held_out(config)
    untrained = _UntrainedError(held_out)
    started = time.perf_counter()
    module = train(config, callbacks=[untrained, _FitSchedule(config.optimizer, budget)])
    seconds = time.perf_counter() - started
    cut = _shortened(limit_reached(module.trainer), finished_steps(module.trainer), epochs * steps, seconds)
    if cut:
        print(f"     {cut}", flush=True)

    after = _held_out_error(module, held_out)
    _save_results(module, held_out, out / _RESULTS, "generated" if vgg is None else "with VGG loss")
    savings = _savings(module, config)
    trained_with = "" if vgg is None else ", trained with the perceptual loss"
    fall = 1 - after / untrained.error
    print(f"3/3  results, after {(time.perf_counter() - began) / 60:.1f} minutes:")
    print(f"     images     {out / _RESULTS}: label | generated | real, of held-out crops{trained_with}")
    print(f"     page       {out / 'run' / 'results' / 'index.html'}: the same images with metrics")
    print(f"     L1 error   on held-out crops: {untrained.error:.3f} untrained, {after:.3f} trained: {fall:.0%} lower")
    without = "" if vgg is None else ", without the perceptual loss"
    print(f"     losses     {_describe_savings(savings)}{without}")
    config_file, again = shlex.quote(str(out / _CONFIG)), shlex.quote(str(out / "again"))
    print(f"     again      {command_name()} train --config {config_file} --run.output {again}")
    return Results(untrained.error, after, savings)
