"""The operators: fused C++/CUDA kernels where they can run, plain PyTorch elsewhere.

Each function takes flat lists and makes one call, however many layers and scales there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pix2pixhd.ops import choice, l1, library, pointwise, recycling, reference, scalars
from pix2pixhd.ops.choice import backend
from pix2pixhd.ops.scalars import Numbers

__all__ = ["backend", "hinge_loss", "logistic_loss", "lsgan_loss", "mean_loss", "multi_l1_loss"]

if library.cpu().loaded:
    l1.register()
    pointwise.register()
    recycling.register()

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = {torch.float32, torch.float64, *_HALF}


def _tensors(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}; wrap a single one: [tensor]")
    if not tensors:
        raise ValueError(f"{name} is empty; pass at least one tensor")
    device = tensors[0].device if isinstance(tensors[0], Tensor) else None
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{name}[{k}] must be float32, float64, float16 or bfloat16, got {tensor.dtype}; "
                "convert it with .float()"
            )
        if tensor.device != device:
            raise ValueError(f"{name}[{k}] is on {tensor.device} and {name}[0] on {device}; move all to one device")
    return list(tensors)


def _signs(target_is_real: bool | Sequence[bool] | Any, count: int) -> list[float]:
    """+1 for real and −1 for fake, one per tensor."""
    flags: list[Any] = [target_is_real] * count
    if not scalars.is_single(target_is_real):
        flags = list(cast("Sequence[bool]", target_is_real))
    if len(flags) != count:
        raise ValueError(f"target_is_real must have one number per tensor, {count}, got {len(flags)}")
    return [1.0 if flag else -1.0 for flag in flags]


def _as_pytorch(loss: Tensor, tensors: Sequence[Tensor], *, autocast_widens: bool) -> Tensor:
    """The dtype of PyTorch's own losses: that of half tensors, unless autocast runs the loss in float32.

    Autocast does so for ``F.l1_loss`` and ``F.mse_loss``, and not for ``mean``, of which hinge and mean consist.
    """
    dtype = tensors[0].dtype
    if dtype not in _HALF or (autocast_widens and torch.is_autocast_enabled(tensors[0].device.type)):
        return loss
    return loss.to(dtype) if all(tensor.dtype == dtype for tensor in tensors) else loss


def multi_l1_loss(inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Numbers = None) -> Tensor:
    """Weighted sum of mean absolute differences: ``Σ_k weights[k] · mean|inputs[k] − targets[k]|``.

    The reduction of feature matching (pix2pixHD, arXiv 1711.11585, eq. 4) and of the VGG loss (arXiv 1603.08155), over
    all layers and scales in one pass. For the backward it keeps two bits per element instead of inputs and targets.
    Where ``inputs[k] == targets[k]``, or the difference is NaN, the gradient is 0, as in PyTorch.

    Args:
        inputs: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        targets: K tensors, ``targets[k]`` of the shape of ``inputs[k]``. A pair may mix types, as under autocast.
            Targets that require a gradient get theirs.
        weights: One number, or K; 1 each when None. A tensor that requires a gradient gets its gradient.

    Returns:
        A scalar: float32, or float64 when any tensor is; for half tensors outside autocast, their type. An empty
        tensor's mean is NaN. The same bits on every run, for any number of threads.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For empty lists and for lengths, shapes or devices that do not agree.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import multi_l1_loss
        >>> fake = [torch.randn(1, 64, 32, 32, requires_grad=True), torch.randn(1, 128, 16, 16, requires_grad=True)]
        >>> real = [torch.randn_like(x) for x in fake]
        >>> multi_l1_loss(fake, real, [0.5, 0.5]).backward()
    """
    xs, ys = _tensors("inputs", inputs), _tensors("targets", targets)
    if len(xs) != len(ys):
        raise ValueError(f"targets must have as many tensors as inputs, {len(xs)}, got {len(ys)}")
    for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if x.shape != y.shape:
            raise ValueError(
                f"targets[{k}] must have the shape of inputs[{k}], {tuple(x.shape)}, got {tuple(y.shape)}; "
                "broadcasting is not done"
            )
    if ys[0].device != xs[0].device:
        raise ValueError(f"targets are on {ys[0].device} and inputs on {xs[0].device}; move all to one device")
    factors = scalars.parse("weights", weights, len(xs), default=1.0)
    if not choice.use_fused(xs[0]):
        return reference.multi_l1_loss(xs, ys, factors)
    return _as_pytorch(l1.fused_multi_l1_loss(xs, ys, factors), xs + ys, autocast_widens=True)


def _against_labels(
    preds: Sequence[Tensor],
    target: Numbers,
    weights: Numbers,
    kind: pointwise.Kind,
    plain: Callable[[Sequence[Tensor], Sequence[scalars.Number], Sequence[scalars.Number]], Tensor],
) -> Tensor:
    """A loss of predictions against constant labels, fused or in plain PyTorch."""
    xs = _tensors("preds", preds)
    labels = scalars.parse("target", target, len(xs))
    factors = scalars.parse("weights", weights, len(xs), default=1.0)
    if not choice.use_fused(xs[0]):
        return plain(xs, labels, factors)
    return _as_pytorch(pointwise.fused_pointwise_loss(xs, labels, factors, kind), xs, autocast_widens=True)


def lsgan_loss(preds: Sequence[Tensor], target: Numbers, weights: Numbers = None) -> Tensor:
    """Weighted sum of mean squared errors against constants: ``Σ_k weights[k] · mean((preds[k] − target[k])²)``.

    The least-squares GAN loss (arXiv 1611.04076) over all scales of a discriminator, or over real and fake predictions
    together, in one pass and without label tensors.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target: The label, one for all (1 for real, 0 for fake) or one per tensor; a Python number, a NumPy scalar or a
            tensor. It is rounded to the dtype of its tensor, as by ``torch.full_like``.
        weights: One number, or K; 1 each when None. A tensor that requires a gradient gets its gradient.

    Returns:
        A scalar of the type that ``multi_l1_loss`` describes.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For an empty list and for lengths or devices that do not agree.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import lsgan_loss
        >>> lsgan_loss([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 4, 4)], target=1.0)
        tensor(1.)
    """
    return _against_labels(preds, target, weights, pointwise.Kind.SQUARED_ERROR, reference.lsgan_loss)


def logistic_loss(preds: Sequence[Tensor], target: Numbers, weights: Numbers = None) -> Tensor:
    """Weighted sum of binary cross entropies of logits: ``Σ_k weights[k] · mean(BCE(sigmoid(preds[k]), target[k]))``.

    With logit ``x`` and label ``t`` an element's loss is ``max(x, 0) − t·x + log(1 + exp(−|x|))`` and its derivative
    ``sigmoid(x) − t``: ``F.binary_cross_entropy_with_logits`` against a constant label, without label tensors. This is
    the original GAN loss (arXiv 1406.2661) with the non-saturating loss of the generator, SPADE's mode ``original``.

    Args:
        preds: K tensors of logits, of any shape and strides; float32, float64, float16 or bfloat16.
        target: The label, one for all (1 for real, 0 for fake, 0.9 for one-sided smoothing) or one per tensor.
        weights: One number, or K; 1 each when None. A tensor that requires a gradient gets its gradient.

    Returns:
        A scalar of the type that ``multi_l1_loss`` describes.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For an empty list and for lengths or devices that do not agree.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import logistic_loss
        >>> logistic_loss([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], target=1.0, weights=[0.5, 0.5])
        tensor(0.6931)
    """
    return _against_labels(preds, target, weights, pointwise.Kind.LOGISTIC, reference.logistic_loss)


def hinge_loss(preds: Sequence[Tensor], target_is_real: bool | Sequence[bool], weights: Numbers = None) -> Tensor:
    """The discriminator's hinge loss: ``Σ_k weights[k] · mean(max(0, 1 ∓ preds[k]))``, − for real, + for fake.

    From arXiv 1705.02894, as SPADE (arXiv 1903.07291) uses it. The generator's side is ``-mean_loss(preds)``.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target_is_real: Whether the predictions are of real pictures; one for all or one per tensor.
        weights: One number, or K; 1 each when None. A tensor that requires a gradient gets its gradient.

    Returns:
        A scalar of the type that ``multi_l1_loss`` describes.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For an empty list and for lengths or devices that do not agree.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import hinge_loss
        >>> hinge_loss([torch.full((1, 1, 4, 4), 0.25)], target_is_real=True)
        tensor(0.7500)
    """
    xs = _tensors("preds", preds)
    signs = _signs(target_is_real, len(xs))
    factors = scalars.parse("weights", weights, len(xs), default=1.0)
    if not choice.use_fused(xs[0]):
        return reference.hinge_loss(xs, signs, factors)
    loss = pointwise.fused_pointwise_loss(xs, list(signs), factors, pointwise.Kind.HINGE)
    return _as_pytorch(loss, xs, autocast_widens=False)


def mean_loss(preds: Sequence[Tensor], weights: Numbers = None) -> Tensor:
    """Weighted sum of means: ``Σ_k weights[k] · mean(preds[k])``; the generator's hinge and the Wasserstein losses.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        weights: One number, or K; 1 each when None. Negative ones give ``−mean``.

    Returns:
        A scalar of the type that ``multi_l1_loss`` describes.

    Raises:
        TypeError: For something that is not a list of floating-point tensors.
        ValueError: For an empty list and for lengths or devices that do not agree.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import mean_loss
        >>> mean_loss([torch.ones(1, 1, 4, 4)], weights=[-1.0])
        tensor(-1.)
    """
    xs = _tensors("preds", preds)
    factors = scalars.parse("weights", weights, len(xs), default=1.0)
    if not choice.use_fused(xs[0]):
        return reference.mean_loss(xs, factors)
    loss = pointwise.fused_pointwise_loss(xs, [1.0] * len(xs), factors, pointwise.Kind.LINEAR)
    return _as_pytorch(loss, xs, autocast_widens=False)
