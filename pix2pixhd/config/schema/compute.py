"""The ``compute`` section of a configuration."""

from __future__ import annotations

import dataclasses

from pix2pixhd.config.schema.model import ModelOptions
from pix2pixhd.errors import InputError

__all__ = ["ComputeOptions"]


@dataclasses.dataclass
class ComputeOptions:
    """Options for speed and memory. They do not change what a training step computes.

    Attributes:
        channels_last: Whether to use the channels-last memory format. None uses it with bfloat16 and float16, where
            convolutions are faster in this format.
        compile: Whether to compile the generator and the discriminator with ``torch.compile``.
        checkpoint_activations: Whether to save only every third activation of the generator for backward and recompute
            the others. This uses less memory and costs one more forward pass of the generator.
        lean: Whether the networks save only their convolutions' outputs for backward and recompute normalised,
            activated and padded copies, see ``pix2pixhd.nn.lean``. This uses less memory at the same speed. It has no
            effect on compiled networks.
        optimizer_in_backward: Whether to update each weight as soon as its gradient is complete and then free the
            gradient, instead of holding the gradients of all weights until the end of the step. The trained weights
            have the same bits. Not possible with several processes, ``optimizer.accumulate``,
            ``optimizer.gradient_clip_val`` and float16. None uses it wherever it is possible, unless the run has
            callbacks of your own, which may read the gradients.

    Example:
        >>> ComputeOptions(checkpoint_activations=True).compile
        False
    """

    channels_last: bool | None = None
    compile: bool = False
    checkpoint_activations: bool = False
    lean: bool = True
    optimizer_in_backward: bool | None = None

    def check(self, model: ModelOptions) -> None:
        """Checks that the options are compatible with the networks.

        Raises:
            InputError: If they are not.
        """
        if self.checkpoint_activations and model.norm == "batch":
            raise InputError(
                "compute.checkpoint_activations runs layers twice, which would update batch norm's statistics twice; "
                "set model.norm: instance, or remove compute.checkpoint_activations"
            )
