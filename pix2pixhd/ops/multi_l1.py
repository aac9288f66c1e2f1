"""Python wrapper of ``multi_l1``: fake kernels, autograd, eager fast path.

The gradient of ``weight · mean|input − target|`` is ``weight / numel · sign``. The forward therefore saves two bits per
element, the sign of ``input − target``, and neither input nor target.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pix2pixhd.ops import recycling
from pix2pixhd.ops.autograd import (
    LARGE,
    below_autograd,
    contiguous_strides,
    dense_or_contiguous,
    dtypes_of,
    requested,
    transformed,
    wider,
)
from pix2pixhd.ops.fake_arguments import check_counts, check_indices
from pix2pixhd.ops.scalars import Number, all_constant

SIGN_TILE = 256  # csrc/types.h: kSignTile
SIGN_WORDS_PER_TILE = 16

_CODES = {torch.float32: 6, torch.float64: 7, torch.float16: 5, torch.bfloat16: 15}  # c10::ScalarType
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def sign_words(numel: int) -> int:
    """Return the number of 32-bit words that hold the signs of ``numel`` elements."""
    return (numel + SIGN_TILE - 1) // SIGN_TILE * SIGN_WORDS_PER_TILE


class Layouts(NamedTuple):
    """Sizes, strides and dtypes of a list of tensors, in the flat form that the backward operator takes.

    ``strides`` is empty if all tensors are contiguous. PyTorch's dispatcher converts the numbers one by one, which for
    small tensors costs more than the gradients.
    """

    sizes: list[int]
    strides: list[int]
    ndims: list[int]
    dtypes: list[int]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], *, always_strides: bool = False) -> Layouts:
        """Read the layouts of the tensors.

        Args:
            tensors: The tensors.
            always_strides: Whether contiguous tensors have strides too. The question whether a tensor is contiguous
                would restrict the sizes of a compiled graph.
        """
        shapes = [tensor.shape for tensor in tensors]
        omit = not always_strides and False not in map(Tensor.is_contiguous, tensors)
        return cls(
            list(chain.from_iterable(shapes)),
            [] if omit else list(chain.from_iterable([tensor.stride() for tensor in tensors])),
            list(map(len, shapes)),
            [_CODES[tensor.dtype] for tensor in tensors],
        )

    def gradients(self, wanted: Sequence[int]) -> list[recycling.Layout]:
        """Return the layouts of the gradients of the tensors with indices ``wanted``."""
        result: list[recycling.Layout] = []
        begin = 0
        for k, (ndim, code) in enumerate(zip(self.ndims, self.dtypes, strict=True)):
            if k in wanted:
                size = self.sizes[begin : begin + ndim]
                stride = self.strides[begin : begin + ndim] if self.strides else contiguous_strides(size)
                result.append((size, dense_or_contiguous(size, stride), _DTYPES[code]))
            begin += ndim
        return result


def _fake_forward(
    input: list[Tensor], target: list[Tensor], weight: list[float], wanted: list[int]
) -> tuple[Tensor, Tensor]:
    check_counts("multi_l1", input=input, target=target, weight=weight)
    check_indices("multi_l1", wanted, len(input))
    loss = input[0].new_empty((), dtype=wider(*[tensor.dtype for tensor in (*input, *target)]))
    words = sum(sign_words(input[k].numel()) for k in wanted)
    return loss, input[0].new_empty(words, dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    signs: Tensor,
    weight: list[float],
    sizes: list[int],
    strides: list[int],
    ndims: list[int],
    dtypes: list[int],
    wanted: list[int],
) -> list[Tensor]:
    check_counts("multi_l1_backward", weight=weight, ndims=ndims, dtypes=dtypes)
    check_indices("multi_l1_backward", wanted, len(weight))
    if len(sizes) != sum(ndims) or len(strides) not in (0, len(sizes)) or not set(dtypes) <= set(_DTYPES):
        raise RuntimeError(
            f"pix2pixhd::multi_l1_backward: sizes and strides must have {sum(ndims)} elements, the sum of ndims, "
            f"got {len(sizes)} and {len(strides)}, and dtypes must be of {_DTYPES}, got {dtypes}"
        )
    layouts = Layouts(sizes, strides, ndims, dtypes).gradients(wanted)
    return [torch.empty_strided(size, stride, dtype=dtype, device=signs.device) for size, stride, dtype in layouts]


def _forward(
    input: Sequence[Tensor], target: Sequence[Tensor], weight: list[float], wanted: list[int]
) -> tuple[Tensor, Tensor]:
    loss: Tensor
    if not recycling.worthwhile(sum(map(Tensor.numel, input)) // 4, (*input, *target)):
        loss, signs = torch.ops.pix2pixhd.multi_l1.default(input, target, weight, wanted)
        return loss, signs
    layout = ([sum(sign_words(input[k].numel()) for k in wanted)], [1], torch.int32)
    (signs,) = recycling.empty([layout], input[0].device)
    loss = torch.ops.pix2pixhd.multi_l1_out.default(input, target, weight, wanted, signs)
    return loss, signs


def _save(
    ctx: Any,
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    weight: list[float],
    wanted: list[int],
    *,
    always_strides: bool = False,
) -> None:
    """Save the layouts of the pairs whose signs are packed, for the backward."""
    if len(wanted) < len(weight):
        input, target = [input[k] for k in wanted], [target[k] for k in wanted]
        weight = [weight[k] for k in wanted]
    input_layouts = target_layouts = Layouts.of(input, always_strides=always_strides)
    if [x.dtype for x in input] != [y.dtype for y in target]:
        # The signs are in the memory order of the input. The forward reads the target in this order, and both
        # gradients have it.
        target_layouts = input_layouts._replace(dtypes=[_CODES[y.dtype] for y in target])
    ctx.packed = wanted, weight, input_layouts, target_layouts


def _gradients(ctx: Any, grad: Tensor, signs: Tensor, needs: Sequence[bool], of_targets: bool) -> list[Tensor | None]:
    """Return the gradients of the inputs or of the targets; None where none is required."""
    result: list[Tensor | None] = [None] * len(needs)
    if True not in needs:
        return result
    packed, weight, input_layouts, target_layouts = ctx.packed
    wanted = packed if False not in needs else [i for i, k in enumerate(packed) if needs[k]]
    if of_targets:
        weight = [-w for w in weight]
    layouts = target_layouts if of_targets else input_layouts
    compute = _composed_backward if transformed(grad) else _backward
    gradients = compute(grad, signs, weight, layouts, wanted)
    if len(gradients) == len(needs):
        return list(gradients)
    for i, gradient in zip(wanted, gradients, strict=True):
        result[packed[i]] = gradient
    return result


def _backward(grad: Tensor, signs: Tensor, weight: list[float], layouts: Layouts, wanted: list[int]) -> list[Tensor]:
    arguments = grad, signs, weight, layouts.sizes, layouts.strides, layouts.ndims, layouts.dtypes, wanted
    gradients: list[Tensor]
    if not recycling.worthwhile(8 * _elements(signs), (grad, signs)):
        gradients = torch.ops.pix2pixhd.multi_l1_backward.default(*arguments)
        return gradients
    gradients = recycling.empty(layouts.gradients(wanted), signs.device)
    torch.ops.pix2pixhd.multi_l1_backward_out.default(*arguments, gradients)
    return gradients


def _composed_backward(
    grad: Tensor, signs: Tensor, weight: list[float], layouts: Layouts, wanted: list[int]
) -> list[Tensor]:
    """Compute the gradients with PyTorch's operations: linear in ``grad``, constant in inputs and targets.

    They are multiplied at least in float32: a loss scale alone overflows float16, and a coefficient alone underflows.
    """
    dtypes = [_DTYPES[code] for code in layouts.dtypes]
    promoted = layouts._replace(dtypes=[_CODES[wider(dtype)] for dtype in dtypes])
    units = _backward(torch.ones((), device=signs.device), signs, weight, promoted, wanted)
    return [(grad * unit).to(dtypes[i]) for i, unit in zip(wanted, units, strict=True)]


def _elements(signs: Tensor) -> int:
    """Return the number of elements to which these signs belong, including the padding of tiles."""
    return signs.numel() * (SIGN_TILE // SIGN_WORDS_PER_TILE)


class _MultiL1(torch.autograd.Function):
    """The eager path. The Function that ``torch.library`` generates has twice the overhead per call.

    The gradient is constant in inputs and targets, and neither is saved. A second differentiation must return zeros, as
    in PyTorch. For this, the forward also returns an empty tensor, ``anchor``, and saves it. Its sum is a 0 that
    depends on inputs and targets through this node, and is added to the gradient. If the loss itself were saved
    instead, users could not modify it in place.
    """

    @staticmethod
    def forward(ctx: Any, weight: list[float], constants: list[Tensor], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            ctx: The context.
            weight: The weights.
            constants: The targets if none requires a gradient. In a list they cost autograd no time.
            *tensors: The inputs, followed by the targets if ``constants`` is empty.

        Returns:
            The loss and the anchor.
        """
        ctx.set_materialize_grads(False)
        ctx.count = count = len(weight)
        needs = ctx.needs_input_grad[2:]
        input, target = (tensors, constants) if constants else (tensors[:count], tensors[count:])
        wanted = list(range(count))
        if False in needs[:count]:
            wanted = [k for k in wanted if True in needs[k::count]]
        with below_autograd():
            loss, signs = _forward(input, target, weight, wanted)
            anchor = loss.new_empty(0)
        _save(ctx, input, target, weight, wanted)
        ctx.save_for_backward(signs, anchor)
        return loss, anchor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        signs, anchor = ctx.saved_tensors
        if grad is None:  # only the anchor was differentiated
            grad = anchor.new_zeros(())
        needs, count = ctx.needs_input_grad[2:], ctx.count
        if _elements(signs) >= LARGE:
            needs = requested(ctx, needs)
        gradients = _gradients(ctx, grad, signs, needs[:count], of_targets=False)
        if len(needs) > count:
            gradients += _gradients(ctx, grad, signs, needs[count:], of_targets=True)
        if torch.is_grad_enabled():
            zero = anchor.sum()  # the sum of no elements
            gradients = [None if g is None else g + zero.to(g.dtype) for g in gradients]
        return (None, None, *gradients)


def _require_gradients(input: Sequence[Tensor], target: Sequence[Tensor]) -> list[int]:
    """Return the indices of the pairs of which a gradient is required."""
    return [k for k, (x, y) in enumerate(zip(input, target, strict=True)) if x.requires_grad or y.requires_grad]


def _library_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, weight, wanted = inputs
    if not set(_require_gradients(input, target)) <= set(wanted):
        raise RuntimeError("pix2pixhd.multi_l1: wanted must hold every pair of which a gradient is required")
    _save(ctx, input, target, weight, wanted, always_strides=True)
    ctx.save_for_backward(output[1])


def _library_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    (signs,) = ctx.saved_tensors
    needs_input, needs_target = ctx.needs_input_grad[:2]
    inputs = _gradients(ctx, grad, signs, needs_input, of_targets=False)
    targets = _gradients(ctx, grad, signs, needs_target, of_targets=True)
    return inputs, targets, None, None


def register() -> None:
    """Register fake kernels and autograd. Called once, after the library has been loaded."""
    torch.library.register_fake("pix2pixhd::multi_l1", _fake_forward)
    torch.library.register_fake("pix2pixhd::multi_l1_backward", _fake_backward)
    torch.library.register_fake("pix2pixhd::multi_l1_out", lambda *arguments: _fake_forward(*arguments[:4])[0])
    torch.library.register_fake("pix2pixhd::multi_l1_backward_out", lambda *arguments: None)
    torch.library.register_autograd("pix2pixhd::multi_l1", _library_backward, setup_context=_library_setup_context)


def _call(inputs: list[Tensor], targets: list[Tensor], weights: list[float]) -> Tensor:
    loss: Tensor
    if torch.compiler.is_compiling():
        wanted = _require_gradients(inputs, targets) if torch.is_grad_enabled() else []
        loss, _ = torch.ops.pix2pixhd.multi_l1.default(inputs, targets, weights, wanted)
        return loss
    if torch.is_grad_enabled():
        if True in [target.requires_grad for target in targets]:
            loss, _ = _MultiL1.apply(weights, [], *inputs, *targets)
            return loss
        if True in [input.requires_grad for input in inputs]:
            loss, _ = _MultiL1.apply(weights, targets, *inputs)
            return loss
    with below_autograd():
        loss, _ = torch.ops.pix2pixhd.multi_l1.default(inputs, targets, weights, [])
    return loss


def fused_multi_l1_loss(inputs: list[Tensor], targets: list[Tensor], weights: list[Number]) -> Tensor:
    """Compute the fused loss, in float64 if any tensor is float64, else in float32."""
    recycling.check_if_due()
    if all_constant(weights):
        return _call(inputs, targets, weights)
    # PyTorch applies weights that are tensors or symbolic numbers, with one call per pair.
    dtype = wider(*dtypes_of(inputs), *dtypes_of(targets), *dtypes_of(weights))
    terms = [w * _call([x], [y], [1.0]) for x, y, w in zip(inputs, targets, weights, strict=True)]
    return torch.stack([term.to(dtype) for term in terms]).sum()
