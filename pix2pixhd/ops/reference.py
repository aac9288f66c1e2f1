"""The operators in plain PyTorch: oracle of the tests, baseline of the benchmarks, fallback of the package.

The code is deliberately simple. Each function is the textbook formula, written as in common training scripts, so that
the fused operators can be compared with it in result, time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops.scalars import Number, is_constant


def label_like(x: Tensor, label: Number) -> Tensor:
    """Return ``torch.full_like(x, label)``, rounded to the dtype of ``x``, for labels of any kind."""
    if isinstance(label, Tensor):
        return label.to(x).expand_as(x)
    # full_like would turn a symbolic number into a constant of the compiled graph.
    return torch.full_like(x, label) if is_constant(label) else torch.zeros_like(x) + label


def _weighted_sum(terms: Sequence[Tensor], weights: Sequence[Number]) -> Tensor:
    if not terms:
        return torch.zeros(())
    weighted = [term * weight for term, weight in zip(terms, weights, strict=True)]
    total = weighted[0]
    for term in weighted[1:]:
        total = total + term
    return total


def multi_l1_loss(inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[Number]) -> Tensor:
    """``Σ_k weights[k] · mean|inputs[k] − targets[k]|`` as a loop over ``F.l1_loss``."""
    return _weighted_sum([F.l1_loss(x, y) for x, y in zip(inputs, targets, strict=True)], weights)


def lsgan_loss(preds: Sequence[Tensor], targets: Sequence[Number], weights: Sequence[Number]) -> Tensor:
    """``Σ_k weights[k] · mean((preds[k] − targets[k])²)`` as a loop over ``F.mse_loss`` with filled labels."""
    terms = [F.mse_loss(x, label_like(x, t)) for x, t in zip(preds, targets, strict=True)]
    return _weighted_sum(terms, weights)


def hinge_loss(preds: Sequence[Tensor], signs: Sequence[Number], weights: Sequence[Number]) -> Tensor:
    """``Σ_k weights[k] · mean(max(0, 1 − signs[k]·preds[k]))``."""
    return _weighted_sum([F.relu(1.0 - s * x).mean() for x, s in zip(preds, signs, strict=True)], weights)


def mean_loss(preds: Sequence[Tensor], weights: Sequence[Number]) -> Tensor:
    """``Σ_k weights[k] · mean(preds[k])``."""
    return _weighted_sum([x.mean() for x in preds], weights)


def logistic_loss(preds: Sequence[Tensor], targets: Sequence[Number], weights: Sequence[Number]) -> Tensor:
    """``Σ_k weights[k] · BCE(sigmoid(preds[k]), targets[k])`` as a loop over ``F.binary_cross_entropy_with_logits``."""
    terms = [F.binary_cross_entropy_with_logits(x, label_like(x, t)) for x, t in zip(preds, targets, strict=True)]
    return _weighted_sum(terms, weights)


def inverse_norm(x: Tensor, axis: int = 1, eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Return ``‖x‖`` over ``axis`` and ``1 / (‖x‖ + eps)``, for zero vectors 1 and 0 with gradient 0 instead of NaN."""
    squares = x.square().sum(axis, keepdim=True)
    zero = squares == 0
    norm = torch.where(zero, 1.0, squares).sqrt()
    return norm, torch.where(zero, 0.0, 1.0 / (norm + eps))


def unit_normalised(x: Tensor, axis: int = 1, eps: float = 1e-10) -> Tensor:
    """Divide the vectors along ``axis`` by their norm plus ``eps``. Zero vectors stay zero, with gradient 0."""
    return x * inverse_norm(x, axis, eps)[1]


def lpips_map(x: Tensor, y: Tensor, linear: Tensor | None, axis: int = 1, eps: float = 1e-10) -> Tensor:
    """``Σ_c linear[c] · (u[c] − v[c])²`` of unit-normalised feature maps, with size 1 in ``axis``.

    Source: arXiv 1801.03924, equation 1. Without ``linear`` all weights are 1.
    """
    squared = (unit_normalised(x, axis, eps) - unit_normalised(y, axis, eps)).square()
    if linear is not None:
        squared = squared * along_axis(linear, squared, axis)
    return squared.sum(axis, keepdim=True)


def along_axis(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """Reshape a vector to broadcast along one axis of a tensor, in the dtype of this tensor."""
    return vector.to(like.dtype).view([-1 if k == axis % like.dim() else 1 for k in range(like.dim())])


def distances(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float], squared: bool, pixels: Tensor | None
) -> Tensor:
    """``Σ_k weights[k] · mean(pixels · distance(inputs[k], targets[k]))`` for each image, ``[N]``.

    The distance is ``|x − y|`` or ``(x − y)²``; ``pixels`` are weights ``[N, 1, H, W]``, averaged to the size of each
    feature map.
    """
    terms = []
    for x, y in zip(inputs, targets, strict=True):
        distance = F.mse_loss(x, y, reduction="none") if squared else F.l1_loss(x, y, reduction="none")
        if pixels is not None:
            distance = distance * F.adaptive_avg_pool2d(pixels, (x.shape[2], x.shape[3]))
        terms.append(distance.flatten(1).mean(1))
    return _weighted_sum(terms, weights)
