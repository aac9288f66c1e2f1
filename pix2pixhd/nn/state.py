"""Conditions under which layers run plainly instead of lean, checked on every call."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pix2pixhd.ops import backend
from pix2pixhd.ops.autograd import forward_mode_active

__all__ = ["has_global_hooks", "is_plain_image", "is_plain_tensor", "is_transformed", "is_unmodified"]


def is_plain_tensor(x: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor of no subclass (fake, distributed or quantized tensors), or a parameter."""
    return type(x) in (Tensor, nn.Parameter)


def is_plain_image(x: object) -> TypeGuard[Tensor]:
    """Whether this is a non-empty, dense ``[N, C, H, W]`` of floating-point numbers, of no subclass of ``Tensor``.

    Inference tensors are excluded: they cannot be saved for backward, but a copy of them can.
    """
    if type(x) is not Tensor or x.layout is not torch.strided or x.is_inference():
        return False
    return x.dim() == 4 and x.is_floating_point() and x.numel() > 0


def is_transformed() -> bool:
    """Whether something else than eager autograd differentiates or records the computation.

    These need PyTorch's own operations: ``torch.compile``, export, tracing, ``torch.func`` and forward-mode AD, and
    ``backend("reference")``.
    """
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch._C._is_tracing()
        or backend.is_reference()
        or forward_mode_active()
        or torch._C._are_functorch_transforms_active()
    )


def has_global_hooks() -> bool:
    """Whether hooks for all modules are registered, which expect a call of every module."""
    names = ("forward_pre", "forward", "backward_pre", "backward")
    return any(getattr(torch_module, f"_global_{name}_hooks", None) for name in names)


def is_unmodified(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what its class ``kind`` computes, and nothing observes its calls.

    It may be of a subclass that does not redefine the computation, such as the one of a parametrized layer.
    """
    cls = type(module)
    return (
        isinstance(module, kind)
        and cls.forward is kind.forward
        and cls.__call__ is nn.Module.__call__
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and module._compiled_call_impl is None
    )
