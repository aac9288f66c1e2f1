"""The ``optimizer`` section of a configuration."""

from __future__ import annotations

import dataclasses

from pix2pixhd.config.schema.ranges import FRACTION, POSITIVE, at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["OptimizerOptions"]


@dataclasses.dataclass
class OptimizerOptions:
    """Adam for both networks, and how long to train.

    Attributes:
        lr: Learning rate.
        beta1: Adam's first momentum.
        beta2: Adam's second momentum.
        niter: Epochs at the full learning rate.
        niter_decay: Epochs in which it falls linearly towards 0.
        niter_fix_global: Of these, the first epochs in which only the finest enhancer is trained (``model.netG:
            local``, with the global part from ``run.load_pretrain``).
        ema_decay: Keeps a moving average of the generator's weights, ``ema = decay·ema + (1 − decay)·weight`` at each
            step, which validation, samples and ``generate`` then take; 0 for none, 0.999 is usual.
        accumulate: Batches whose gradients are averaged before each step.
        gradient_clip_val: Largest norm of a step's gradients: of the generator's, together with the encoder's, and of
            the discriminator's. Larger gradients are scaled down to it, after they have been averaged over batches and
            processes. None for no limit.

    Raises:
        InputError: For numbers out of range.

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
                "optimizer: niter and niter_decay are both 0, so nothing would be trained; set one of them"
            )

    def rate(self, epoch: int) -> float:
        """The share of the learning rate in an epoch, counted from 0; 0 from the end of the decay on."""
        return max(0.0, 1.0 - max(0, epoch - self.niter) / max(self.niter_decay, 1))
