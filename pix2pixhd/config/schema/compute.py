"""The ``compute`` section of a configuration."""

from __future__ import annotations

import dataclasses

from pix2pixhd.config.schema.model import ModelOptions
from pix2pixhd.errors import InputError

__all__ = ["ComputeOptions"]


@dataclasses.dataclass
class ComputeOptions:
    """How the step is computed; what it computes stays the same.

    Attributes:
        channels_last: Whether feature maps lie channels last in memory; None does so under bfloat16 and float16, where
            convolutions are faster that way.
        compile: Whether generator and discriminator go through ``torch.compile``.
        checkpoint_activations: Whether the generator keeps only every third activation for its backward and computes
            the others again: less memory, for one more forward of the generator.

    Example:
        >>> ComputeOptions(checkpoint_activations=True).compile
        False
    """

    channels_last: bool | None = None
    compile: bool = False
    checkpoint_activations: bool = False

    def check(self, model: ModelOptions) -> None:
        """Whether these networks can be trained this way.

        Raises:
            InputError: If they cannot.
        """
        if self.checkpoint_activations and model.norm == "batch":
            raise InputError(
                "compute.checkpoint_activations runs layers twice, which would update batch norm's statistics twice; "
                "set model.norm: instance, or leave it out"
            )
