"""What the operators' Python faces share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

# An operator with autograd registered in Python costs 5 µs more a call, wanted or not. Inside an autograd Function it
# is not wanted, and this guard, which torch.library uses for the same purpose, skips it.
below_autograd: Callable[[], contextlib.AbstractContextManager[None]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def differentiated_again(*tensors: Tensor) -> bool:
    """Whether this backward is itself being recorded (``create_graph=True``) with respect to any of the tensors.

    The backward operators have no derivative of their own; in this rare case the caller writes the gradient out in
    plain PyTorch, which has.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and any(t.requires_grad for t in tensors)
