"""Labels and weights: Python numbers, NumPy scalars, tensors, or symbolic numbers of ``torch.compile``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor

from pix2pixhd.ops.autograd import forward_mode_active, is_wrapped

Number: TypeAlias = float | Tensor
# One number for all tensors, or one per tensor. Any covers NumPy scalars and arrays.
Numbers: TypeAlias = float | Tensor | Sequence[float | Tensor] | Any | None

_FLOAT = {float}


def is_single(values: object) -> bool:
    """Whether this is a single number for all tensors, not a sequence with one per tensor."""
    if isinstance(values, Tensor):
        return values.dim() == 0
    return isinstance(values, (int, float)) or (hasattr(values, "__float__") and not getattr(values, "shape", ()))


def _must_stay_tensor(value: Tensor) -> bool:
    """Whether reading the value would lose a derivative, synchronize with a device or break a graph."""
    return (
        value.requires_grad
        or value.device.type != "cpu"
        or torch.compiler.is_compiling()
        or is_wrapped(value)
        or forward_mode_active()
    )


def _number(name: str, value: Any) -> Number:
    if type(value) is float or isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # type: ignore[return-value]  # float() would turn a symbol into a constant
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"{name} must hold real numbers, got a {value.dtype} tensor of shape {tuple(value.shape)}")
        # Copied, because autograd would save the caller's tensor and refuse the backward once it has been modified.
        return value.reshape(()) if _must_stay_tensor(value) else value.reshape(()).clone()
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must hold numbers, got {value!r} ({type(value).__name__})")
    return float(value)


def parse(name: str, values: Numbers, count: int, default: float | None = None) -> list[Number]:
    """Read one number per tensor; a single number is repeated.

    Args:
        name: The argument's name in error messages.
        values: A number, a 0-d tensor, or ``count`` of them (list, tuple, 1-d tensor or array); None for ``default``.
        count: The number of tensors.
        default: Value of None; if there is no default, None raises an error.

    Returns:
        Python numbers, symbolic ones under ``torch.compile``, and 0-d tensors; see ``read``.

    Raises:
        TypeError: If a value is not a number.
        ValueError: If the count differs, or a tensor does not hold exactly one real number.
    """
    if values is None and default is not None:
        return [default] * count
    if type(values) is float:
        return [values] * count
    if type(values) is list and len(values) == count and set(map(type, values)) == _FLOAT:
        return list(values)  # fast path; copied, because the caller may modify the list before backward
    if is_single(values):
        return [_number(name, values)] * count
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a number or one number per tensor, got {type(values).__name__}")
    entries = list(cast("Sequence[Any]", values))
    if len(entries) != count:
        raise ValueError(f"{name} must have one number per tensor, {count}, got {len(entries)}")
    return [_number(name, value) for value in entries]


def read(values: list[Number]) -> list[Number]:
    """Replace tensors by Python numbers where that loses no derivative and does not synchronize with a device."""
    if set(map(type, values)) == _FLOAT:
        return values
    return [float(v) if isinstance(v, Tensor) and not _must_stay_tensor(v) else v for v in values]


def read_weights(values: list[Number], tensors: Sequence[Tensor]) -> list[Number]:
    """As ``read``, for the weights of losses of these tensors.

    Weights in float64 stay tensors, unless the loss is in float64 anyway: they promote it, in range and precision.
    """
    if set(map(type, values)) == _FLOAT:
        return values
    if torch.float64 in [tensor.dtype for tensor in tensors]:
        return read(values)
    promoting = [isinstance(value, Tensor) and value.dtype == torch.float64 for value in values]
    return [v if promotes else number for v, promotes, number in zip(values, promoting, read(values), strict=True)]


def is_constant(value: Number) -> TypeGuard[float]:
    """Whether the operators can take this number, as a Python number that is constant in a compiled graph.

    A float argument of an operator becomes a constant of the graph, so every new value would recompile it.
    """
    if isinstance(value, Tensor):
        return False
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value  # imports SymPy, which takes almost a second

    return has_static_value(value)


def all_constant(values: list[Number]) -> TypeGuard[list[float]]:
    """Whether ``is_constant`` holds for all values."""
    if torch.compiler.is_compiling():
        return all(is_constant(value) for value in values)
    return set(map(type, values)) == _FLOAT  # parse leaves only floats and tensors


def flag(name: str, value: Any) -> bool:
    """Reads a flag: a bool, a NumPy bool, a CPU tensor, or the number 1 or 0.

    Raises:
        TypeError: For anything else, also for strings: ``bool("False")`` is True.
    """
    if type(value) is bool:
        return value
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise TypeError(
            f"{name} must be a bool, got a tensor on {value.device}, and reading it would wait for the device"
        )
    if not isinstance(value, (str, bytes)) and hasattr(value, "__float__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # an array or tensor of several values
            if value == 0 or value == 1:
                return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def one_number(name: str, value: Any) -> float:
    """Read a constructor's argument as a number.

    Raises:
        TypeError: If it is not a number, or is a tensor that requires a gradient, which would be lost.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires a gradient, but this argument is stored as a number; multiply the loss "
            "by the tensor instead"
        )
    if not isinstance(value, str) and hasattr(value, "__float__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # an array or tensor of several numbers
            return float(value)
    raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def numbers(name: str, values: Any) -> list[float]:
    """Read a constructor's argument as a list of numbers.

    Raises:
        TypeError: If it is not a sequence of numbers, or a number is a tensor that requires a gradient.
    """
    try:
        entries = list(values)
    except TypeError as error:  # 0-d tensors have __iter__ too
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r} ({type(values).__name__})") from error
    return [one_number(f"{name}[{k}]", entry) for k, entry in enumerate(entries)]
