"""Fused ``nn.L1Loss``."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.ops import multi_l1_loss
from pix2pixhd.ops.checks import check_dense, check_devices, check_shapes, check_tensor

Reduction = Literal["mean", "sum", "none"]


def l1_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Fused ``F.l1_loss``: the mean absolute difference of two tensors, ``mean|input − target|``.

    Args:
        input: Tensor of any shape and strides, with dtype float32, float64, float16 or bfloat16.
        target: Tensor of the same shape; it is not broadcast. It may require a gradient.
        reduction: ``"mean"`` (fused), ``"sum"`` (fused) or ``"none"`` (``F.l1_loss``).

    Returns:
        A scalar of the dtype that ``multi_l1_loss`` documents, or a tensor of the shape of ``input`` for ``"none"``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the reduction is unknown, or shapes or devices differ.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import l1_loss
        >>> l1_loss(torch.zeros(2, 3), torch.ones(2, 3), reduction="sum")
        tensor(6.)
    """
    _check(reduction)
    check_tensor("input", input)
    check_tensor("target", target)
    check_dense("input", input)
    check_dense("target", target)
    check_shapes(("input", "target"), input, target)
    check_devices(("input", "target"), input, target)
    if reduction == "none" or (reduction == "sum" and input.numel() == 0):
        return F.l1_loss(input, target, reduction=reduction)
    weight = torch.sym_float(input.numel()) if reduction == "sum" else 1.0
    return multi_l1_loss([input], [target], [weight])


def _check(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")


class L1Loss(nn.Module):
    """Mean absolute difference: a drop-in for ``nn.L1Loss`` that saves two bits per element for backward.

    Args:
        reduction: ``"mean"`` (fused), ``"sum"`` (fused) or ``"none"`` (``F.l1_loss``).

    Raises:
        ValueError: If the reduction is unknown.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import L1Loss
        >>> L1Loss()(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(1.)
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check(reduction)
        self.reduction: Reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss. See ``l1_loss`` for shapes, dtypes and errors."""
        return l1_loss(input, target, self.reduction)
