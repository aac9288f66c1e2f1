"""Helpers shared by the Python wrappers of the operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Autograd that is registered in Python adds 5 µs to each call of an operator. Inside an autograd Function, and where no
# gradient is required, it is not needed; this guard, which torch.library uses for the same purpose, skips it.
below_autograd: Callable[[], contextlib.AbstractContextManager[None]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def forward_mode_active() -> bool:
    """Whether the call runs inside ``torch.autograd.forward_ad.dual_level``, so that tensors may carry tangents."""
    return forward_ad._current_level >= 0


def is_wrapped(tensor: Tensor) -> bool:
    """Whether this is a ``torch.func`` wrapper tensor or a batched gradient (``is_grads_batched=True``)."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def transformed(grad: Tensor) -> bool:
    """Whether the backward of this gradient must be composed of PyTorch's own operations.

    The backward operators have neither a derivative nor a batching rule, which ``create_graph=True``,
    ``is_grads_batched=True`` and forward-mode AD over a backward require.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or forward_mode_active() or is_wrapped(grad)


def wider(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 if any of the dtypes is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dtypes_of(values: Sequence[object]) -> list[torch.dtype]:
    """Return the dtypes of the tensors among the values."""
    return [value.dtype for value in values if isinstance(value, Tensor)]


def dense_or_contiguous(size: list[int], stride: list[int]) -> list[int]:
    """Return the strides of a gradient: those of the input if it is dense, else contiguous ones.

    This matches the C++ side, which makes a non-dense tensor contiguous.
    """
    expected = 1
    dense = True
    for step, length in sorted((s, n) for s, n in zip(stride, size, strict=True) if n != 1):
        dense = dense and step == expected
        expected *= length
    return stride if dense or 0 in size else contiguous_strides(size)


def contiguous_strides(size: list[int]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    strides, running = [], 1
    for length in reversed(size):
        strides.append(running)
        running *= max(length, 1)
    return strides[::-1]


def zero_of(tensor: Tensor) -> Tensor:
    """Return a scalar 0 that depends on the tensor with derivative 0.

    If it is added to a gradient that is constant in the tensor, a second differentiation returns zeros, as in PyTorch,
    instead of raising an error.
    """
    return tensor.unsqueeze(0)[:0].sum()  # a view for any strides


LARGE = 1 << 20  # number of elements from which `requested` costs less than writing an unrequested gradient
_MOST_ERRORS = 2  # per backward pass; each error costs about 40 µs


def requested(ctx: Any, needs: Sequence[bool]) -> Sequence[bool]:
    """Return which gradients this backward pass requests, out of the required ones.

    ``autograd.grad(loss, a)`` and ``backward(inputs=...)`` request only some of them.

    Args:
        ctx: Context of an autograd Function.
        needs: ``ctx.needs_input_grad`` of its tensor inputs.
    """
    if torch.compiler.is_compiling():
        return needs
    result, errors = list(needs), 0
    for k, (node, _) in enumerate(ctx.next_functions):
        if node is None or not result[k]:
            continue
        try:
            result[k] = torch._C._will_engine_execute_node(node)
        except RuntimeError:  # raised by PyTorch for a leaf that autograd.grad requests
            errors += 1
            if errors == _MOST_ERRORS:
                break
    return result
