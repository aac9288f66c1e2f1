"""Changes of a valid call, of the kinds by which callers get arguments wrong, and less likely ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .calls import KINDS, Call, D, T, contiguous, tensors_in

DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int8", "uint8", "int16", "int32", "int64", "bool", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "uint16", "uint32"),
)
_INTEGERS = (-1, 0, 1, 2, 3, 4, 7, 31, 32, 64, 255, 256, 1 << 15, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) + 6)
_HUGE = (1 << 40, 1 << 60, 1 << 61, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63), -(1 << 31), -2, -512, 1 << 64)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, 3e38, 7e4, float("inf"), float("-inf"), float("nan"))
_STRINGS = ("", "x", "auto", "rbt", "t" * 300, "\x00", "ä", "r\nt", "%s%n", "l1", "baseline")
_WRONG = (None, "x", 1.5, 3, True, [], [None], ["x"], [1.5], {}, object, 1j)

Rng = random.Random
Field = dict[str, Any]


def _size(rng: Rng, t: T) -> Field:
    size = list(t.size)
    choice = rng.randrange(8)
    k = rng.randrange(len(size)) if size else None
    if choice == 0 or k is None:
        size.insert(rng.randint(0, len(size)), rng.choice((0, 1, 1, 2, 32)))
    elif choice == 1:
        del size[k]
    elif choice == 2:
        size[k] = 0
    elif choice == 3:
        rng.shuffle(size)
    elif choice == 4:
        size[k] = rng.choice((1, 31, 33, 257, 5000))
    elif choice == 5 and len(size) > 1:
        size[k : k + 2] = [size[k] * size[(k + 1) % len(size)]]
    else:
        size[k] = max(size[k] + rng.choice((-2, -1, 1, 2, 32)), 0)
    return {"size": tuple(size), "stride": None}


def _permuted(rng: Rng, t: T) -> Field:
    order = list(range(len(t.size)))
    rng.shuffle(order)
    dense = contiguous([t.size[d] for d in order])
    return {"stride": tuple(dense[order.index(d)] for d in range(len(order)))}


def _layout(rng: Rng, t: T) -> Field:
    strides = list(t.strides)
    if not strides:
        return {"size": (1,), "stride": (rng.choice((0, 1, 5)),)}
    k = rng.randrange(len(strides))
    choice = rng.randrange(6)
    if choice == 0 and len(strides) == 4:
        _, c, h, w = t.size
        return {"stride": (c * h * w, 1, w * c, c)}
    if choice == 1:
        return _permuted(rng, t)
    if choice == 2:
        strides[k] = rng.choice((0, 1, 2, 3, 1 << 40, strides[k] + 1))
    elif choice == 3:
        strides = [2 * s for s in strides]
    elif choice == 4:
        strides = [0] * len(strides)
    else:
        strides[k] = 0
    return {"stride": tuple(strides)}


def _huge(rng: Rng, t: T) -> Field:
    """A tensor of few or no elements in memory, but of huge sizes."""
    size, strides = list(t.size) or [1], list(t.strides) or [1]
    for k in rng.sample(range(len(size)), rng.randint(1, len(size))):
        size[k] = rng.choice((1 << 20, 1 << 31, (1 << 31) + 32, 1 << 40, 1 << 59, (1 << 62) + 5, (1 << 63) - 1))
        strides[k] = 0
    if rng.random() < 0.5:
        size[rng.randrange(len(size))] = 0
    return {"size": tuple(size), "stride": tuple(strides)}


def _shared(rng: Rng, t: T) -> Field:
    return {"shares": rng.randrange(6), "shift": rng.choice((0, 0, 0, 1, -1, 2, 16, 32))}


_TENSOR: tuple[tuple[float, Callable[[Rng, T], Field]], ...] = (
    (3, _size),
    (3, _layout),
    (2, lambda rng, t: {"dtype": rng.choice(DTYPES[: 4 if rng.random() < 0.5 else None])}),
    (2, lambda rng, t: {"kind": rng.choice(list(KINDS))}),
    (1.5, _shared),
    (1, _huge),
    (1, lambda rng, t: {"values": rng.choice(("special", "bits", "zeros"))}),
    (1, lambda rng, t: {"place": rng.choice(("begin", "middle", "unaligned"))}),
)


def _change(rng: Rng, t: T) -> T:
    weights, changes = zip(*_TENSOR, strict=True)
    return t._replace(**rng.choices(changes, weights)[0](rng, t))


def _replace(value: Any, old: T, change: Callable[[T], T]) -> Any:
    """Apply a change to every tensor of the dtype and size of ``old``."""
    if isinstance(value, T):
        return change(value) if (value.dtype, value.size) == (old.dtype, old.size) else value
    if isinstance(value, (list, tuple)) and not isinstance(value, D):
        return [_replace(item, old, change) for item in value]
    return value


def _list(rng: Rng, items: Sequence[Any]) -> list[Any]:
    items = list(items)
    choice = rng.randrange(7)
    if not items or choice == 0:
        return [] if items else [rng.choice(_INTEGERS)]
    k = rng.randrange(len(items))
    if choice == 1:
        del items[k]
    elif choice == 2:
        items.append(items[k])
    elif choice == 3:
        rng.shuffle(items)
    elif choice == 4:
        items *= rng.choice((2, 40))
    elif choice == 5:
        items[k] = rng.choice(_WRONG)
    else:
        items = items[k:]
    return items


def _value(rng: Rng, value: Any) -> Any:
    """Another value in the place of an argument or an item."""
    if rng.random() < 0.04:
        return rng.choice(_WRONG)
    if isinstance(value, T):
        return None if rng.random() < 0.05 else _change(rng, value)
    if isinstance(value, D):
        return rng.choice((D(rng.choice(DTYPES)), None))
    if isinstance(value, (list, tuple)):
        if value and rng.random() < 0.6:
            k = rng.randrange(len(value))
            return [*value[:k], _value(rng, value[k]), *value[k + 1 :]]
        return _list(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = (value - 1, value + 1, 2 * value, -value, value + 256, value + (1 << 32))
        return rng.choice((rng.choice(near), rng.choice(_INTEGERS), rng.choice(_HUGE)))
    if isinstance(value, float):
        return rng.choice((*_FLOATS, value * 2, 1))
    if isinstance(value, str):
        k = rng.randrange(len(value) + 1)
        return rng.choice((*_STRINGS, value[:k], value[k:] + value, value[:k] + "q" + value[k + 1 :]))
    return rng.choice((T(size=(2, 3)), T(size=(32,)), T(size=(2, 32)), 0, 1.0, []))


def mutate(rng: Rng, call: Call) -> Call:
    """Change one argument, or in the same way all tensors that are like one."""
    if not call.arguments:
        return call._replace(arguments=(rng.choice(_WRONG),))
    tensors = list(tensors_in(call.arguments))
    if tensors and rng.random() < 0.3:
        old, seed = rng.choice(tensors), rng.random()
        return call._replace(
            arguments=tuple(_replace(a, old, lambda t: _change(random.Random(seed), t)) for a in call.arguments)
        )
    arguments = list(call.arguments)
    k = rng.randrange(len(arguments))
    if rng.random() < 0.01:
        del arguments[k]
    else:
        arguments[k] = _value(rng, arguments[k])
    return call._replace(arguments=tuple(arguments))


class Draft(NamedTuple):
    """A random call: a valid one, and the seeds of its changes."""

    base: Call
    changes: tuple[str, ...]

    def call(self) -> Call:
        call = self.base
        for change in self.changes:
            call = mutate(random.Random(change), call)
        return call

    def simpler(self) -> list[Draft]:
        """The same with one change less."""
        return [self._replace(changes=self.changes[:k] + self.changes[k + 1 :]) for k in range(len(self.changes))]


def draft(corpus: dict[str, list[Call]], seed: int, index: int) -> Draft:
    """The random call with this number. The operators come one after the other."""
    rng = random.Random(f"{seed}/{index}")
    names = sorted(corpus)
    base = rng.choice(corpus[names[index % len(names)]])
    count = rng.choices((0, 1, 2, 3), (1, 10, 6, 3))[0]
    return Draft(base, tuple(f"{seed}/{index}/{k}" for k in range(count)))
