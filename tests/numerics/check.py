"""The comparison of one operator with PyTorch: values, gradients, dtypes, layouts, determinism, unmodified inputs.

This module imports nothing but torch, because the report of a failing case contains its source.
"""

from __future__ import annotations

import torch

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
HALF = (torch.float16, torch.bfloat16)


class Mismatch(AssertionError):
    """A result that differs from PyTorch's; ``kind`` is what differs."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


def place(values, strides, offset=0):
    """The values in memory with these strides and this offset. What lies between them in memory is NaN."""
    if values.stride() == tuple(strides) and offset == 0:
        return values.clone()
    steps = sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    base = torch.full((offset + 1 + steps if values.numel() else offset,), float("nan"), dtype=values.dtype)
    if values.numel():
        base[torch.arange(base.numel()).as_strided(values.shape, strides, offset)] = values
    return base.as_strided(values.shape, strides, offset)


def ulp(x, dtype):
    """The distance of |x|, a float64 tensor, to the next number of this dtype; that of the largest one for Inf."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(info.smallest_normal, info.max)).exponent - 1
    return torch.ldexp(torch.full_like(x, info.eps), exponent)


def pattern(x):
    """0 for finite numbers, and one number each for NaN, Inf and −Inf."""
    return torch.where(x.isnan(), 2.0, torch.where(x.isinf(), x.sign(), 0.0))


def first_excess(found, plain, exact, dtype, ulps, scale=None):
    """The index of the first element that is worse than PyTorch's, or None. All tensors are 1-D, in float64.

    NaN and Inf must be where PyTorch has them, or where float64, rounded to the dtype, has them: the two differ if an
    intermediate result of one of them overflows or underflows. A finite result may have the error of PyTorch plus
    ``ulps`` units in the last place; in half precision, twice the error of PyTorch, or one rounding.

    Args:
        found: The results.
        plain: Those of PyTorch in the same dtype.
        exact: Those of PyTorch in float64.
        dtype: The dtype of the results.
        ulps: For float32 and float64.
        scale: The magnitude of the terms of each result, if they may cancel; rounding errors are relative to it.
    """
    rounded = exact.to(dtype).double()
    kinds = pattern(found)
    good = (kinds == pattern(plain)) | (kinds == pattern(rounded))
    size = exact.abs() if scale is None else torch.fmax(exact.abs(), scale)
    own = torch.where(plain.isfinite(), plain - exact, exact / 256).abs().nan_to_num(0.0, 0.0, 0.0)
    if dtype in HALF:  # 0.51: results are rounded from float32 and not from the exact number
        wide = (ulps + 1) * ulp(size.nan_to_num(0.0, 0.0, 0.0), torch.float32) * (scale is not None)
        allowed = torch.maximum(2 * own, 0.51 * ulp(exact.nan_to_num(0.0), dtype) + wide)
    else:
        if dtype == torch.float64:  # The results in float64 have rounding errors and overflows, too.
            good |= (found.isinf() | plain.isinf()) & (found.abs() > 1e290) & (plain.abs() > 1e290)
        allowed = own + ulps * ulp(size.nan_to_num(0.0), dtype)
    # Where an intermediate result of PyTorch overflows, and ours does: in another way, perhaps.
    good |= ~found.isfinite() & ~plain.isfinite() & (pattern(plain) != pattern(rounded))
    finite = found.isfinite() & rounded.isfinite()
    good &= ~finite | ((found - exact).abs() <= allowed)
    return None if bool(good.all()) else int((~good).nonzero()[0])


def same_bits(a, b):
    """Whether two tensors have the same shape and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


def converted(tensors, change):
    """The dictionary of lists with ``change`` applied; a tensor that occurs twice occurs twice in the result."""
    memo = {}

    def once(x):
        if id(x) not in memo:
            memo[id(x)] = change(x.detach()).requires_grad_(x.requires_grad)
        return memo[id(x)]

    return {name: [once(x) for x in entries] for name, entries in tensors.items()}


def leaves(tensors):
    """The tensors that require a gradient, with their names."""
    found = {}
    for name, entries in tensors.items():
        for k, x in enumerate(entries):
            if x.requires_grad and id(x) not in {id(other) for other in found.values()}:
                found[f"{name}[{k}]"] = x
    return found


def upstream_of(output, upstream):
    """The gradient of an output: a number, or random numbers with NaN, Inf and zeros if the output is an image."""
    value = torch.tensor(upstream["value"], dtype=torch.float64)
    if output.dim() > 0:
        noise = torch.randn(
            output.shape, generator=torch.Generator().manual_seed(upstream["seed"]), dtype=torch.float64
        )
        value = value * noise
        for k, special in enumerate(upstream["special"]):
            value.view(-1)[(k * 7919) % max(value.numel(), 1) :][:1] = special
    value = value.to(output.dtype)
    if upstream["layout"] == "expanded" and value.dim() > 1 and value.numel():
        return value[:, :1].expand(output.shape)  # strides of zero
    last = upstream["layout"] == "channels_last" and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if last else value


def evaluate(function, tensors, upstream, given=None):
    """Outputs, gradients of the leaves (None where PyTorch has none), and the upstream gradient."""
    outputs = function(tensors)
    targets = list(leaves(tensors).values())
    chosen = outputs[upstream["output"] % len(outputs)]
    if not targets or not chosen.requires_grad:
        return outputs, [None] * len(targets), None
    grad = upstream_of(chosen, upstream) if given is None else given.to(chosen.dtype)
    if grad.shape != chosen.shape:
        raise Mismatch("shape", f"an output has shape {tuple(grad.shape)}, in PyTorch {tuple(chosen.shape)}")
    return outputs, torch.autograd.grad(chosen, targets, grad, allow_unused=True), grad


def strides_of_gradient(x):
    """The strides that autograd gives the gradient of a leaf: its own if it is dense, else contiguous ones."""
    expected = 1
    for step, length in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if step != expected:
            return torch.empty(x.shape, device="meta").stride()
        expected *= length
    return x.stride()


def same_strides(x, strides):
    """Whether the strides are equal, up to those of dimensions of size 1."""
    pairs = zip(x.stride(), strides, x.shape, strict=True)
    return x.numel() == 0 or all(a == b for a, b, n in pairs if n > 1)


def check_equal_runs(ours, tensors, upstream, found, threads):
    """The same bits again, and for any number of threads."""
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 4) if threads else (before,):
            torch.set_num_threads(count)
            outputs, gradients, _ = evaluate(ours, converted(tensors, lambda x: x), upstream)
            for a, b in zip((*found[0], *found[1]), (*outputs, *gradients), strict=True):
                if (a is None) != (b is None) or (a is not None and not same_bits(a.detach(), b.detach())):
                    raise Mismatch("determinism", f"another run with {count} threads gives other bits")
    finally:
        torch.set_num_threads(before)


def check_metadata(what, found, plain):
    """Dtype and shape as in PyTorch."""
    for name in ("dtype", "shape"):
        a, b = getattr(found, name), getattr(plain, name)
        if a != b:
            raise Mismatch(name, f"{what} has {name} {a}, in PyTorch {b}")


def check_numbers(kind, rows, ulps):
    """``first_excess`` of many tensors at once; rows of (name, found, plain, exact, scale or None).

    In float64, a sum may have the error of 2048 consecutive additions, and so may that of PyTorch.
    """
    for dtype in {row[1].dtype for row in rows}:
        group = [row for row in rows if row[1].dtype == dtype]
        columns = [torch.cat([row[k].detach().double().reshape(-1) for row in group]) for k in (1, 2, 3)]
        scale = None
        if any(row[4] is not None for row in group):
            wide = [(row[3].abs() if row[4] is None else row[4]).double().expand(row[1].shape) for row in group]
            scale = torch.cat([x.reshape(-1) for x in wide])
        more = (2048 if kind == "value" else 8) if dtype == torch.float64 else 1
        at = first_excess(*columns, dtype, more * ulps, scale)
        if at is None:
            continue
        numbers = [column[at].item() for column in columns]
        for name, found, *_ in group:
            if at < found.numel():
                text = f"{name}, element {at} of {found.numel()}, {dtype}: found %r, PyTorch %r, float64 %r"
                raise Mismatch(kind, text % tuple(numbers))
            at -= found.numel()


def check_norms(kind, rows, ulps):
    """Compare the largest error of each tensor with twice PyTorch's, plus ``ulps`` units of the largest number.

    For results of convolutions. A ReLU or |x - y| near zero may have another derivative in float64; a gradient that
    equals PyTorch's in the same dtype is therefore right, too.
    """
    for name, *columns, _ in rows:
        found, plain, exact = (x.detach().double() for x in columns)
        good = (pattern(found) == pattern(plain)) | (pattern(found) == pattern(exact.to(columns[0].dtype).double()))
        if not bool(good.all()):
            at = tuple((~good).nonzero()[0].tolist())
            raise Mismatch(kind, f"{name} at {at}: found {found[at]}, PyTorch {plain[at]}, float64 {exact[at]}")
        finite = found.isfinite() & plain.isfinite() & exact.isfinite()
        if not bool(finite.any()):
            continue
        found, plain, exact = found[finite], plain[finite], exact[finite]
        more = 8 if columns[0].dtype == torch.float64 else 1
        largest = exact.abs().max().clamp_min(1.0 if kind == "value" else 0.0)  # of 1 - cosine, the terms are 1
        slack = more * ulps * ulp(largest, columns[0].dtype)
        error, own, distance = ((a - b).abs().max() for a, b in ((found, exact), (plain, exact), (found, plain)))
        if error > 2 * own + slack and distance > slack:
            raise Mismatch(kind, f"{name}: error {error:g}, PyTorch's {own:g}, largest number {exact.abs().max():g}")


def verify(ours, plain, tensors, options, upstream, bounds, threads=False):
    """Compare ``ours(tensors, options)`` with ``plain(tensors, options, dtypes)``, which both return a list of outputs.

    Args:
        ours: The operator.
        plain: The same in PyTorch's operations. ``dtypes`` is None; for the results in float64 it holds the dtypes of
            the original tensors, in which labels, for example, are rounded.
        tensors: A dictionary of lists of tensors.
        options: The other arguments.
        upstream: The gradient of the result, see ``upstream_of``.
        bounds: ``value`` and ``gradient``: units in the last place. ``scales``: a function that returns the magnitudes
            of the outputs and of the gradients, as lists with None for that of the result itself. ``strides``: the
            lists whose gradients have the strides that autograd prefers, or those of PyTorch's. ``total``: whether the
            last output is the sum of the others. ``norm``: see ``check_norms``.
        threads: Whether to compare the results of 1, 2, 3 and 4 threads.
    """
    given = converted(tensors, lambda x: x)
    before = {id(x): x.detach().clone() for entries in tensors.values() for x in entries}
    try:
        found = evaluate(lambda t: ours(t, options), given, upstream)
        check_equal_runs(lambda t: ours(t, options), tensors, upstream, found, threads)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise Mismatch("error", f"{type(error).__name__}: {error}") from error
    for entries in tensors.values():
        for x in entries:
            if not same_bits(x.detach(), before[id(x)]):
                raise Mismatch("modified", "an input was modified")

    dtypes = {name: [x.dtype for x in entries] for name, entries in tensors.items()}
    native = evaluate(lambda t: plain(t, options, None), converted(tensors, lambda x: x), upstream, found[2])
    double = converted(tensors, torch.Tensor.double)
    exact = evaluate(lambda t: plain(t, options, dtypes), double, upstream, found[2])
    scales = bounds["scales"](double, options, exact, dtypes) if bounds.get("scales") else None

    rows = []
    for k, (a, b, c) in enumerate(zip(found[0], native[0], exact[0], strict=True)):
        check_metadata(f"output {k}", a, b)
        if a.requires_grad != b.requires_grad:
            raise Mismatch("requires_grad", f"output {k} has requires_grad={a.requires_grad}")
        rows.append((f"output {k}", a, b, c, scales and scales[0][k]))
    if bounds.get("total"):
        *terms, total = found[0]
        if not torch.equal(sum(terms[1:], terms[0]).nan_to_num(3.0), total.nan_to_num(3.0)):
            raise Mismatch("total", f"{total.item()!r} is not the sum of the terms {terms}")
        rows.pop()  # the terms are rounded to their own dtypes
    compare = check_norms if bounds.get("norm") else check_numbers
    compare("value", rows, bounds["value"])
    rows = []
    for k, (name, leaf) in enumerate(leaves(tensors).items()):
        a, b, c = found[1][k], native[1][k], exact[1][k]
        if (a is None) != (b is None):
            raise Mismatch("gradient", f"{name} has {'no' if a is None else 'a'} gradient, unlike in PyTorch")
        if a is None:
            continue
        check_metadata(f"the gradient of {name}", a, b)
        usual = same_strides(a, strides_of_gradient(leaf)) or same_strides(a, b.stride())
        if name.split("[")[0] in bounds.get("strides", ()) and not usual:
            raise Mismatch("strides", f"the gradient of {name} has strides {a.stride()}, the tensor {leaf.stride()}")
        rows.append((name, a, b, c, scales[1][k] if scales and scales[1] else None))
    if not (scales and scales[1] == []):
        compare("gradient", rows, bounds["gradient"])
