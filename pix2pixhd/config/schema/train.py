"""The whole configuration of a run: one dataclass per section."""

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
        data: Where the images are and how they are prepared.
        model: The networks.
        loss: Weights of the loss terms.
        optimizer: Adam's settings and the number of epochs.
        compute: How the step is computed.
        run: Output folder and seed.
        trainer: Options of Lightning's ``Trainer`` by name, those of ``TrainerOptions``.

    Raises:
        InputError: For an option of ``trainer`` that is unknown, not supported, or has a wrong value.
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
        """Checks all sections again, since fields may have been assigned to; returns the options of the trainer.

        Raises:
            InputError: For a value of a wrong type or out of range.
        """
        for field in dataclasses.fields(self):
            if field.name != "trainer":
                dataclasses.replace(getattr(self, field.name))
        self.compute.check(self.model)
        return trainer_options(self.trainer)
