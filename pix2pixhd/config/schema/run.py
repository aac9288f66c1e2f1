"""The ``run`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.ranges import at_least, check_ranges

__all__ = ["Logger", "Metric", "RunOptions"]

Logger = Literal["csv", "tensorboard", "mlflow", "wandb"]
Metric = Literal["l1", "psnr", "ssim", "lpips", "fid"]

# NumPy's generators, which are seeded too, accept no larger seed.
_MAX_SEED = 2**32 - 1


@dataclasses.dataclass
class RunOptions:
    """Output folder, initial weights, seed, logging and checkpoint intervals.

    Attributes:
        output: Folder for checkpoints, sample images and logs.
        seed: Seed of the initial weights, the order of the images and the augmentation.
        load_pretrain: Initial weights: a run folder, a ``.ckpt`` file, or a folder with NVIDIA's ``latest_net_G.pth``.
            With ``model.netG: local``, a trained global generator initializes the global part.
        display_freq: Number of steps between two grids of sample images. 0 disables them.
        sample_count: Number of samples per grid.
        results_count: Maximum number of images on the results page, which is written at the end of training. 0
            disables the page.
        save_epoch_freq: Number of epochs between two permanent checkpoints. (``last.ckpt`` is updated after every
            epoch.)
        save_latest_freq: Number of steps between two updates of ``last.ckpt`` within an epoch. 0 disables them.
        loggers: Loggers of losses and metrics: ``csv``, ``tensorboard``, ``mlflow`` (to ``MLFLOW_TRACKING_URI``, or to
            a database in ``output`` if that is not set), ``wandb``.
        metrics: Validation metrics: ``l1``, ``psnr``, ``ssim``, and ``lpips`` and ``fid``, which need pretrained
            weights.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> RunOptions(output="runs/cityscapes").seed
        0
    """

    output: str = "runs/pix2pixhd"
    seed: int = 0
    load_pretrain: str | None = None
    display_freq: int = 100
    sample_count: int = 4
    results_count: int = 50
    save_epoch_freq: int = 10
    save_latest_freq: int = 1000
    loggers: list[Logger] | Logger = dataclasses.field(default_factory=lambda: ["csv", "tensorboard"])
    metrics: list[Metric] | Metric = dataclasses.field(default_factory=lambda: ["l1", "psnr", "ssim"])

    def __post_init__(self) -> None:
        check_ranges("run", self, seed=at_least(0, _MAX_SEED))
        check_ranges("run", self, display_freq=at_least(0), save_latest_freq=at_least(0), results_count=at_least(0))
        check_ranges("run", self, sample_count=at_least(1), save_epoch_freq=at_least(1))
        # A single name is accepted in place of a list.
        self.loggers = [self.loggers] if isinstance(self.loggers, str) else list(self.loggers)
        self.metrics = [self.metrics] if isinstance(self.metrics, str) else list(self.metrics)
