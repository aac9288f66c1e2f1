"""Schema of all options of a run: names, types, defaults, ranges and documentation. Each section has a module."""

from pix2pixhd.config.schema.compute import ComputeOptions
from pix2pixhd.config.schema.data import DataOptions, ResizeOrCrop
from pix2pixhd.config.schema.loss import GANMode, LossOptions, PresetName
from pix2pixhd.config.schema.model import GeneratorName, ModelOptions, NormName
from pix2pixhd.config.schema.optimizer import OptimizerOptions
from pix2pixhd.config.schema.run import RunOptions
from pix2pixhd.config.schema.train import TrainConfig
from pix2pixhd.config.schema.trainer import TrainerOptions

__all__ = [
    "ComputeOptions",
    "DataOptions",
    "GANMode",
    "GeneratorName",
    "LossOptions",
    "ModelOptions",
    "NormName",
    "OptimizerOptions",
    "PresetName",
    "ResizeOrCrop",
    "RunOptions",
    "TrainConfig",
    "TrainerOptions",
]
