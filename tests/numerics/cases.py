"""Cases as plain data: tensors with values, layout and flags; options; the upstream gradient. And how to draw them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from . import check
from .check import place

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33]
# Sizes around the borders of the kernels' vectors, words, tiles and chunks, and around the size where threads start.
BORDERS = [63, 64, 65, 255, 256, 257, 511, 513, 1000, 4097, 32767, 32768, 32769]
LARGE = [65537, 131071, 131073, 200_003]


@dataclasses.dataclass
class Spec:
    """A tensor.

    Attributes:
        values: The values, contiguous.
        layout: See ``strides_of``.
        offset: Elements before the first one in memory.
        grad: Whether it requires a gradient.
        same_as: Name of a list; the tensor is the one with the same index in that list.
        axes: A label per dimension. Dimensions with equal labels have the same size in all tensors.
    """

    values: Tensor
    layout: tuple[Any, ...] = ("contiguous",)
    offset: int = 0
    grad: bool = False
    same_as: str | None = None
    axes: tuple[str, ...] = ()

    @property
    def strides(self) -> tuple[int, ...]:
        return strides_of(self.layout, tuple(self.values.shape))


@dataclasses.dataclass
class Case:
    """Arguments of an operator: lists of tensors, other options, and the upstream gradient."""

    tensors: dict[str, list[Spec]]
    options: dict[str, Any]
    upstream: dict[str, Any]
    threads: bool = False

    def build(self) -> dict[str, list[Tensor]]:
        built: dict[str, list[Tensor]] = {}
        for name, specs in self.tensors.items():
            built[name] = []
            for k, spec in enumerate(specs):
                if spec.same_as is not None:
                    built[name].append(built[spec.same_as][k])
                else:
                    x = place(spec.values, spec.strides, spec.offset)
                    built[name].append(x.detach().requires_grad_(spec.grad))
        return built


@dataclasses.dataclass
class Operator:
    """An operator or loss of the package, and the same in plain PyTorch.

    Attributes:
        name: Its name in reports.
        draw: Draws a case.
        ours: Called with tensors and options; returns a list of outputs.
        plain: As ``ours``, and with the original dtypes, see ``check.verify``.
        bounds: See ``check.verify``.
        sources: Functions and constants that ``ours``, ``plain`` and ``bounds`` use, for the report.
        imports: Their import statements.
        lists: Options that are lists with one entry per tensor.
        simpler: Simpler values of options, which a report prefers.
        cost: Relative time of a case.
        least: Fewest tensors per list.
    """

    name: str
    draw: Callable[[Random], Case]
    ours: Callable[..., list[Tensor]]
    plain: Callable[..., list[Tensor]]
    bounds: dict[str, Any]
    sources: tuple[Any, ...] = ()
    imports: str = ""
    lists: tuple[str, ...] = ()
    simpler: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    cost: float = 1.0
    least: int = 1

    def case(self, seed: int, index: int) -> Case:
        """The case with this index of a run with this seed."""
        return self.draw(Random(f"{self.name}/{seed}/{index}"))

    def verify(self, case: Case) -> None:
        """Raise ``check.Mismatch`` if the result differs from PyTorch's by more than the bounds."""
        tensors = case.build()
        check.verify(self.ours, self.plain, tensors, case.options, case.upstream, self.bounds, case.threads)


def contiguous(shape: tuple[int, ...]) -> list[int]:
    strides, running = [], 1
    for n in reversed(shape):
        strides.append(running)
        running *= max(n, 1)
    return strides[::-1]


def strides_of(layout: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a layout: dense in some order of the dimensions, a part of a larger tensor, or overlapping."""
    kind, *arguments = layout
    if kind == "permuted":  # the dimensions from the outermost to the innermost
        order = list(arguments[0])
        dense = contiguous(tuple(shape[d] for d in order))
        return tuple(dense[order.index(d)] for d in range(len(shape)))
    strides = contiguous(shape)
    if kind == "stepped":  # every second element
        return tuple(2 * s for s in strides)
    if kind == "cropped":
        return tuple(contiguous(tuple(n + 2 for n in shape)))
    if kind == "expanded":
        strides = contiguous(tuple(1 if d in arguments[0] else n for d, n in enumerate(shape)))
        return tuple(0 if d in arguments[0] else s for d, s in enumerate(strides))
    if kind == "overlapping":  # windows with a step of one element
        return (*strides[:-2], 1, 1) if len(shape) >= 2 else tuple(strides)
    return tuple(strides)


def draw_layout(r: Random, dims: int) -> tuple[Any, ...]:
    if dims == 0 or r.random() < 0.5:
        return ("contiguous",)
    kind = r.choice(["channels_last", "permuted", "stepped", "cropped", "expanded", "overlapping"])
    if kind == "channels_last":
        return ("permuted", (0, *range(2, dims), 1)) if dims >= 3 else ("contiguous",)
    if kind == "permuted":
        return ("permuted", tuple(r.sample(range(dims), dims)))
    if kind == "expanded":
        return ("expanded", tuple(sorted(r.sample(range(dims), r.randint(1, dims)))))
    return (kind,)


def draw_shape(r: Random, most: int = 2000) -> tuple[int, ...]:
    """0 to 5 dimensions, of sizes from 0, with at most ``most`` elements."""
    shape: list[int] = []
    for _ in range(r.choice([0, 1, 1, 2, 2, 3, 4, 4, 5])):
        n = r.choice(SIZES)
        shape.append(n if n * math.prod(shape) <= most else r.choice([1, 2]))
    if math.prod(shape) > most:
        shape = [min(n, 2) for n in shape]
    return tuple(shape)


def draw_dtype(r: Random) -> torch.dtype:
    return r.choice([torch.float32, torch.float32, *DTYPES])


# In float64, whether a sum overflows would depend on its order.
_LARGEST = 1e290


def special_numbers(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    finite = [0.0, -0.0, 1.0, -1.0, 0.5, smallest, -smallest, info.smallest_normal, info.max, -info.max]
    numbers = [*finite, 1.0 + info.eps, 1.0 - info.eps, info.max / 4, -(info.max**0.5), math.inf, -math.inf, math.nan]
    return [x for x in numbers if dtype != torch.float64 or not _LARGEST < abs(x) < math.inf]


def draw_values(r: Random, shape: tuple[int, ...], dtype: torch.dtype, *, finite: bool = False) -> Tensor:
    """Random numbers: normal, of any magnitude, small integers, subnormal, huge, constant; with special numbers."""
    generator = torch.Generator().manual_seed(r.getrandbits(40))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = r.choice(["normal", "normal", "normal", "wide", "integers", "tiny", "huge", "constant"])
    info = torch.finfo(dtype)
    if kind == "wide":
        x = x * 10.0 ** torch.empty_like(x).uniform_(-6, 4, generator=generator)
    elif kind == "integers":
        x = x.round()
    elif kind == "tiny":
        x = x * info.smallest_normal * r.choice([info.eps * 4, 1.0, 1.0 / info.eps])
    elif kind == "huge":
        most = min(info.max, _LARGEST)
        x = (x * (most / 2.0 ** r.choice([2, 6, 12]))).clamp(-most, most)
    elif kind == "constant":
        x = torch.full_like(x, r.choice([0.0, 1.0, -1.0, 0.75, 1e-3]))
    x = x.to(dtype)
    if x.numel() and r.random() < 0.25:
        numbers = [s for s in special_numbers(dtype) if math.isfinite(s) or not finite]
        for _ in range(r.choice([1, 1, 2, 5])):
            x.view(-1)[r.randrange(x.numel())] = r.choice(numbers)
    return x


def draw_spec(r: Random, shape: tuple[int, ...], dtype: torch.dtype, axes: tuple[str, ...], **options: Any) -> Spec:
    """A tensor with random values, layout and flags."""
    layout = draw_layout(r, len(shape))
    offset = r.choice([0, 0, 0, 1, 2, 3, 5])
    spec = Spec(draw_values(r, shape, dtype, **options), layout, offset, r.random() < 0.75, None, axes)
    if layout[0] in ("expanded", "overlapping"):  # elements at one place in memory are equal
        spec.values = place(spec.values, spec.strides, spec.offset).contiguous()
    return spec


def draw_target(r: Random, x: Spec, dtype: torch.dtype) -> Spec:
    """A tensor to compare with ``x``: of its shape, with ties, perhaps in its layout, perhaps ``x`` itself."""
    if dtype == x.values.dtype and r.random() < 0.04:
        return Spec(x.values, x.layout, x.offset, x.grad, "xs", x.axes)
    y = draw_spec(r, tuple(x.values.shape), dtype, x.axes)
    if r.random() < 0.6:
        y.layout = x.layout
    if r.random() < 0.5 and y.layout[0] not in ("expanded", "overlapping"):
        generator = torch.Generator().manual_seed(r.getrandbits(40))
        tied = torch.rand(x.values.shape, generator=generator) < r.choice([0.1, 0.5, 1.0])
        y.values = torch.where(tied, x.values.to(dtype), y.values)
    elif r.random() < 0.2:
        y.values = x.values.to(dtype)
    if y.layout[0] in ("expanded", "overlapping"):
        y.values = place(y.values, y.strides, y.offset).contiguous()
    y.grad = r.random() < 0.4
    return y


def draw_weight(r: Random) -> float:
    kind = r.random()
    if kind < 0.5:
        return r.choice([1.0, 0.5, 10.0, 1 / 32, -1.0, -2.0, 4 / 3])
    if kind < 0.75:
        return r.uniform(-5, 5)
    return r.choice([0.0, -0.0, 1e-40, 1e-30, -1e-20, 1e10, -1e20, 1e38, 1e-300, 1e300, math.inf, -math.inf, math.nan])


def draw_upstream(r: Random, outputs: int = 1) -> dict[str, Any]:
    """The gradient of one of the outputs."""
    value = r.choice([1.0, 1.0, 1.0, -3.0, 0.1, 65536.0, r.uniform(-10, 10)])
    if r.random() < 0.2:
        value = r.choice([0.0, 1e30, 1e-30, 1e-42, -1e38, math.nan, math.inf, -math.inf])
    special = r.sample([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42, 1e30], 2) if r.random() < 0.1 else []
    layout = r.choice(["contiguous", "contiguous", "channels_last", "expanded"])
    upstream = {"value": value, "seed": r.randrange(1000), "special": special, "layout": layout}
    return {**upstream, "output": r.randrange(outputs)}


def draw_count(r: Random) -> int:
    """The number of tensors: usually a few, at most 200."""
    return r.choice([1, 1, 2, 2, 3, 4, 5, 8, 13]) if r.random() < 0.97 else r.choice([31, 63, 64, 65, 200])


def draw_shapes(r: Random) -> tuple[list[tuple[int, ...]], bool]:
    """The shapes of a list of tensors, and whether it is large enough for several threads."""
    count = draw_count(r)
    kind = r.random()
    if kind < 0.006:
        return [(r.choice(LARGE),), *[draw_shape(r, 50) for _ in range(min(count, 3) - 1)]], True
    if kind < 0.05:
        return [(r.choice(BORDERS),) for _ in range(min(count, 2))], False
    return [draw_shape(r, 2000 if count <= 2 else 300 if count < 30 else 40) for _ in range(count)], False
