"""``nn.L1Loss``, fused."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.ops import multi_l1_loss


class L1Loss(nn.Module):
    """The mean absolute difference, a drop-in for ``nn.L1Loss`` that keeps two bits per element for the backward.

    Args:
        reduction: ``"mean"`` (fused), ``"sum"`` (fused) or ``"none"`` (torch's own).

    Raises:
        ValueError: For another reduction.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import L1Loss
        >>> L1Loss()(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(1.)
    """

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if reduction not in get_args(Literal["mean", "sum", "none"]):
            raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of two tensors of one shape; types and errors are those of ``multi_l1_loss``."""
        if self.reduction == "none" or (self.reduction == "sum" and input.numel() == 0):
            return F.l1_loss(input, target, reduction=self.reduction)
        weight = float(input.numel()) if self.reduction == "sum" else 1.0
        return multi_l1_loss([input], [target], [weight])
