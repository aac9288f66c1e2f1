"""What the operators' Python faces share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# An operator with autograd registered in Python costs 5 µs more a call, wanted or not. Inside an autograd Function it
# is not wanted, and this guard, which torch.library uses for the same purpose, skips it.
below_autograd: Callable[[], contextlib.AbstractContextManager[None]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def forward_mode_active() -> bool:
    """Whether the call runs inside ``torch.autograd.forward_ad.dual_level``: tensors may carry tangents."""
    return forward_ad._current_level >= 0


def is_wrapped(tensor: Tensor) -> bool:
    """Whether this is a tensor of ``torch.func``, or a batched gradient (``is_grads_batched=True``)."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def transformed(grad: Tensor) -> bool:
    """Whether the backward of this gradient must be composed of PyTorch's own operations.

    The backward operators have neither a derivative nor a batching rule. They are needed under ``create_graph=True``,
    ``is_grads_batched=True`` and forward-mode AD over a backward.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or forward_mode_active() or is_wrapped(grad)


def wider(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float32, or float64 when any is."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dense_or_contiguous(size: list[int], stride: list[int]) -> list[int]:
    """The strides of a gradient: those of the input when it is one dense block, else contiguous ones.

    Mirrors the C++ side, which makes a tensor that is not dense contiguous.
    """
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


def zero_of(tensor: Tensor) -> Tensor:
    """A scalar 0 that depends on the tensor with derivative 0.

    Added to a gradient that is constant in the tensor, it makes a second differentiation give zeros, as in PyTorch,
    instead of raising.
    """
    return tensor.unsqueeze(0)[:0].sum()  # a view for any strides


LARGE = 1 << 20  # elements from which `requested` costs less than writing a gradient that is not
_MOST_ERRORS = 2  # in one backward; an error costs about 40 µs


def requested(ctx: Any, needs: Sequence[bool]) -> Sequence[bool]:
    """Of which inputs this run of the backward computes gradients: required ones may not be requested.

    ``autograd.grad(loss, a)`` and ``backward(inputs=...)`` request some only.

    Args:
        ctx: The context of an autograd Function.
        needs: ``ctx.needs_input_grad`` of its inputs that are tensors.
    """
    if torch.compiler.is_compiling():
        return needs
    result, errors = list(needs), 0
    for k, (node, _) in enumerate(ctx.next_functions):
        if node is None or not result[k]:
            continue
        try:
            result[k] = torch._C._will_engine_execute_node(node)
        except RuntimeError:  # how PyTorch answers for a leaf that autograd.grad requests
            errors += 1
            if errors == _MOST_ERRORS:
                break
    return result
