"""Python face of ``multi_l1``: fake kernels, autograd, the eager fast path.

The forward keeps two bits per element, the sign of ``input − target``, and neither input nor target: the gradient of
``weight · mean|input − target|`` is ``weight / numel · sign``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pix2pixhd.ops.dispatch import below_autograd, differentiated_again

SIGN_TILE = 256  # csrc/multi_tensor.h: kSignTile
SIGN_WORDS_PER_TILE = 16

_CODES = {torch.float32: 6, torch.float64: 7, torch.float16: 5, torch.bfloat16: 15}  # c10::ScalarType
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def sign_words(numel: int) -> int:
    """Number of 32-bit words that hold the signs of ``numel`` elements."""
    return (numel + SIGN_TILE - 1) // SIGN_TILE * SIGN_WORDS_PER_TILE


class Layouts:
    """Sizes, strides and types of a list of tensors, flattened as the backward operator takes them."""

    __slots__ = ("dtypes", "ndims", "sizes", "strides")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.sizes = [size for tensor in tensors for size in tensor.shape]
        self.strides = [stride for tensor in tensors for stride in tensor.stride()]
        self.ndims = [tensor.dim() for tensor in tensors]
        self.dtypes = [_CODES[tensor.dtype] for tensor in tensors]


def _dense_or_contiguous(size: list[int], stride: list[int]) -> list[int]:
    """The strides of a fresh gradient: an input's own when it is one dense block, else contiguous ones."""
    expected = 1
    dense = True
    for step, length in sorted((s, n) for s, n in zip(stride, size, strict=True) if n != 1):
        dense = dense and step == expected
        expected *= length
    if dense or 0 in size:
        return stride
    contiguous, running = [], 1
    for length in reversed(size):
        contiguous.append(running)
        running *= max(length, 1)
    return contiguous[::-1]


def _fake_forward(
    input: list[Tensor], target: list[Tensor], weight: list[float], pack_signs: bool
) -> tuple[Tensor, Tensor]:
    wide = any(tensor.dtype == torch.float64 for tensor in (*input, *target))
    loss = input[0].new_empty((), dtype=torch.float64 if wide else torch.float32)
    words = sum(sign_words(tensor.numel()) for tensor in input) if pack_signs else 0
    return loss, input[0].new_empty(words, dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    signs: Tensor,
    weight: list[float],
    sizes: list[int],
    strides: list[int],
    ndims: list[int],
    dtypes: list[int],
) -> list[Tensor]:
    gradients, begin = [], 0
    for ndim, code in zip(ndims, dtypes, strict=True):
        size, stride = sizes[begin : begin + ndim], strides[begin : begin + ndim]
        gradients.append(
            torch.empty_strided(size, _dense_or_contiguous(size, stride), dtype=_DTYPES[code], device=signs.device)
        )
        begin += ndim
    return gradients


def _save(ctx: Any, input: Sequence[Tensor], target: Sequence[Tensor], weight: list[float], signs: Tensor) -> None:
    ctx.save_for_backward(signs)
    ctx.weight = weight
    ctx.input_layouts = ctx.target_layouts = Layouts(input)
    if any(x.dtype != y.dtype for x, y in zip(input, target, strict=True)):
        ctx.target_layouts = Layouts(target)
        # The signs lie in the input's order (the forward reads the target in it), and so must this gradient.
        ctx.target_layouts.strides = ctx.input_layouts.strides


def _gradients(
    ctx: Any, grad: Tensor, needs_input: bool, needs_target: bool
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Gradients with respect to all inputs and all targets; a side that nobody asked for stays None."""
    (signs,) = ctx.saved_tensors
    nobody = [None] * len(ctx.weight)
    inputs = _backward(grad, signs, ctx.weight, ctx.input_layouts) if needs_input else nobody
    targets = _backward(grad, signs, [-w for w in ctx.weight], ctx.target_layouts) if needs_target else nobody
    return inputs, targets


def _backward(grad: Tensor, signs: Tensor, weight: list[float], layouts: Layouts) -> Sequence[Tensor]:
    def operator(upstream: Tensor) -> list[Tensor]:
        gradients: list[Tensor] = torch.ops.pix2pixhd.multi_l1_backward.default(
            upstream, signs, weight, layouts.sizes, layouts.strides, layouts.ndims, layouts.dtypes
        )
        return gradients

    if differentiated_again(grad):  # linear in grad, constant in inputs and targets
        return [grad.to(unit.dtype) * unit for unit in operator(torch.ones_like(grad))]
    return operator(grad)


class _MultiL1(torch.autograd.Function):
    """The eager path. ``torch.library``'s generated Function does the same with twice the overhead per call."""

    @staticmethod
    def forward(ctx: Any, weight: list[float], *tensors: Tensor) -> Tensor:
        input, target = tensors[: len(weight)], tensors[len(weight) :]
        with below_autograd():
            loss, signs = torch.ops.pix2pixhd.multi_l1.default(input, target, weight, True)
        _save(ctx, input, target, weight, signs)
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, count = ctx.needs_input_grad[1:], len(ctx.weight)
        inputs, targets = _gradients(ctx, grad, any(needs[:count]), any(needs[count:]))
        return (None, *inputs, *targets)


def _library_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, weight, pack_signs = inputs
    if not pack_signs:
        raise RuntimeError("pix2pixhd.multi_l1: pack_signs must be True when a gradient is wanted")
    _save(ctx, input, target, weight, output[1])


def _library_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    needs_input, needs_target = ctx.needs_input_grad[:2]
    inputs, targets = _gradients(ctx, grad, any(needs_input), any(needs_target))
    return inputs, targets, None, None


def register() -> None:
    """Registers fake kernels and autograd; called once, after the library has been loaded."""
    torch.library.register_fake("pix2pixhd::multi_l1", _fake_forward)
    torch.library.register_fake("pix2pixhd::multi_l1_backward", _fake_backward)
    torch.library.register_autograd("pix2pixhd::multi_l1", _library_backward, setup_context=_library_setup_context)


def fused_multi_l1_loss(inputs: list[Tensor], targets: list[Tensor], weights: list[float]) -> Tensor:
    """The fused loss as float32, or float64 when any tensor is."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *targets))
    loss: Tensor
    if wanted and not torch.compiler.is_compiling():
        loss = _MultiL1.apply(weights, *inputs, *targets)
    else:
        loss, _ = torch.ops.pix2pixhd.multi_l1.default(inputs, targets, weights, wanted)
    return loss
