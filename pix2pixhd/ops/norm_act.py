"""Normalisation, activation, residual add and padding of images in one pass, and the backward of all of them.

These functions have no derivative of their own. Call them in the forward and the backward of an autograd Function,
which decides what is saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pix2pixhd.ops import backend, norm_act_reference
from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.fake_arguments import check_images, check_padding
from pix2pixhd.ops.norm_act_reference import LEAKY_RELU, NONE, REFLECT, RELU, REPLICATE, ZERO, memory_format_of

__all__ = ["LEAKY_RELU", "NONE", "REFLECT", "RELU", "REPLICATE", "ZERO"]
__all__ += ["norm_act", "norm_act_backward", "norm_statistics"]


def norm_statistics(x: Tensor, per_image: bool = True, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the statistics of instance norm (of each image's channels) or batch norm (of each channel).

    Args:
        x: Images ``[N, C, H, W]``.
        per_image: Whether each image has its own statistics.
        eps: Added to the variance in ``rstd = 1 / sqrt(var + eps)``.

    Returns:
        Mean, reciprocal standard deviation and biased variance, ``[N, C]`` or ``[1, C]``; float64 for float64 images,
        else float32. Of no pixels they are NaN, as in PyTorch.
    """
    if not backend.use_fused_if_loaded(x):
        return norm_act_reference.norm_statistics(x, per_image, eps)
    result = torch.ops.pix2pixhd.norm_statistics.default(x, per_image, eps)
    return cast("tuple[Tensor, Tensor, Tensor]", result)


def norm_act(
    x: Tensor,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: int = NONE,
    slope: float = 0.2,
    padding: Sequence[int] = (0, 0, 0, 0),
    padding_mode: int = ZERO,
) -> Tensor:
    """Compute ``pad(act((x − mean) · rstd · weight + bias) + residual)``, rounded once.

    Args:
        x: Images ``[N, C, H, W]``.
        mean: ``[N, C]`` or ``[1, C]``, from ``norm_statistics``; None for no normalisation.
        rstd: As ``mean``; both or neither are given.
        weight: ``[C]``, in the dtype of ``x`` or in float32; None for 1.
        bias: As ``weight``; None for 0.
        residual: Added after the activation; shape and dtype of ``x``.
        activation: 0 none, 1 ReLU, 2 leaky ReLU.
        slope: Of leaky ReLU.
        padding: ``(left, right, top, bottom)``, as in ``F.pad``, none of them negative.
        padding_mode: 0 zero, 1 reflect, 2 replicate.

    Returns:
        ``[N, C, H + top + bottom, W + left + right]`` in the dtype and memory format (contiguous or channels-last) of
        ``x``.

    Raises:
        RuntimeError: If shapes, dtypes or devices do not match, or the padding does not fit the image.
    """
    padding = list(padding)
    if not backend.use_fused_if_loaded(x):
        return norm_act_reference.norm_act(
            x, mean, rstd, weight, bias, residual, activation, slope, padding, padding_mode
        )
    operator = torch.ops.pix2pixhd.norm_act.default
    return cast(Tensor, operator(x, mean, rstd, weight, bias, residual, activation, slope, padding, padding_mode))


def norm_act_backward(
    grad: Tensor,
    source: Tensor,
    source_is_output: bool = False,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: int = NONE,
    slope: float = 0.2,
    padding: Sequence[int] = (0, 0, 0, 0),
    padding_mode: int = ZERO,
    through_statistics: bool = True,
    need_input: bool = True,
    need_affine: bool = False,
    need_residual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of ``norm_act``.

    Args:
        grad: Gradient of the padded result, with any strides.
        source: ``x``; with ``source_is_output`` the unpadded activated result without the residual.
        source_is_output: Whether to recover the normalised ``x`` from ``source``, so that ``x`` need not be saved.
            Requires no activation or leaky ReLU with ``slope > 0``, and no zero in ``weight``. ReLU is allowed if the
            statistics are constants.
        mean: As in the forward.
        rstd: As in the forward.
        weight: As in the forward.
        bias: As in the forward.
        activation: As in the forward.
        slope: As in the forward.
        padding: As in the forward.
        padding_mode: As in the forward.
        through_statistics: Whether ``mean`` and ``rstd`` are functions of ``x``; False for batch norm in evaluation.
        need_input: Whether to compute the gradient of ``x``.
        need_affine: Whether to compute the gradients of ``weight`` and ``bias``, of those that are given.
        need_residual: Whether to compute the gradient of ``residual``.

    Returns:
        The gradients of ``x``, ``weight``, ``bias`` and ``residual``; empty tensors for those that are not computed.
    """
    padding = list(padding)
    rest = (activation, slope, padding, padding_mode, through_statistics, need_input, need_affine, need_residual)
    if not backend.use_fused_if_loaded(source):
        return norm_act_reference.norm_act_backward(grad, source, source_is_output, mean, rstd, weight, bias, *rest)
    operator = torch.ops.pix2pixhd.norm_act_backward.default
    result = operator(grad, source, source_is_output, mean, rstd, weight, bias, *rest)
    return cast("tuple[Tensor, Tensor, Tensor, Tensor]", result)


def _fake_statistics(x: Tensor, per_image: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    check_images("norm_statistics", "x", x)
    shape = (x.shape[0] if per_image else 1, x.shape[1])
    mean, rstd, var = (x.new_empty(shape, dtype=wider(x.dtype)) for _ in range(3))
    return mean, rstd, var


def _fake_forward(
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
    padding: Sequence[int],
    padding_mode: int,
) -> Tensor:
    check_images("norm_act", "x", x)
    check_padding("norm_act", padding)
    left, right, top, bottom = padding
    shape = (x.shape[0], x.shape[1], x.shape[2] + top + bottom, x.shape[3] + left + right)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def _fake_backward(
    grad: Tensor,
    source: Tensor,
    source_is_output: bool,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: int,
    slope: float,
    padding: Sequence[int],
    padding_mode: int,
    through_statistics: bool,
    need_input: bool,
    need_affine: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_images("norm_act_backward", "source", source)
    check_padding("norm_act_backward", padding)

    def like_source(needed: bool) -> Tensor:
        if not needed:
            return source.new_empty(0)
        return torch.empty_like(source, memory_format=memory_format_of(source))

    def like_parameter(parameter: Tensor | None) -> Tensor:
        if parameter is None:
            return source.new_empty(0)
        return parameter.new_empty(parameter.shape[0] if need_affine else 0)

    return like_source(need_input), like_parameter(weight), like_parameter(bias), like_source(need_residual)


def _refuse_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "pix2pixhd: norm_act was differentiated through its fused operator, which has no derivative of its own; a "
        "second derivative (create_graph=True) needs pix2pixhd.backend('reference')"
    )


def register() -> None:
    """Register fake kernels, and an autograd that raises. Called once, after the library has been loaded."""
    fakes: dict[str, Callable[..., Any]] = {
        "norm_statistics": _fake_statistics,
        "norm_act": _fake_forward,
        "norm_act_backward": _fake_backward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"pix2pixhd::{name}", fake)
        torch.library.register_autograd(f"pix2pixhd::{name}", _refuse_derivative)
