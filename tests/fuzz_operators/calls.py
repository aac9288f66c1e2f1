"""Calls of operators as data: every argument can be printed, copied into a test and built again."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PAGE = 4096
_ALIGNMENT = 64  # of PyTorch's allocations
_POOL = 1 << 18  # elements of the pools from which tensors are filled
LARGEST = 1 << 22  # bytes of a buffer that is built


class Unbuildable(Exception):
    """PyTorch has no tensor like this one."""


class Subclass(torch.Tensor):
    """A tensor subclass without behaviour of its own."""


class D(NamedTuple):
    """A dtype as an argument."""

    name: str


class T(NamedTuple):
    """A tensor as an argument.

    Attributes:
        dtype: Its name in torch.
        size: The size.
        stride: The strides; None for a contiguous tensor.
        values: "normal" numbers, "special" ones (NaN, Inf, zeros, subnormal and huge numbers), "bits" (arbitrary
            bytes) or "zeros".
        seed: Which of these values.
        kind: A key of ``KINDS``.
        place: Where it is in its buffer: up to its "end", from its "begin" on, in the "middle" of it, or at an address
            that is not a multiple of the element's size ("unaligned").
        shares: The number, among all tensors of the call, of one whose memory this one uses.
        shift: Elements between the beginnings of the two.
    """

    dtype: str = "float32"
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] | None = None
    values: str = "normal"
    seed: int = 0
    kind: str = "plain"
    place: str = "end"
    shares: int | None = None
    shift: int = 0

    def __repr__(self) -> str:
        defaults = self._field_defaults
        own = [f"{name}={value!r}" for name, value in self._asdict().items() if value != defaults[name]]
        return f"T({', '.join(own)})"

    @property
    def strides(self) -> tuple[int, ...]:
        return contiguous(self.size) if self.stride is None else self.stride


class Call(NamedTuple):
    """A call of an operator of the namespace."""

    operator: str
    arguments: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"Call({self.operator!r}, {self.arguments!r})"


class Built(NamedTuple):
    """The arguments of a call, and each tensor in them with its description."""

    arguments: list[Any]
    tensors: list[tuple[T, Tensor]]


def contiguous(size: Sequence[int]) -> tuple[int, ...]:
    strides, running = [], 1
    for length in reversed(size):
        strides.append(running)
        running *= max(length, 1)
    return tuple(reversed(strides))


def tensors_in(value: Any) -> Iterator[T]:
    """All descriptions of tensors in an argument, or in all of them, in order."""
    if isinstance(value, T):
        yield value
    elif isinstance(value, (list, tuple)) and not isinstance(value, D):
        for item in value:
            yield from tensors_in(item)


@functools.cache
def _pool(dtype: torch.dtype, values: str) -> Tensor:
    """The bytes of many values."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 256, (_POOL * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    if dtype is torch.bool:
        return bits & 1
    if values == "bits":
        return bits
    if values == "zeros":
        return torch.zeros_like(bits)
    if not dtype.is_floating_point and not dtype.is_complex:
        return torch.randint(-3, 4, (_POOL,), generator=generator).to(dtype).view(torch.uint8)
    numbers = torch.randn(_POOL, generator=generator)
    if values == "special":
        chosen = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42, 3e38, -6e4, 1.0])
        which = torch.randint(0, 2 * len(chosen), (_POOL,), generator=generator)
        numbers = torch.where(which < len(chosen), chosen[which % len(chosen)], numbers)
    return numbers.to(dtype).view(torch.uint8)


def _storage(span: int, spec: T, dtype: torch.dtype) -> tuple[torch.UntypedStorage, int]:
    """A filled buffer for this many elements, and the offset of the first one."""
    used = span * dtype.itemsize
    if used > LARGEST:
        raise Unbuildable
    total = {"end": -(-used // _ALIGNMENT) * _ALIGNMENT, "begin": -(-used // PAGE) * PAGE}.get(spec.place, used + 128)
    if spec.place == "unaligned" and used > 0:
        buffer = torch.frombuffer(bytearray(total + 1), dtype=torch.uint8, offset=1)
    else:
        buffer = torch.empty(total, dtype=torch.uint8)
    offset = {"end": total - used, "begin": 0}.get(spec.place, (spec.seed % 7 + 1) * dtype.itemsize)
    pool = _pool(dtype, spec.values)
    first = spec.seed * 61 % _POOL * dtype.itemsize
    pieces = [pool[first:], pool] if first + used > len(pool) else [pool[first : first + used]]
    while sum(map(len, pieces)) < used:
        pieces.append(pool)
    buffer[offset : offset + used] = torch.cat(pieces)[:used]
    return buffer.untyped_storage(), offset // dtype.itemsize


def _plain(spec: T, earlier: Sequence[Tensor]) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    if any(n < 0 for n in spec.size) or len(spec.size) != len(spec.strides):
        raise Unbuildable
    if spec.kind == "meta":
        return torch.empty_strided(spec.size, spec.strides, dtype=dtype, device="meta")
    if spec.kind in COPIES and math.prod(spec.size) * dtype.itemsize > LARGEST:
        raise Unbuildable
    span = 0 if 0 in spec.size else 1 + sum((n - 1) * s for n, s in zip(spec.size, spec.strides, strict=True))
    if span < 0:
        raise Unbuildable
    if spec.shares is None:
        storage, offset = _storage(span, spec, dtype)
    else:
        other = earlier[spec.shares] if spec.shares < len(earlier) else None
        if other is None or other.layout != torch.strided or other.device.type != "cpu" or not other.data_ptr():
            raise Unbuildable
        storage = other.untyped_storage()
        address = other.data_ptr() + spec.shift * dtype.itemsize
        offset, rest = divmod(address - storage.data_ptr(), dtype.itemsize)
        if rest or offset < 0 or (offset + span) * dtype.itemsize > storage.nbytes():
            raise Unbuildable
    return torch.empty(0, dtype=dtype).set_(storage, offset, spec.size, spec.strides)


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _resized(x: Tensor, size: int) -> Tensor:
    x.untyped_storage().resize_(size)
    return x


KINDS = {
    "plain": lambda x: x,
    "meta": lambda x: x,
    "leaf": lambda x: x.requires_grad_(),
    "computed": lambda x: x.requires_grad_().view_as(x),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
    "subclass": lambda x: x.as_subclass(Subclass),
    "negative": torch._neg_view,
    "conjugate": lambda x: x.to(torch.complex64).conj(),
    "imaginary": lambda x: torch.complex(x, x).conj().imag,
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.flatten(1).to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "zero tensor": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "inference": _inference,
    "freed": lambda x: _resized(x, 0),
    "shrunk": lambda x: _resized(x, 4),
}

COPIES = {"conjugate", "imaginary", "sparse", "csr", "mkldnn", "quantized", "nested", "jagged", "inference"}


def _build(value: Any, tensors: list[tuple[T, Tensor]]) -> Any:
    if isinstance(value, T):
        try:
            tensor = KINDS[value.kind](_plain(value, [t for _, t in tensors]))
        except (RuntimeError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise Unbuildable from error
        tensors.append((value, tensor))
        return tensor
    if isinstance(value, D):
        return getattr(torch, value.name)
    if isinstance(value, (list, tuple)):
        return [_build(item, tensors) for item in value]
    return value


def build(call: Call) -> Built:
    """Build the arguments of a call.

    Raises:
        Unbuildable: If PyTorch has no such tensor.
    """
    tensors: list[tuple[T, Tensor]] = []
    return Built([_build(value, tensors) for value in call.arguments], tensors)


def describe(value: Any, seed: int = 0) -> Any:
    """The description of an argument of a real call."""
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        stride = None if value.is_contiguous() else tuple(value.stride())
        values = "normal" if value.is_floating_point() else "bits"
        return T(name, tuple(value.shape), stride, values, seed)
    if isinstance(value, torch.dtype):
        return D(str(value).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return [describe(item, seed + k) for k, item in enumerate(value)]
    return value
