"""The ``run`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.ranges import at_least, check_ranges

__all__ = ["Logger", "Metric", "RunOptions"]

Logger = Literal["csv", "tensorboard", "mlflow", "wandb"]
Metric = Literal["l1", "psnr", "ssim", "lpips", "fid"]

# NumPy's limit, whose generators are seeded too.
_MAX_SEED = 2**32 - 1


@dataclasses.dataclass
class RunOptions:
    """What a run leaves behind, what it begins with, and its seed.

    Attributes:
        output: Folder for checkpoints, sample pictures and logs.
        seed: Seed of weights, order and augmentation.
        load_pretrain: Weights to begin with: a ``.ckpt``, or a folder with NVIDIA's ``latest_net_G.pth``. A trained
            global generator is taken as the global part of ``model.netG: local``.
        display_freq: Steps between two sheets of sample images; 0 for none.
        sample_count: Pictures per sheet.
        results_count: Most pictures on the results page, which is written when training ends; 0 for none.
        save_epoch_freq: Epochs between two kept checkpoints (``last.ckpt`` is written after every epoch).
        save_latest_freq: Steps between two writings of ``last.ckpt`` within an epoch; 0 for none.
        loggers: Where figures go: ``csv``, ``tensorboard``, ``mlflow`` (``MLFLOW_TRACKING_URI``, else a database in
            ``output``), ``wandb``.
        metrics: Of validation: ``l1``, ``psnr``, ``ssim``; ``lpips`` and ``fid``, which need pretrained weights.

    Raises:
        InputError: For numbers out of range.

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
        # One name stands for a list of one.
        self.loggers = [self.loggers] if isinstance(self.loggers, str) else list(self.loggers)
        self.metrics = [self.metrics] if isinstance(self.metrics, str) else list(self.metrics)
