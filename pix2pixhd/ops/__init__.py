"""The operators: fused C++/CUDA kernels where they can run, plain PyTorch elsewhere.

Each function takes flat lists and makes one call, however many layers and scales there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pix2pixhd.ops import choice, l1, library, pointwise, recycling, reference
from pix2pixhd.ops.choice import backend

__all__ = ["backend", "hinge_loss", "lsgan_loss", "mean_loss", "multi_l1_loss"]

if library.cpu().loaded:
    l1.register()
    pointwise.register()
    recycling.register()

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *_HALF)


def _tensors(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}; wrap a single one: [tensor]")
    if not tensors:
        raise ValueError(f"{name} is empty; pass at least one tensor")
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{name}[{k}] must be float32, float64, float16 or bfloat16, got {tensor.dtype}; "
                "convert it with .float()"
            )
        if k > 0 and tensor.device != tensors[0].device:
            raise ValueError(
                f"{name}[{k}] is on {tensor.device} and {name}[0] on {tensors[0].device}; move all to one device"
            )
    return list(tensors)


def _floats(name: str, values: Sequence[float] | float | None, count: int, default: float = 1.0) -> list[float]:
    if values is None:
        return [default] * count
    if isinstance(values, (int, float)):
        return [float(values)] * count
    if len(values) != count:
        raise ValueError(f"{name} must have one number per tensor, {count}, got {len(values)}")
    return [float(value) for value in values]


def _as_pytorch(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Half inputs give a half loss outside autocast and a float32 one inside, as PyTorch's own losses do."""
    dtype = tensors[0].dtype
    if dtype not in _HALF or torch.is_autocast_enabled(tensors[0].device.type):
        return loss
    return loss.to(dtype) if all(tensor.dtype == dtype for tensor in tensors) else loss


def multi_l1_loss(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum of mean absolute differences: ``Σ_k weights[k] · mean|inputs[k] − targets[k]|``.

    The reduction of feature matching (pix2pixHD, arXiv 1711.11585, eq. 4) and of the VGG loss (arXiv 1603.08155), over
    all layers and scales in one pass. For the backward it keeps two bits per element instead of inputs and targets.
    Where ``inputs[k] == targets[k]``, or the difference is NaN, the gradient is 0, as in PyTorch.

    Args:
        inputs: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        targets: K tensors, ``targets[k]`` of the shape of ``inputs[k]``. A pair may mix types, as under autocast.
            Targets that require a gradient get theirs.
        weights: K numbers; 1 each when None.

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
    factors = _floats("weights", weights, len(xs))
    if not choice.use_fused(xs[0]):
        return reference.multi_l1_loss(xs, ys, factors)
    return _as_pytorch(l1.fused_multi_l1_loss(xs, ys, factors), xs + ys)


def lsgan_loss(
    preds: Sequence[Tensor], target: float | Sequence[float], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum of mean squared errors against constants: ``Σ_k weights[k] · mean((preds[k] − target[k])²)``.

    The least-squares GAN loss (arXiv 1611.04076) over all scales of a discriminator, or over real and fake predictions
    together, in one pass and without label tensors.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target: The label, one for all (1 for real, 0 for fake) or one per tensor.
        weights: K numbers; 1 each when None.

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
    xs = _tensors("preds", preds)
    constants, factors = _floats("target", target, len(xs)), _floats("weights", weights, len(xs))
    if not choice.use_fused(xs[0]):
        return reference.lsgan_loss(xs, constants, factors)
    return _as_pytorch(pointwise.fused_pointwise_loss(xs, constants, factors, pointwise.Kind.SQUARED_ERROR), xs)


def hinge_loss(
    preds: Sequence[Tensor], target_is_real: bool | Sequence[bool], weights: Sequence[float] | None = None
) -> Tensor:
    """The discriminator's hinge loss: ``Σ_k weights[k] · mean(max(0, 1 ∓ preds[k]))``, − for real, + for fake.

    From arXiv 1705.02894, as SPADE (arXiv 1903.07291) uses it. The generator's side is ``-mean_loss(preds)``.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        target_is_real: Whether the predictions are of real pictures; one for all or one per tensor.
        weights: K numbers; 1 each when None.

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
    real = [target_is_real] * len(xs) if isinstance(target_is_real, bool) else list(target_is_real)
    signs = _floats("target_is_real", [1.0 if r else -1.0 for r in real], len(xs))
    factors = _floats("weights", weights, len(xs))
    if not choice.use_fused(xs[0]):
        return reference.hinge_loss(xs, signs, factors)
    return _as_pytorch(pointwise.fused_pointwise_loss(xs, signs, factors, pointwise.Kind.HINGE), xs)


def mean_loss(preds: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted sum of means: ``Σ_k weights[k] · mean(preds[k])``; the generator's hinge and the Wasserstein losses.

    Args:
        preds: K tensors of any shape and strides; float32, float64, float16 or bfloat16.
        weights: K numbers; 1 each when None. Negative ones give ``−mean``.

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
    factors = _floats("weights", weights, len(xs))
    if not choice.use_fused(xs[0]):
        return reference.mean_loss(xs, factors)
    return _as_pytorch(pointwise.fused_pointwise_loss(xs, [1.0] * len(xs), factors, pointwise.Kind.LINEAR), xs)
