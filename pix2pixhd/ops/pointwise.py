"""Python face of ``multi_pointwise``: losses of many tensors against a constant (LSGAN, hinge, mean, logistic)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pix2pixhd.ops.dispatch import below_autograd, differentiated_again


class Kind(enum.IntEnum):
    """The function of one element; csrc/multi_tensor.h: Pointwise."""

    SQUARED_ERROR = 0
    HINGE = 1
    LINEAR = 2
    LOGISTIC = 3


def _fake_forward(input: list[Tensor], constant: list[float], weight: list[float], kind: int) -> Tensor:
    wide = any(tensor.dtype == torch.float64 for tensor in input)
    return input[0].new_empty((), dtype=torch.float64 if wide else torch.float32)


def _fake_backward(
    grad: Tensor, input: list[Tensor], constant: list[float], weight: list[float], kind: int
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in input]


def _written_out(grad: Tensor, input: Tensor, constant: float, weight: float, kind: int) -> Tensor:
    scale = grad.to(input.dtype) * (weight / input.numel() if input.numel() > 0 else weight)
    if kind == Kind.SQUARED_ERROR:
        return scale * 2.0 * (input - constant)
    if kind == Kind.HINGE:
        return torch.where(1.0 - constant * input <= 0, 0.0, -constant * scale)
    if kind == Kind.LOGISTIC:
        return scale * (torch.sigmoid(input) - constant)
    return (constant * scale).expand_as(input)


def _gradients(ctx: Any, grad: Tensor) -> Sequence[Tensor]:
    constant, weight, kind = ctx.arguments
    input = ctx.saved_tensors
    if differentiated_again(grad, *input):
        return [_written_out(grad, x, c, w, kind) for x, c, w in zip(input, constant, weight, strict=True)]
    gradients: list[Tensor] = torch.ops.pix2pixhd.multi_pointwise_backward.default(grad, input, constant, weight, kind)
    return gradients


class _MultiPointwise(torch.autograd.Function):
    """The eager path, see ``l1._MultiL1``."""

    @staticmethod
    def forward(ctx: Any, constant: list[float], weight: list[float], kind: int, *input: Tensor) -> Tensor:
        ctx.arguments = (constant, weight, kind)
        ctx.save_for_backward(*input)
        with below_autograd():
            return cast(Tensor, torch.ops.pix2pixhd.multi_pointwise.default(input, constant, weight, kind))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *_gradients(ctx, grad))


def _library_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, *arguments = inputs
    ctx.arguments = arguments
    ctx.save_for_backward(*input)


def _library_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _gradients(ctx, grad), None, None, None


def register() -> None:
    """Registers fake kernels and autograd; called once, after the library has been loaded."""
    torch.library.register_fake("pix2pixhd::multi_pointwise", _fake_forward)
    torch.library.register_fake("pix2pixhd::multi_pointwise_backward", _fake_backward)
    torch.library.register_autograd(
        "pix2pixhd::multi_pointwise", _library_backward, setup_context=_library_setup_context
    )


def fused_pointwise_loss(inputs: list[Tensor], constants: list[float], weights: list[float], kind: Kind) -> Tensor:
    """The fused loss as float32, or float64 when any tensor is."""
    loss: Tensor
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and any(x.requires_grad for x in inputs):
        loss = _MultiPointwise.apply(constants, weights, int(kind), *inputs)
    else:
        loss = torch.ops.pix2pixhd.multi_pointwise.default(inputs, constants, weights, int(kind))
    return loss
