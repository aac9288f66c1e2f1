"""float16 mixed precision with two optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.types import Optimizable
from lightning.pytorch.plugins.precision import MixedPrecision

__all__ = ["SharedScalePrecision"]


class SharedScalePrecision(MixedPrecision):
    """float16 mixed precision that updates the loss scale once per training step.

    Lightning's plugin updates the scale after the step of every optimizer, so the second optimizer's gradients are
    divided by a different scale than their losses were multiplied by. This plugin follows PyTorch's recipe for several
    optimizers: the gradients of each optimizer are unscaled; each optimizer steps unless its own gradients contain Inf
    or NaN; and the scale is updated after the last one.

    Args:
        device: Device type, such as ``cuda`` or ``cpu``.

    Example:
        >>> SharedScalePrecision("cpu").precision
        '16-mixed'
    """

    def __init__(self, device: str) -> None:
        super().__init__("16-mixed", device)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizable, model: pl.LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Unscales one optimizer's gradients and steps it; updates the scale after the last optimizer."""
        assert self.scaler is not None
        closure()
        # Unscaled explicitly, so that hooks such as gradient clipping receive the true gradients. Unscaling within the
        # step of a fused optimizer would not be faster, because the scaler would still scan the gradients for Inf.
        self.scaler.unscale_(optimizer)  # type: ignore[arg-type]
        self._after_closure(model, optimizer)
        output = self.scaler.step(optimizer, **kwargs)  # type: ignore[arg-type]
        if optimizer is model.trainer.optimizers[-1]:
            self.scaler.update()
        return output
