"""The complete configuration of a run, with one dataclass per section."""

from __future__ import annotations

import dataclasses
from typing import Any

from pix2pixhd.config.schema.compute import ComputeOptions
from pix2pixhd.config.schema.data import DataOptions
from pix2pixhd.config.schema.loss import LossOptions
from pix2pixhd.config.schema.model import ModelOptions
from pix2pixhd.config.schema.optimizer import OptimizerOptions
from pix2pixhd.config.schema.run import RunOptions
from pix2pixhd.config.schema.trainer import TrainerOptions, trainer_options

__all__ = ["TrainConfig"]


@dataclasses.dataclass
class TrainConfig:
    """All options of a run.

    Attributes:
        data: Location and preprocessing of the images.
        model: Architecture of the networks.
        loss: Definition and weights of the loss terms.
        optimizer: Adam's options, the learning-rate schedule and the number of epochs.
        compute: Options for speed and memory.
        run: Output folder, initial weights, seed, logging and checkpoint intervals.
        trainer: Options of Lightning's ``Trainer`` by name; ``TrainerOptions`` lists the supported ones.

    Raises:
        InputError: If an option of ``trainer`` is unknown, is not supported or has an invalid value.
    """

    data: DataOptions
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    compute: ComputeOptions = dataclasses.field(default_factory=ComputeOptions)
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> TrainerOptions:
        """Checks all sections again, since fields may have been assigned after construction.

        Returns:
            The options of the ``trainer`` section.

        Raises:
            InputError: If a value has the wrong type or is out of range, or if options cannot be combined.
        """
        for field in dataclasses.fields(self):
            if field.name != "trainer":
                dataclasses.replace(getattr(self, field.name))
        self.compute.check(self.model)
        trainer = trainer_options(self.trainer)
        self.loss.check_precision(str(trainer.precision))
        return trainer
