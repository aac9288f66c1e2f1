"""The ``optimizer`` section of a configuration."""

from __future__ import annotations

import dataclasses

from pix2pixhd.config.schema.ranges import FRACTION, POSITIVE, at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["OptimizerOptions"]


@dataclasses.dataclass
class OptimizerOptions:
    """Adam's options, the learning-rate schedule and the number of epochs.

    Attributes:
        lr: Learning rate.
        beta1: Adam's decay rate of the first moment.
        beta2: Adam's decay rate of the second moment.
        niter: Number of epochs with the initial learning rate.
        niter_decay: Number of epochs in which the learning rate then decays linearly to 0.
        niter_fix_global: Number of epochs at the start in which only the finest local enhancer is trained
            (``model.netG: local``, with the global generator from ``run.load_pretrain``).
        ema_decay: Decay of an exponential moving average of the generator's weights, ``ema = decay·ema + (1 −
            decay)·weight`` at each step. Validation, samples and ``generate`` use the average. 0 disables it; 0.999 is
            a common value.
        accumulate: Number of batches over which gradients are accumulated and averaged before each optimizer step.
        gradient_clip_val: Maximum norm of the gradients, for the generator (with the encoder) and for the discriminator
            separately. Gradients are clipped after they have been averaged over batches and processes. None for no
            limit.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> OptimizerOptions(niter=2, niter_decay=2).rate(3)
        0.5
    """

    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    niter: int = 100
    niter_decay: int = 100
    niter_fix_global: int = 0
    ema_decay: float = 0.0
    accumulate: int = 1
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        epochs = at_least(0)
        check_ranges("optimizer", self, lr=POSITIVE, beta1=FRACTION, beta2=FRACTION, ema_decay=FRACTION)
        check_ranges("optimizer", self, niter=epochs, niter_decay=epochs, niter_fix_global=epochs)
        check_ranges("optimizer", self, accumulate=at_least(1), gradient_clip_val=POSITIVE)
        if not self.niter + self.niter_decay:
            raise InputError(
                "optimizer: niter and niter_decay are both 0, so there are no epochs to train; set one of them"
            )

    def rate(self, epoch: int) -> float:
        """Returns the factor of the learning rate in an epoch, counted from 0. It is 0 after the decay."""
        return max(0.0, 1.0 - max(0, epoch - self.niter) / max(self.niter_decay, 1))
