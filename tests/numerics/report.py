"""Shrinks a failing case and prints it as a test to paste."""

from __future__ import annotations

import base64
import copy
import inspect
import time
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from . import check
from .cases import Case, Operator, Spec, place
from .check import Mismatch

_FEW = 400  # elements of a tensor that are printed as numbers


def failure(operator: Operator, case: Case) -> Mismatch | None:
    """The mismatch of a case; None for none, and for a case that PyTorch refuses."""
    try:
        operator.verify(case)
    except Mismatch as mismatch:
        return mismatch
    except Exception:
        return None
    return None


def _lists(case: Case) -> dict[str, list[Spec]]:
    """The lists that lose a tensor together: those that are as long as the first one."""
    longest = max(map(len, case.tensors.values()), default=0)
    return {name: specs for name, specs in case.tensors.items() if len(specs) == longest > 1}


def _without_tensors(operator: Operator, case: Case) -> Iterator[Case]:
    lists = _lists(case)
    count = len(next(iter(lists.values()))) if lists else 0
    size = count // 2
    while size >= 1 and operator.least > 0:
        for first in range(0, count, size):
            kept = [k for k in range(count) if not first <= k < first + size]
            if len(kept) < operator.least:
                continue
            smaller = copy.copy(case)
            smaller.tensors = {n: [s[k] for k in kept] if n in lists else s for n, s in case.tensors.items()}
            smaller.options = {n: [v[k] for k in kept] if n in operator.lists else v for n, v in case.options.items()}
            yield smaller
        size //= 2


def _sliced(case: Case, axis: str, part: slice) -> Case:
    smaller = copy.copy(case)
    smaller.tensors = {}
    for name, specs in case.tensors.items():
        smaller.tensors[name] = []
        for spec in specs:
            index = tuple(part if label == axis else slice(None) for label in spec.axes)
            smaller.tensors[name].append(copy.copy(spec))
            smaller.tensors[name][-1].values = spec.values[index].contiguous() if axis in spec.axes else spec.values
    return smaller


def _with_smaller_axes(case: Case) -> Iterator[Case]:
    sizes = {}
    for specs in case.tensors.values():
        for spec in specs:
            sizes |= dict(zip(spec.axes, spec.values.shape, strict=True)) if spec.axes else {}
    for axis, size in sizes.items():
        for part in (slice(0, size // 2), slice(size // 2, size), slice(1, size), slice(0, size - 1)):
            if size > 1 and len(range(size)[part]) > 0:
                yield _sliced(case, axis, part)


def _changed(case: Case, name: str, k: int, **fields: Any) -> Case:
    simpler = copy.copy(case)
    simpler.tensors = {key: list(specs) for key, specs in case.tensors.items()}
    simpler.tensors[name][k] = copy.copy(simpler.tensors[name][k])
    for field, value in fields.items():
        setattr(simpler.tensors[name][k], field, value)
    return simpler


def _with_simpler_tensors(case: Case) -> Iterator[Case]:
    for name, specs in case.tensors.items():
        for k, spec in enumerate(specs):
            if spec.same_as is not None:
                yield _changed(case, name, k, same_as=None)
                continue
            if spec.layout != ("contiguous",):
                yield _changed(case, name, k, layout=("contiguous",))
            if spec.offset:
                yield _changed(case, name, k, offset=0)
            if spec.grad:
                yield _changed(case, name, k, grad=False)
            for value in (0.0, 1.0):
                if (spec.values != value).any():
                    yield _changed(case, name, k, values=torch.full_like(spec.values, value))


def _with_simpler_values(case: Case) -> Iterator[Case]:
    for name, specs in case.tensors.items():
        for k, spec in enumerate(specs):
            if spec.values.numel() > 32 or spec.same_as is not None:
                continue
            for i in range(spec.values.numel()):
                for value in (0.0, 1.0):
                    old = spec.values.view(-1)[i].item()
                    if old != value and not (old == 0.0 and value == 1.0):
                        values = spec.values.clone()
                        values.view(-1)[i] = value
                        if spec.layout[0] in ("expanded", "overlapping"):
                            values = place(values, spec.strides, spec.offset).contiguous()
                        yield _changed(case, name, k, values=values)


def _with_option(case: Case, name: str, value: Any) -> Case:
    simpler = copy.copy(case)
    simpler.options = {**case.options, name: value}
    return simpler


def _with_simpler_options(operator: Operator, case: Case) -> Iterator[Case]:
    for name, values in operator.simpler.items():
        for value in values:
            if name in case.options and case.options[name] != value:
                yield _with_option(case, name, value)
            elif name in case.options:
                break
    for name in operator.lists:
        for k, value in enumerate(case.options.get(name, ())):
            if value not in (0.0, 1.0):
                yield _with_option(case, name, [*case.options[name][:k], 1.0, *case.options[name][k + 1 :]])
    for field, value in (("value", 1.0), ("special", []), ("layout", "contiguous"), ("seed", 0)):
        if case.upstream[field] != value:
            simpler = copy.copy(case)
            simpler.upstream = {**case.upstream, field: value}
            yield simpler
    if case.threads:
        simpler = copy.copy(case)
        simpler.threads = False
        yield simpler


def shrink(operator: Operator, case: Case, mismatch: Mismatch, seconds: float = 20.0) -> tuple[Case, Mismatch]:
    """A simpler case with a mismatch of the same kind."""
    deadline = time.monotonic() + seconds

    def simplified() -> bool:
        nonlocal case, mismatch
        passes = (
            _without_tensors(operator, case),
            _with_smaller_axes(case),
            _with_simpler_tensors(case),
            _with_simpler_options(operator, case),
            _with_simpler_values(case),
        )
        for candidates in passes:
            for candidate in candidates:
                if time.monotonic() > deadline:
                    return False
                found = failure(operator, candidate)
                if found is not None and found.kind == mismatch.kind:
                    case, mismatch = candidate, found
                    return True
        return False

    while simplified():
        pass
    return case, mismatch


def _literal(spec: Spec) -> str:
    values = spec.values
    if values.numel() <= _FEW:
        text = f"torch.tensor({values.tolist()!r}, dtype={values.dtype})"
        text = text if values.numel() else f"{text}.view({tuple(values.shape)})"
    else:
        data = base64.b85encode(zlib.compress(values.view(torch.uint8).numpy().tobytes())).decode()
        source = f"bytearray(zlib.decompress(base64.b85decode({data!r})))"
        text = f"torch.frombuffer({source}, dtype={values.dtype}).view({tuple(values.shape)})"
    return f"place({text}, {spec.strides}, {spec.offset})" + (".requires_grad_()" if spec.grad else "")


def render(operator: Operator, case: Case, mismatch: Mismatch) -> str:
    """A test with everything that it needs."""
    module = inspect.getsource(check)
    module = module[module.index("import torch\n") :]
    functions = [operator.ours, operator.plain]
    sources = [inspect.getsource(x) for x in dict.fromkeys((*operator.sources, *functions))]
    bounds = {k: v for k, v in operator.bounds.items() if not callable(v)}
    name = "".join(c if c.isalnum() else "_" for c in operator.name.lower()).strip("_")
    lines = [f"def test_{name}_matches_pytorch():", f'    """{mismatch}"""', "    tensors = {}"]
    for key, specs in case.tensors.items():
        lines.append(f"    tensors[{key!r}] = [")
        for k, spec in enumerate(specs):
            lines.append(f"        tensors[{spec.same_as!r}][{k}]," if spec.same_as else f"        {_literal(spec)},")
        lines.append("    ]")
    lines.append(f"    bounds = {bounds!r}")
    if "scales" in operator.bounds:
        factory = operator.bounds["scales"]
        cells = inspect.getclosurevars(factory).nonlocals
        call = f"{factory.__qualname__.split('.')[0]}({', '.join(v.__name__ for v in cells.values())})"
        lines.append(f"    bounds['scales'] = {call if cells else factory.__name__}")
    names = f"{operator.ours.__name__}, {operator.plain.__name__}"
    lines.append(f"    verify({names}, tensors, {case.options!r}, {case.upstream!r}, bounds, {case.threads})")
    header = ["import base64", "import zlib", "", "import torch.nn.functional as F", operator.imports, ""]
    constants = ['nan, inf = float("nan"), float("inf")']
    return "\n".join([*header, module, *constants, "", "", "\n\n".join(sources), "", *lines, ""])


def explain(operator: Operator, case: Case, mismatch: Mismatch, origin: str) -> str:
    """The shrunk case, as a test, with its origin."""
    case, mismatch = shrink(operator, case, mismatch)
    line = "#" * 100
    return f"{line}\n# {operator.name}, {origin}\n# {mismatch}\n{line}\n{render(operator, case, mismatch)}"
