"""What a call may do: return a correct result, or raise an error that a user understands."""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import corpus
from .calls import LARGEST, Built, Call, T, Unbuildable, build, tensors_in

ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError)
# Texts of errors that name neither an argument nor a remedy.
UNCLEAR = re.compile(
    r"INTERNAL ASSERT|[Pp]lease (report|file)|API call failed|std::|vector::|_M_|basic_string|max_size|bad optional"
    r"|bad_alloc|Could this error message be improved|index out of range|zip\(\)|values to unpack|unsupported operand"
    r"|object (has no|is not|cannot)|unhashable|division by zero|recursion|Expected Tensor but got|^\s*$"
)
# What newer versions of PyTorch append to the message of an error below the stable ABI.
ORIGIN = re.compile(r" \(originally from .*", re.DOTALL)
# PyTorch's own messages.
FOREIGN = re.compile(
    r"Expected a value of type|There were no tensor arguments to this function|Could not run 'pix2pixhd::"
)

_process = ctypes.CDLL(None)


class Guard:
    """The preloaded guard of allocations, where there is one."""

    def __init__(self) -> None:
        self.active = hasattr(_process, "pix2pixhd_guard_enabled")

    def enable(self, largest: int) -> None:
        if self.active:
            ctypes.c_size_t.in_dll(_process, "pix2pixhd_guard_largest").value = largest
            ctypes.c_int.in_dll(_process, "pix2pixhd_guard_enabled").value = 1

    def fill(self, byte: int) -> None:
        """Choose the contents of new allocations."""
        if self.active:
            ctypes.c_ubyte.in_dll(_process, "pix2pixhd_guard_fill").value = byte


guard = Guard()


class Outcome(NamedTuple):
    """Whether the operator accepted the arguments, and what is wrong with its behaviour, or None."""

    accepted: bool
    problem: str | None


def _is_memory(tensor: Tensor) -> bool:
    """Whether the tensor's elements are in a storage on the CPU."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested or tensor._is_zerotensor():
        return False
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.numel() == 0 or end <= tensor.untyped_storage().nbytes()


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether another tensor with the same values in memory is equal."""
    return _is_memory(tensor) and not tensor.is_quantized


def _bytes(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _elements(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements, in the order of their indices."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() > 0 else torch.empty(0)


def _results(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _results(item)


def _mutable(schema: Any, call: Call) -> list[bool]:
    """For each tensor of the call, whether the operator may write it."""
    flags = []
    for k, value in enumerate(call.arguments):
        info = schema.arguments[k].alias_info if k < len(schema.arguments) else None
        flags += [info is not None and info.is_write] * len(list(tensors_in(value)))
    return flags


def _message(error: BaseException) -> str | None:
    """What is wrong with an error, or None."""
    text = ORIGIN.sub("", str(error))
    if not isinstance(error, ERRORS) or isinstance(error, RecursionError):
        return f"raised {type(error).__name__}: {text}"
    if FOREIGN.search(text):
        return None
    if found := UNCLEAR.search(text):
        return f"raised an unclear {type(error).__name__} ({found[0]!r}): {text}"
    return None


def _written_wrongly(built: Built, before: list[Tensor | None], flags: list[bool]) -> str | None:
    """What is wrong with the memory of the arguments after the call, whose storages contained ``before``."""
    storages: dict[int, tuple[Tensor, Tensor, list[Tensor]]] = {}  # bytes before and after, and written tensors
    for (_, tensor), own, flag in zip(built.tensors, before, flags, strict=True):
        if own is not None:
            address = tensor.untyped_storage().data_ptr()
            written = storages.setdefault(address, (own, _bytes(tensor), []))[2]
            written += [tensor] if flag else []
    for own, after, written in storages.values():
        if torch.equal(own, after):
            continue
        if not written:
            return "modified an argument that the schema does not mark as written"
        allowed = own.clone()
        for tensor in written:
            elements = torch.empty(0, dtype=tensor.dtype).set_(
                allowed.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            elements.copy_(tensor.detach())
        if not torch.equal(allowed, after):
            return "wrote memory outside of an argument"
    return None


def _ordinary(call: Call) -> Call:
    """The same call with ordinary tensors of the same layout, each in memory of its own."""

    def ordinary(value: Any) -> Any:
        if isinstance(value, T):
            return value._replace(kind="plain", place="middle", shares=None)
        return [ordinary(item) for item in value] if isinstance(value, list) else value

    return call._replace(arguments=tuple(map(ordinary, call.arguments)))


def _meta(call: Call) -> Call:
    def meta(value: Any) -> Any:
        if isinstance(value, T):
            return value._replace(kind="meta", shares=None)
        return [meta(item) for item in value] if isinstance(value, list) else value

    return call._replace(arguments=tuple(map(meta, call.arguments)))


def _fake_disagrees(operator: Any, call: Call, results: list[Tensor]) -> str | None:
    try:
        fake = list(_results(operator(*build(_meta(call)).arguments)))
    except Unbuildable:
        return None
    except NotImplementedError:  # without a fake kernel
        return None
    except Exception as error:
        return f"the fake kernel refuses what the kernel accepts: {type(error).__name__}: {error}"
    for k, (own, real) in enumerate(zip(fake, results, strict=True)):
        if (own.shape, own.dtype) != (real.shape, real.dtype):
            return f"the fake kernel's result {k} is {own.dtype} {[*own.shape]}, not {real.dtype} {[*real.shape]}"
        if real.numel() > 1 and any(
            n > 1 and a != b for n, a, b in zip(real.shape, own.stride(), real.stride(), strict=True)
        ):
            return f"the fake kernel's result {k} has strides {own.stride()}, not {real.stride()}"
    return None


def _differentiate(results: list[Tensor], leaves: list[Tensor]) -> str | None:
    wanted = [x for x in results if x.requires_grad]
    if not wanted or not leaves:
        return None
    try:
        gradients = torch.autograd.grad([x.sum() for x in wanted], leaves, allow_unused=True)
    except Exception as error:
        return _message(error)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and gradient.shape != leaf.shape:
            return f"a gradient has shape {[*gradient.shape]} instead of {[*leaf.shape]}"
    return None


def _equal_again(operator: Any, call: Call, values: list[Tensor | None], own: list[Tensor]) -> str | None:
    """Compare results and written arguments with those of ordinary tensors, in memory with other contents."""
    again = build(_ordinary(call))
    for (_, tensor), value in zip(again.tensors, values, strict=True):
        if value is None:
            continue
        try:
            tensor.copy_(value)
        except RuntimeError:  # several elements in one place
            return None
    guard.fill(0x01)
    try:
        results = operator(*again.arguments)
    except Exception as error:
        return f"accepted, but refused with ordinary tensors of the same values: {type(error).__name__}: {error}"
    finally:
        guard.fill(0xFF)
    flags = _mutable(operator._schema, call)
    expected = [*_results(results), *(t for (_, t), flag in zip(again.tensors, flags, strict=True) if flag)]
    for k, (a, b) in enumerate(zip(own, expected, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"result {k} is {a.dtype} {[*a.shape]}, but with ordinary tensors {b.dtype} {[*b.shape]}"
        if _is_ordinary(a) and _is_ordinary(b) and not torch.equal(_elements(a), _elements(b)):
            return f"result {k} is not the same with ordinary tensors of the same values: {a} and {b}"
    return None


def _values(built: Built) -> list[Tensor | None] | None:
    """The values of the tensors that are not as described, to copy them; None if there is none or no other layout."""
    values: list[Tensor | None] = []
    for spec, tensor in built.tensors:
        if (
            tensor.numel() > LARGEST
            or not _is_ordinary(tensor)
            or tensor.shape != spec.size
            or tensor.stride() != spec.strides
        ):
            return None
        same = spec.kind in ("plain", "leaf", "parameter", "subclass") and spec.shares is None
        values.append(None if same else tensor.detach().resolve_neg().clone())
    return values


def examine(call: Call, namespace: str = "pix2pixhd") -> Outcome | None:
    """Call an operator and judge what happens; None if PyTorch has no such arguments."""
    operator = corpus.overload(namespace, call.operator)
    resized = any(t.kind in ("freed", "shrunk") for t in tensors_in(call.arguments))
    if resized and not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU"):
        return None  # written in Python: PyTorch's operators do not check this
    try:
        built = build(call)
    except Unbuildable:
        return None
    flags = _mutable(operator._schema, call)
    before = [_bytes(t).clone() if _is_memory(t) else None for _, t in built.tensors]
    values = _values(built)
    guard.fill(0xFF)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = list(_results(operator(*built.arguments)))
    except Exception as error:
        return Outcome(False, _message(error) or _written_wrongly(built, before, flags))
    problem = _written_wrongly(built, before, flags)
    if problem is None:
        leaves = [t for _, t in built.tensors if t.requires_grad and t.is_leaf]
        problem = _differentiate(results, leaves)
    if problem is None and values is not None:
        own = [*results, *(t for (_, t), flag in zip(built.tensors, flags, strict=True) if flag)]
        problem = _equal_again(operator, call, values, own) or _fake_disagrees(operator, call, results)
    return Outcome(True, problem)
