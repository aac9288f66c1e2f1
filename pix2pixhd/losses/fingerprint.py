"""Fingerprints of network weights, used to check that precomputed features match a loss."""

from __future__ import annotations

import json
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from pix2pixhd.ops.autograd import is_wrapped

# Maps a module to the state of its tensors at the time of the fingerprint, and the fingerprint. It is not an attribute
# of the module because attributes are copied and pickled with the module.
_cache: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()


def _state(tensor: Tensor) -> tuple[Any, ...]:
    """Returns a key that changes when PyTorch records a change of the tensor. Reads no values."""
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version, tensor.dtype, tensor.device


def _summary(tensor: Tensor, factors: Tensor) -> tuple[float, float, float]:
    """Returns a projection of the values, their norm, and the rounding error of their dtype."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = values.detach().cpu().double().flatten()
    rounding = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return torch.dot(flat, factors[: len(flat)]).item(), flat.norm().item(), rounding


def fingerprint(module: nn.Module) -> str:
    """Identifies the values of a module's parameters and buffers.

    The fingerprint is computed on the CPU and cached. It is recomputed only after PyTorch has recorded a change of a
    tensor; otherwise a call reads no values and does not synchronize with a device. PyTorch does not record changes
    made through ``tensor.data`` or a NumPy view.

    Args:
        module: The network.

    Returns:
        A string for ``same_weights``. It is empty if the values cannot be read: on the meta device, in a sparse layout,
        or inside a ``torch.func`` transform.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if any(is_wrapped(tensor) or tensor.is_meta or tensor.layout != torch.strided for tensor in tensors):
        return ""
    state = [_state(tensor) for tensor in tensors]
    known = _cache.get(module)
    if known is not None and known[0] == state:
        return known[1]
    with torch.no_grad(), torch._C._DisableFuncTorch():
        longest = max((tensor.numel() * (1 + tensor.is_complex()) for tensor in tensors), default=0)
        # Pseudo-random factors in [−1, 1), so that a permutation of the values changes the projection. Integer
        # arithmetic gives the same factors in every PyTorch version.
        factors = (torch.arange(longest) * 40503 % 65521).double() / 32760.5 - 1.0
        found = json.dumps([_summary(tensor, factors) for tensor in tensors])
    _cache[module] = state, found
    return found


# Under torch.compile the fingerprint is a constant of the graph, computed during tracing. This attribute is what
# torch.compiler.assume_constant_result sets; the function is not called because it imports all of torch.compile.
fingerprint._dynamo_marked_constant = True  # type: ignore[attr-defined]


def same_weights(a: str, b: str) -> bool:
    """Returns whether two fingerprints belong to the same weights, up to rounding in the coarser dtype."""
    if a == b or not a or not b:
        return True
    ours, theirs = json.loads(a), json.loads(b)
    return len(ours) == len(theirs) and all(
        abs(x[0] - y[0]) <= 4 * max(x[2], y[2]) * max(x[1], y[1]) for x, y in zip(ours, theirs, strict=True)
    )


same_weights._dynamo_marked_constant = True  # type: ignore[attr-defined]
