"""The operators: fused C++/CUDA kernels where they can run, plain PyTorch elsewhere.

Each function takes flat lists and makes one operator call for any number of layers and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pix2pixhd.ops import backend, extension, lazy_views, multi_l1, norm_act, pointwise, recycling, reference, scalars
from pix2pixhd.ops.checks import HALF, check_all_dense, check_devices, check_labels, check_list, check_shapes
from pix2pixhd.ops.scalars import Numbers

__all__ = ["hinge_loss", "logistic_loss", "lsgan_loss", "mean_loss", "multi_l1_loss"]

if extension.cpu().loaded:
    lazy_views.register()
    multi_l1.register()
    norm_act.register()
    pointwise.register()
    recycling.register()


def _signs(target_is_real: bool | Sequence[bool] | Any, count: int) -> list[scalars.Number]:
    """Return +1 for real and −1 for fake, one per tensor."""
    if scalars.is_single(target_is_real):
        return [1.0 if scalars.flag("target_is_real", target_is_real) else -1.0] * count
    if isinstance(target_is_real, (str, bytes)) or not hasattr(target_is_real, "__len__"):
        raise TypeError(f"target_is_real must be a bool or one per tensor, got {target_is_real!r}")
    flags = list(cast("Sequence[bool]", target_is_real))
    if len(flags) != count:
        raise ValueError(f"target_is_real must have one bool per tensor, {count}, got {len(flags)}")
    return [1.0 if scalars.flag(f"target_is_real[{k}]", flag) else -1.0 for k, flag in enumerate(flags)]


def _as_pytorch(
    loss: Tensor, tensors: Sequence[Tensor], weights: Sequence[scalars.Number], *, autocast_widens: bool
) -> Tensor:
    """Convert the loss to the dtype of PyTorch's own losses.

    For half-precision tensors this is their dtype, unless autocast runs the loss in float32. Autocast does so for
    ``F.l1_loss`` and ``F.mse_loss``, but not for ``mean``, on which the hinge and mean losses are based. A weight that
    is a tensor promotes the dtype, as in ``loss * weight``.
    """
    dtype, first = loss.dtype, tensors[0].dtype
    if first in HALF and not (autocast_widens and torch.is_autocast_enabled(tensors[0].device.type)):
        dtype = first if all(tensor.dtype == first for tensor in tensors) else dtype
    for weight in weights:
        if isinstance(weight, Tensor):
            dtype = torch.promote_types(dtype, weight.dtype)
    return loss if loss.dtype == dtype else loss.to(dtype)


def multi_l1_loss(inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Numbers = None) -> Tensor:
    """Weighted sum of mean absolute differences: ``Σ_k weights[k] · mean|inputs[k] − targets[k]|``.

    This is the reduction of feature matching (pix2pixHD, arXiv 1711.11585, eq. 4) and of the VGG loss (arXiv
    1603.08155), over all layers and scales in one pass. It saves two bits per element for backward, instead of inputs
    and targets. Where ``inputs[k] == targets[k]``, or the difference is NaN, the gradient is 0, as in PyTorch.

    Args:
        inputs: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        targets: K tensors; ``targets[k]`` has the shape of ``inputs[k]``. A pair may mix dtypes, as under autocast.
            Targets that require a gradient receive one.
        weights: One number, or K numbers; 1 each if None. A tensor that requires a gradient receives one.

    Returns:
        A scalar: float64 if any tensor is float64, else float32; for half-precision tensors outside autocast, their
        dtype. Tensors as weights promote the dtype, as in ``loss * weight``. The mean of an empty tensor is NaN. The
        result is bitwise reproducible, for any number of threads.

    Raises:
        TypeError: If an argument is not a list of floating-point tensors.
        ValueError: If a list is empty, or if lengths, shapes or devices differ.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import multi_l1_loss
        >>> fake = [torch.randn(1, 64, 32, 32, requires_grad=True), torch.randn(1, 128, 16, 16, requires_grad=True)]
        >>> real = [torch.randn_like(x) for x in fake]
        >>> multi_l1_loss(fake, real, [0.5, 0.5]).backward()
    """
    xs, ys = check_list("inputs", inputs), check_list("targets", targets)
    if len(xs) != len(ys):
        raise ValueError(f"targets must have as many tensors as inputs, {len(xs)}, got {len(ys)}")
    try:
        return _multi_l1(xs, ys, weights)
    except RuntimeError:
        check_all_dense("inputs", xs)
        check_all_dense("targets", ys)
        raise


def _multi_l1(xs: list[Tensor], ys: list[Tensor], weights: Numbers) -> Tensor:
    for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if x.shape != y.shape:
            check_shapes(("inputs", "targets"), x, y, k)  # raises the error
    check_devices(("inputs", "targets"), xs[0], ys[0], 0)
    parsed = scalars.parse("weights", weights, len(xs), default=1.0)
    if not backend.use_fused(xs[0]):
        check_all_dense("inputs", xs)  # PyTorch takes some of these tensors, the operators none
        check_all_dense("targets", ys)
        return reference.multi_l1_loss(xs, ys, parsed)
    loss = multi_l1.fused_multi_l1_loss(xs, ys, scalars.read_weights(parsed, xs + ys))
    return _as_pytorch(loss, xs + ys, parsed, autocast_widens=True)


_Plain = Callable[[Sequence[Tensor], Sequence[scalars.Number], Sequence[scalars.Number]], Tensor]


def _pointwise(
    preds: list[Tensor],
    constants: list[scalars.Number],
    weights: Numbers,
    kind: pointwise.Kind,
    plain: _Plain,
    *,
    autocast_widens: bool,
) -> Tensor:
    """Compute a loss of predictions and constants, fused or in plain PyTorch."""
    parsed = scalars.parse("weights", weights, len(preds), default=1.0)
    try:
        if not backend.use_fused(preds[0]):
            check_all_dense("preds", preds)  # PyTorch takes some of these tensors, the operators none
            return plain(preds, constants, parsed)
        loss = pointwise.fused_pointwise_loss(preds, constants, scalars.read_weights(parsed, preds), kind)
    except RuntimeError:
        check_all_dense("preds", preds)
        raise
    return _as_pytorch(loss, preds, parsed, autocast_widens=autocast_widens)


def _against_labels(
    preds: Sequence[Tensor], target: Numbers, weights: Numbers, kind: pointwise.Kind, plain: _Plain
) -> Tensor:
    """Compute a loss of predictions against constant labels."""
    xs = check_list("preds", preds)
    labels = scalars.read(scalars.parse("target", target, len(xs)))
    check_labels(labels, xs)
    return _pointwise(xs, labels, weights, kind, plain, autocast_widens=True)


def lsgan_loss(preds: Sequence[Tensor], target: Numbers, weights: Numbers = None) -> Tensor:
    """Weighted sum of mean squared errors against constants: ``Σ_k weights[k] · mean((preds[k] − target[k])²)``.

    This is the least-squares GAN loss (arXiv 1611.04076) over all scales of a discriminator, or over real and fake
    predictions together, in one pass and without label tensors.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target: The label, one for all tensors (1 for real, 0 for fake) or one per tensor; a Python number, a NumPy
            scalar or a tensor. It is rounded to the dtype of its tensor, as by ``torch.full_like``.
        weights: One number, or K numbers; 1 each if None. A tensor that requires a gradient receives one.

    Returns:
        A scalar of the dtype that ``multi_l1_loss`` describes.

    Raises:
        TypeError: If ``preds`` is not a list of floating-point tensors.
        ValueError: If the list is empty, if lengths or devices differ, or if the dtype of a tensor cannot represent
            its finite label.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import lsgan_loss
        >>> lsgan_loss([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 4, 4)], target=1.0)
        tensor(1.)
    """
    return _against_labels(preds, target, weights, pointwise.Kind.SQUARED_ERROR, reference.lsgan_loss)


def logistic_loss(preds: Sequence[Tensor], target: Numbers, weights: Numbers = None) -> Tensor:
    """Weighted sum of binary cross entropies of logits: ``Σ_k weights[k] · mean(BCE(sigmoid(preds[k]), target[k]))``.

    With logit ``x`` and label ``t``, the loss of an element is ``max(x, 0) − t·x + log(1 + exp(−|x|))`` and its
    derivative is ``sigmoid(x) − t``. This is ``F.binary_cross_entropy_with_logits`` against a constant label, without
    label tensors: the original GAN loss (arXiv 1406.2661) with the non-saturating loss of the generator, which SPADE
    calls ``original``.

    Args:
        preds: K tensors of logits, of any shape and strides; float32, float64, float16 or bfloat16.
        target: The label, one for all tensors (1 for real, 0 for fake, 0.9 for one-sided smoothing) or one per tensor.
        weights: One number, or K numbers; 1 each if None. A tensor that requires a gradient receives one.

    Returns:
        A scalar of the dtype that ``multi_l1_loss`` describes.

    Raises:
        TypeError: If ``preds`` is not a list of floating-point tensors.
        ValueError: If the list is empty, if lengths or devices differ, or if the dtype of a tensor cannot represent
            its finite label.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import logistic_loss
        >>> logistic_loss([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], target=1.0, weights=[0.5, 0.5])
        tensor(0.6931)
    """
    return _against_labels(preds, target, weights, pointwise.Kind.LOGISTIC, reference.logistic_loss)


def hinge_loss(preds: Sequence[Tensor], target_is_real: bool | Sequence[bool], weights: Numbers = None) -> Tensor:
    """The discriminator's hinge loss: ``Σ_k weights[k] · mean(max(0, 1 ∓ preds[k]))``, − for real, + for fake.

    See arXiv 1705.02894; SPADE (arXiv 1903.07291) uses it too. The generator's loss is ``-mean_loss(preds)``.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target_is_real: Whether the predictions are of real images; one flag for all tensors, or one each.
        weights: One number, or K numbers; 1 each if None. A tensor that requires a gradient receives one.

    Returns:
        A scalar of the dtype that ``multi_l1_loss`` describes.

    Raises:
        TypeError: If ``preds`` is not a list of floating-point tensors.
        ValueError: If the list is empty, or if lengths or devices differ.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import hinge_loss
        >>> hinge_loss([torch.full((1, 1, 4, 4), 0.25)], target_is_real=True)
        tensor(0.7500)
    """
    xs = check_list("preds", preds)
    signs = _signs(target_is_real, len(xs))
    return _pointwise(xs, signs, weights, pointwise.Kind.HINGE, reference.hinge_loss, autocast_widens=False)


def _plain_mean(preds: Sequence[Tensor], _: Sequence[scalars.Number], weights: Sequence[scalars.Number]) -> Tensor:
    return reference.mean_loss(preds, weights)


def mean_loss(preds: Sequence[Tensor], weights: Numbers = None) -> Tensor:
    """Weighted sum of means: ``Σ_k weights[k] · mean(preds[k])``, for the generator's hinge and Wasserstein losses.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        weights: One number, or K numbers; 1 each if None. A weight of −1 gives ``−mean``.

    Returns:
        A scalar of the dtype that ``multi_l1_loss`` describes.

    Raises:
        TypeError: If ``preds`` is not a list of floating-point tensors.
        ValueError: If the list is empty, or if lengths or devices differ.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import mean_loss
        >>> mean_loss([torch.ones(1, 1, 4, 4)], weights=[-1.0])
        tensor(-1.)
    """
    xs = check_list("preds", preds)
    ones: list[scalars.Number] = [1.0] * len(xs)
    return _pointwise(xs, ones, weights, pointwise.Kind.LINEAR, _plain_mean, autocast_widens=False)
