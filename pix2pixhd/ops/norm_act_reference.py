"""``norm_act`` in plain PyTorch: the oracle of the tests, and the fallback without the extension.

The arithmetic is in float32, or in float64 for float64 images, and each result is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops.autograd import wider

NONE, RELU, LEAKY_RELU = range(3)
ZERO, REFLECT, REPLICATE = range(3)
_MODES = {ZERO: "constant", REFLECT: "reflect", REPLICATE: "replicate"}


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of the results: that of ``x``; for other strides, that of its innermost dimension."""
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = x.is_contiguous(memory_format=torch.channels_last) or x.stride(1) == 1
    return torch.channels_last if channels_last else torch.contiguous_format


def check_padding(x: Tensor, padding: Sequence[int], padding_mode: int) -> None:
    """Refuse padding that PyTorch's ``F.pad`` refuses, and negative padding."""
    if len(padding) != 4 or min(padding) < 0:
        raise RuntimeError(
            "pix2pixhd: padding must be (left, right, top, bottom), each at least 0; crop the result for negative "
            f"padding, got {list(padding)}"
        )
    left, right, top, bottom = padding
    height, width = x.shape[2:]
    reflected = padding_mode == REFLECT and (max(left, right) >= width or max(top, bottom) >= height)
    if reflected or (padding_mode == REPLICATE and 0 in (height, width)):
        what = "reflection padding must be smaller than the image" if reflected else "padding needs a non-empty image"
        raise RuntimeError(
            f"pix2pixhd: {what}, got padding {list(padding)} for {height}x{width} pixels; use a larger image, fewer "
            "downsampling layers, or padding_mode 0 (zero)"
        )


def _per_channel(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """Bring statistics ``[N, C]`` and affine parameters ``[C]`` to the dtype of the arithmetic and four dimensions."""
    dtype = wider(x.dtype)
    return [t if t is None else t.to(dtype)[..., None, None] for t in tensors]


def norm_statistics(x: Tensor, per_image: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, reciprocal standard deviation and biased variance of each channel; see ``norm_act.norm_statistics``."""
    dims, shape = ((2, 3), x.shape[:2]) if per_image else ((0, 2, 3), (1, x.shape[1]))
    wide = x.to(wider(x.dtype))
    mean = wide.mean(dims, keepdim=True)
    var = (wide - mean).square().mean(dims).view(shape)
    return mean.view(shape), (var + eps).rsqrt(), var


def _normalise(
    x: Tensor, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    scale = rstd if weight is None else weight if rstd is None else rstd * weight
    z = x if mean is None else x - mean
    z = z if scale is None else z * scale
    return z if bias is None else z + bias


def norm_act(
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
    """``pad(act((x − mean) · rstd · weight + bias) + residual)``; see ``norm_act.norm_act``."""
    check_padding(x, padding, padding_mode)
    y = _normalise(x.to(wider(x.dtype)), *_per_channel(x, mean, rstd, weight, bias))
    if activation == RELU:
        y = F.relu(y)
    elif activation == LEAKY_RELU:
        y = F.leaky_relu(y, slope)
    if residual is not None:
        y = y + residual
    y = y.to(x.dtype)
    if any(padding):
        y = (
            F.pad(y, list(padding), _MODES[padding_mode])
            if y.numel() > 0 or padding_mode == ZERO
            else _empty(y, padding)
        )
    return y.contiguous(memory_format=memory_format_of(x))


def _empty(y: Tensor, padding: Sequence[int]) -> Tensor:
    left, right, top, bottom = padding
    return y.new_empty(y.shape[0], y.shape[1], y.shape[2] + top + bottom, y.shape[3] + left + right)


def _gather(grad: Tensor, dim: int, before: int, after: int, mode: int) -> Tensor:
    """Add the gradient of the padding along one dimension to that of the pixels it was copied from."""
    size = grad.shape[dim] - before - after
    inner = grad.narrow(dim, before, size)
    if mode == ZERO or not (before or after):
        return inner
    inner = inner.clone()
    if mode == REFLECT:
        inner.narrow(dim, 1, before).add_(grad.narrow(dim, 0, before).flip(dim))
        inner.narrow(dim, size - 1 - after, after).add_(grad.narrow(dim, before + size, after).flip(dim))
    else:
        inner.narrow(dim, 0, 1).add_(grad.narrow(dim, 0, before).sum(dim, keepdim=True))
        inner.narrow(dim, size - 1, 1).add_(grad.narrow(dim, before + size, after).sum(dim, keepdim=True))
    return inner


def check_output_source(mean: Tensor | None, activation: int, slope: float, through_statistics: bool) -> None:
    """Refuse ``source_is_output`` where the activation cannot be inverted."""
    inverted = activation == NONE or (activation == LEAKY_RELU and slope > 0)
    # With constant statistics, ReLU's backward needs x only where the output is positive.
    if not inverted and (activation == LEAKY_RELU or (through_statistics and mean is not None)):
        raise RuntimeError(
            "pix2pixhd: source_is_output needs no activation, or leaky ReLU with slope > 0, which can be inverted; "
            "pass x as the source"
        )


def norm_act_backward(
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
    """Gradients of ``norm_act``; see ``norm_act.norm_act_backward``."""
    check_padding(source, padding, padding_mode)
    if source_is_output:
        check_output_source(mean, activation, slope, through_statistics)
    layout = memory_format_of(source)
    dtype = wider(source.dtype)
    m, r, w, b = _per_channel(source, mean, rstd, weight, bias)
    left, right, top, bottom = padding
    full = _gather(_gather(grad.to(dtype), 3, left, right, padding_mode), 2, top, bottom, padding_mode)

    s = source.to(dtype)
    if source_is_output:
        z = torch.where(s > 0, s, s / slope) if activation == LEAKY_RELU else s
        x_hat = z if b is None else z - b
        x_hat = x_hat if w is None else x_hat / w
        z = s  # has the sign of z
    else:
        z = _normalise(s, m, r, w, b)
        x_hat = _normalise(s, m, r, None, None)
    g = full
    if activation == RELU:
        g = torch.where(z <= 0, 0.0, g)
    elif activation == LEAKY_RELU:
        g = torch.where(z > 0, g, g * slope)

    none = source.new_empty(0)
    grad_x = grad_weight = grad_bias = grad_residual = none
    if need_residual:
        grad_residual = full.to(source.dtype).contiguous(memory_format=layout)
    if weight is not None:
        grad_weight = (g * x_hat).sum((0, 2, 3)).to(weight.dtype) if need_affine else weight.new_empty(0)
    if bias is not None:
        grad_bias = g.sum((0, 2, 3)).to(bias.dtype) if need_affine else bias.new_empty(0)
    if need_input:
        if through_statistics and mean is not None:
            dims = (2, 3) if mean.shape[0] == source.shape[0] else (0, 2, 3)
            g = g - g.mean(dims, keepdim=True) - x_hat * (g * x_hat).mean(dims, keepdim=True)
        g = g if r is None else g * r
        g = g if w is None else g * w
        grad_x = g.to(source.dtype).contiguous(memory_format=layout)
    return grad_x, grad_weight, grad_bias, grad_residual
