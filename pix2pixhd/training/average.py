"""Exponential moving average of the generator's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["WeightAverage"]

_Tensors = tuple[Tensor, ...] | list[Tensor]

_HALF = (torch.float16, torch.bfloat16)


def _lerp(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    @torch.no_grad()
    def update(averages: _Tensors, weights: _Tensors, _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            converted = [weight.to(average.dtype) for average, weight in zip(averages, weights, strict=True)]
            torch._foreach_lerp_(list(averages), converted, 1 - decay)
        else:  # batch norm's num_batches_tracked
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)

    return update


class WeightAverage(AveragedModel):
    """Exponential moving average of weights, kept in at least float32 for networks of any dtype.

    After each step ``average = decay·average + (1 - decay)·weight``. In bfloat16, whose relative spacing is 2⁻⁸, a
    change scaled by ``1 - decay`` would be rounded to zero and the average would never change.

    Args:
        networks: The networks; buffers are averaged too.
        decay: Decay of the average per step.

    Example:
        >>> average = WeightAverage(nn.Linear(2, 2), decay=0.999).to(torch.bfloat16)
        >>> next(average.parameters()).dtype
        torch.float32
    """

    def __init__(self, networks: nn.Module, decay: float) -> None:
        super().__init__(networks, multi_avg_fn=_lerp(decay), use_buffers=True)
        self.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Converts to a device, memory format or dtype, but never to half precision."""

        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype not in _HALF:
                return moved
            dtype = torch.float32 if tensor.dtype in _HALF else tensor.dtype
            return torch.empty_like(moved, dtype=dtype).copy_(tensor)

        return super()._apply(at_least_float32, recurse)  # type: ignore[no-untyped-call]
