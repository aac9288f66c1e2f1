"""Python wrapper of ``multi_pointwise``: losses of many tensors against a constant (LSGAN, hinge, mean, logistic)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops import recycling
from pix2pixhd.ops.autograd import (
    LARGE,
    below_autograd,
    dense_or_contiguous,
    dtypes_of,
    requested,
    transformed,
    wider,
    zero_of,
)
from pix2pixhd.ops.reference import label_like
from pix2pixhd.ops.scalars import Number, all_constant


class Kind(enum.IntEnum):
    """The elementwise function; matches ``Pointwise`` in csrc/types.h."""

    SQUARED_ERROR = 0
    HINGE = 1
    LINEAR = 2
    LOGISTIC = 3


def _fake_forward(input: list[Tensor], constant: list[float], weight: list[float], kind: int) -> Tensor:
    return input[0].new_empty((), dtype=wider(*[tensor.dtype for tensor in input]))


def _fake_backward(
    grad: Tensor, input: list[Tensor], constant: list[float], weight: list[float], kind: int
) -> list[Tensor]:
    return [
        torch.empty_strided(
            tensor.shape,
            dense_or_contiguous(list(tensor.shape), list(tensor.stride())),
            dtype=tensor.dtype,
            device=tensor.device,
        )
        for tensor in input
    ]


def _values(x: Tensor, constant: Number, kind: int) -> Tensor:
    """Evaluate the elementwise function in plain PyTorch, in float32 or float64."""
    x_wide = x.to(wider(x.dtype))
    if kind == Kind.SQUARED_ERROR:
        return (x_wide - label_like(x, constant)) ** 2
    if kind == Kind.HINGE:
        return F.relu(1.0 - constant * x_wide)
    if kind == Kind.LOGISTIC:
        return F.binary_cross_entropy_with_logits(x_wide, label_like(x, constant).to(x_wide.dtype), reduction="none")
    return constant * x_wide


def _slopes(x: Tensor, constant: float, kind: int) -> Tensor:
    """Evaluate the derivative of the elementwise function."""
    x_wide = x.to(wider(x.dtype))
    if kind == Kind.SQUARED_ERROR:
        return 2.0 * (x_wide - label_like(x, constant))
    if kind == Kind.HINGE:
        return torch.where(1.0 - constant * x_wide <= 0, 0.0, -constant).to(x_wide.dtype) + zero_of(x_wide)
    if kind == Kind.LOGISTIC:
        return torch.sigmoid(x_wide) - label_like(x, constant)
    return torch.full_like(x_wide, constant)


def _composed_gradient(grad: Tensor, x: Tensor, constant: float, weight: float, kind: int) -> Tensor:
    """Compute the gradient with PyTorch's operations, at least in float32, because a loss scale overflows float16."""
    factor = weight / x.numel() if x.numel() > 0 else weight
    gradient = grad * (factor * _slopes(x, constant, kind))
    if kind == Kind.HINGE:  # 0 there for any upstream gradient, including NaN, as in F.relu
        gradient = torch.where(1.0 - constant * x.to(gradient.dtype) <= 0, zero_of(gradient), gradient)
    return gradient.to(x.dtype)


def _gradients(ctx: Any, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of the inputs; None where none is required."""
    saved, constant, weight, kind = ctx.arguments
    input = ctx.saved_tensors
    if not all(needs[k] for k in saved):
        positions = [i for i, k in enumerate(saved) if needs[k]]
        saved, input, constant, weight = ([values[i] for i in positions] for values in (saved, input, constant, weight))
    result: list[Tensor | None] = [None] * len(needs)
    if not saved:
        return result
    if transformed(grad):
        gradients = [_composed_gradient(grad, x, c, w, kind) for x, c, w in zip(input, constant, weight, strict=True)]
    else:
        gradients = _backward(grad, input, constant, weight, kind)
    for k, gradient in zip(saved, gradients, strict=True):
        result[k] = gradient
    return result


def _backward(
    grad: Tensor, input: Sequence[Tensor], constant: list[float], weight: list[float], kind: int
) -> list[Tensor]:
    gradients: list[Tensor]
    if not recycling.worthwhile(8 * sum(map(Tensor.numel, input)), (grad, *input)):
        gradients = torch.ops.pix2pixhd.multi_pointwise_backward.default(grad, input, constant, weight, kind)
        return gradients
    layouts = [(x.shape, dense_or_contiguous(list(x.shape), list(x.stride())), x.dtype) for x in input]
    gradients = recycling.empty(layouts, input[0].device)
    torch.ops.pix2pixhd.multi_pointwise_backward_out.default(grad, input, constant, weight, kind, gradients)
    return gradients


def _save(ctx: Any, input: Sequence[Tensor], constant: list[float], weight: list[float], kind: int) -> None:
    """Save only the tensors that require a gradient."""
    saved = [k for k, tensor in enumerate(input) if tensor.requires_grad]
    if len(saved) < len(input):
        input = [input[k] for k in saved]
        constant, weight = [constant[k] for k in saved], [weight[k] for k in saved]
    ctx.arguments = saved, constant, weight, kind
    ctx.save_for_backward(*input)


class _MultiPointwise(torch.autograd.Function):
    """The eager path; see ``multi_l1._MultiL1``."""

    @staticmethod
    def forward(ctx: Any, constant: list[float], weight: list[float], kind: int, *input: Tensor) -> Tensor:
        _save(ctx, input, constant, weight, kind)
        ctx.elements = sum(map(Tensor.numel, input))
        loss: Tensor
        with below_autograd():
            loss = torch.ops.pix2pixhd.multi_pointwise.default(input, constant, weight, kind)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        if ctx.elements >= LARGE:
            needs = requested(ctx, needs)
        return (None, None, None, *_gradients(ctx, grad, needs))


def _library_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save(ctx, *inputs)


def _library_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _gradients(ctx, grad, ctx.needs_input_grad[0]), None, None, None


def register() -> None:
    """Register fake kernels and autograd. Called once, after the library has been loaded."""
    torch.library.register_fake("pix2pixhd::multi_pointwise", _fake_forward)
    torch.library.register_fake("pix2pixhd::multi_pointwise_backward", _fake_backward)
    torch.library.register_fake("pix2pixhd::multi_pointwise_backward_out", lambda *arguments: None)
    torch.library.register_autograd(
        "pix2pixhd::multi_pointwise", _library_backward, setup_context=_library_setup_context
    )


def _composed(inputs: list[Tensor], constants: list[Number], weights: list[Number], kind: Kind) -> Tensor:
    """Compute the loss with PyTorch's operations, which accept tensors and symbolic numbers."""
    dtype = wider(*dtypes_of(inputs), *dtypes_of(weights))
    terms = [_values(x, c, kind).mean() * w for x, c, w in zip(inputs, constants, weights, strict=True)]
    return torch.stack([term.to(dtype) for term in terms]).sum()


def fused_pointwise_loss(inputs: list[Tensor], constants: list[Number], weights: list[Number], kind: Kind) -> Tensor:
    """Compute the fused loss, in float64 if any tensor is float64, else in float32."""
    recycling.check_if_due()
    if not all_constant(constants + weights):
        return _composed(inputs, constants, weights, kind)
    loss: Tensor
    operator = torch.ops.pix2pixhd.multi_pointwise.default
    if torch.compiler.is_compiling():
        loss = operator(inputs, constants, weights, int(kind))
    elif torch.is_grad_enabled() and True in [x.requires_grad for x in inputs]:
        loss = _MultiPointwise.apply(constants, weights, int(kind), *inputs)
    else:
        with below_autograd():
            loss = operator(inputs, constants, weights, int(kind))
    return loss
