"""Mixed precision in float16 for two optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.types import Optimizable
from lightning.pytorch.plugins.precision import MixedPrecision

__all__ = ["SharedScalePrecision"]


class SharedScalePrecision(MixedPrecision):
    """Mixed precision in float16, whose loss scale is updated once per training step.

    Lightning's plugin updates the scale after the step of every optimizer. The second optimizer's gradients are then
    divided by another scale than their losses were multiplied by. This one follows PyTorch's recipe for several
    optimizers: each is unscaled and stepped, or skipped for its own Inf or NaN gradients, and the scale is updated
    after the last one.

    Args:
        device: Type of the device, such as ``cuda`` or ``cpu``.

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
        # Explicitly, so that hooks such as gradient clipping get the true gradients. A fused optimizer, which could
        # unscale during its step, costs the same: the scaler would search its gradients for Inf in a pass of its own.
        self.scaler.unscale_(optimizer)  # type: ignore[arg-type]
        self._after_closure(model, optimizer)
        output = self.scaler.step(optimizer, **kwargs)  # type: ignore[arg-type]
        if optimizer is model.trainer.optimizers[-1]:
            self.scaler.update()
        return output
