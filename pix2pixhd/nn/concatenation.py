"""A discriminator's input, the condition and an image, without copies that are saved for backward.

A discriminator takes ``cat([condition, image])``. The plain step saves this copy for each image, and its backward
computes the gradient of all channels, although only the image's is used. The condition has many more channels than the
image. The result of ``concatenate`` is recognised by the first convolution of a lean chain, which saves the two parts
instead, and computes the image's gradient alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pix2pixhd.nn.functions import ConvSpec, conv_forward, conv_gradients, saved_tensors, versions_of
from pix2pixhd.nn.state import is_plain_image, is_transformed, is_unmodified
from pix2pixhd.ops.norm_act_reference import memory_format_of

__all__ = ["Parts", "concatenate", "convolve_parts", "downsample", "parts_of"]


class Parts(NamedTuple):
    """What was concatenated."""

    constant: Tensor
    image: Tensor


# By result; an entry disappears with it.
_PARTS = WeakTensorKeyDictionary()


def concatenate(constant: Tensor, image: Tensor) -> Tensor:
    """Concatenate along channels, like ``torch.cat([constant, image], dim=1)``.

    Args:
        constant: ``[N, C, H, W]``; a tensor that requires a gradient receives one, as from ``torch.cat``.
        image: ``[N, D, H, W]``.
    """
    result = torch.cat([constant, image], dim=1)
    plain = is_plain_image(constant) and is_plain_image(image) and not constant.requires_grad
    if plain and torch.is_grad_enabled() and not is_transformed():
        _PARTS[result] = (versions_of(result, constant, image), Parts(constant, image))
    return result


def parts_of(x: Tensor) -> Parts | None:
    """Return the parts of a result of ``concatenate``; None for other tensors, or if one has been modified since."""
    versions, parts = _PARTS.get(x, (None, None))  # type: ignore[no-untyped-call]
    return cast(Parts, parts) if parts is not None and versions == versions_of(x, *parts) else None


def downsample(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a pooling layer, to the two parts separately if ``x`` is a result of ``concatenate``."""
    if is_transformed() or not is_plain_image(x) or not is_unmodified(layer, nn.AvgPool2d):
        return cast(Tensor, layer(x))
    parts = parts_of(x)
    return layer(x) if parts is None else concatenate(layer(parts.constant), layer(parts.image))


class _ConcatenatedConv(torch.autograd.Function):
    """A convolution of ``cat([constant, image])`` that saves the parts, which others hold too."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        constant: Tensor,
        whole: list[Tensor],
        spec: ConvSpec,
    ) -> Tensor:
        ctx.channels, ctx.layout = constant.shape[1], (image.shape, memory_format_of(whole[0]))
        ctx.save_for_backward(weight, *((image, constant) if ctx.needs_input_grad[1] else ()))
        return conv_forward(ctx, whole[0], weight, bias, spec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *parts = saved_tensors(ctx)

        def rebuild() -> Tensor:
            image, constant = parts
            return torch.cat([constant, image], dim=1)

        return *conv_gradients(ctx, grad, weight, weight[:, ctx.channels :], rebuild), None, None, None


def convolve_parts(x: Tensor, parts: Parts, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Convolve ``x``, the result of ``concatenate``, with one group of channels."""
    result = _ConcatenatedConv.apply(parts.image, weight, bias, parts.constant, [x], spec)
    return cast(Tensor, result)
