"""All options of a run: their names, types, defaults, ranges and documentation; one module per section."""

from pix2pixhd.config.schema.compute import ComputeOptions
from pix2pixhd.config.schema.data import DataOptions, ResizeOrCrop
from pix2pixhd.config.schema.loss import LossOptions
from pix2pixhd.config.schema.model import ModelOptions
from pix2pixhd.config.schema.optimizer import OptimizerOptions
from pix2pixhd.config.schema.run import RunOptions
from pix2pixhd.config.schema.train import TrainConfig
from pix2pixhd.config.schema.trainer import TrainerOptions

__all__ = [
    "ComputeOptions",
    "DataOptions",
    "LossOptions",
    "ModelOptions",
    "OptimizerOptions",
    "ResizeOrCrop",
    "RunOptions",
    "TrainConfig",
    "TrainerOptions",
]
