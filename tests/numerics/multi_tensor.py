"""The operators on lists of tensors: multi-tensor L1, and losses against constants."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss

from .cases import Case, Operator, draw_dtype, draw_shapes, draw_spec, draw_target, draw_upstream, draw_weight

IMPORTS = "from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss"


def rounded(x, *dtypes):
    """x, rounded as every implementation rounds a difference. Autograd does not see the rounding."""
    if torch.float64 not in dtypes:
        x.data.copy_(x.data.to(torch.float32))
    return x


def total(terms, weights):
    """The weighted sum."""
    result = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        result = result + term * weight
    return result


def mean_l1(x, y, *dtypes):
    return rounded(x - y, *dtypes).abs().mean() if dtypes else F.l1_loss(x, y)


def mean_squared(x, label, *dtypes):
    if not dtypes:
        return F.mse_loss(x, torch.full_like(x, label))
    return rounded(x - torch.tensor(label, dtype=dtypes[0]).item(), *dtypes).square().mean()


def mean_hinge(x, real, *dtypes):
    margin = 1 - x if real else 1 + x
    return F.relu(rounded(margin, *dtypes) if dtypes else margin).mean()


def mean_logistic(x, label, *dtypes):
    label = torch.tensor(label, dtype=dtypes[0]).item() if dtypes else label
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, label))


def each(dtypes, *names):
    """The dtypes of the tensors of each index, for the functions above."""
    return None if dtypes is None else list(zip(*[dtypes[name] for name in names], strict=True))


def plain_l1(tensors, options, dtypes):
    pairs = list(zip(tensors["xs"], tensors["ys"], strict=True))
    kinds = each(dtypes, "xs", "ys") or [()] * len(pairs)
    terms = [mean_l1(x, y, *kind) for (x, y), kind in zip(pairs, kinds, strict=True)]
    return [total(terms, tensors.get("ws") or options["weights"])]


def our_l1(tensors, options):
    return [multi_l1_loss(tensors["xs"], tensors["ys"], tensors.get("ws") or options["weights"])]


def against(tensors, options, dtypes, term):
    kinds = each(dtypes, "xs") or [()] * len(tensors["xs"])
    labels = options["labels"]
    terms = [term(x, label, *kind) for x, label, kind in zip(tensors["xs"], labels, kinds, strict=True)]
    return [total(terms, tensors.get("ws") or options["weights"])]


def plain_lsgan(tensors, options, dtypes):
    return against(tensors, options, dtypes, mean_squared)


def our_lsgan(tensors, options):
    return [lsgan_loss(tensors["xs"], options["labels"], tensors.get("ws") or options["weights"])]


def plain_hinge(tensors, options, dtypes):
    return against(tensors, options, dtypes, mean_hinge)


def our_hinge(tensors, options):
    return [hinge_loss(tensors["xs"], options["labels"], options["weights"])]


def plain_logistic(tensors, options, dtypes):
    return against(tensors, options, dtypes, mean_logistic)


def our_logistic(tensors, options):
    return [logistic_loss(tensors["xs"], options["labels"], options["weights"])]


def plain_mean(tensors, options, dtypes):
    return [total([x.mean() for x in tensors["xs"]], options["weights"])]


def our_mean(tensors, options):
    return [mean_loss(tensors["xs"], options["weights"])]


def sizes_of_terms(terms, weights):
    """The sum of the absolute terms: rounding errors of their sum are relative to it."""
    with torch.no_grad():
        found = [term.abs() * abs(weight) for term, weight in zip(terms, weights, strict=True)]
        return torch.stack([x.double() for x in found]).sum()


def scales_of_float64(terms_of):
    """Scales for results in float64, whose terms may cancel; in float32 the sum is exact enough to need none."""

    def scales(tensors, options, exact, dtypes):
        wide = torch.float64 in [d for name in ("xs", "ys") for d in dtypes.get(name, ())]
        if not wide:
            return None
        terms = [x.detach().abs().mean() for x in terms_of(tensors, options)]
        weights = tensors.get("ws") or options["weights"]
        return [sizes_of_terms(terms, weights)], [None] * len(exact[1])

    return scales


def scales_of_logistic(tensors, options, exact, dtypes):
    """The value of each term is rounded in its own dtype. The derivative sigmoid(x) − label cancels near the label."""
    terms = [mean_logistic(x.detach(), t).abs() for x, t in zip(tensors["xs"], options["labels"], strict=True)]
    size = sizes_of_terms(terms, options["weights"])
    if torch.float64 in dtypes["xs"] and any(d != torch.float64 for d in dtypes["xs"]):
        size = size * 2.0**29  # units of float32 in a result in float64
    slopes = []
    if exact[2] is not None:
        for x, t, w in zip(tensors["xs"], options["labels"], options["weights"], strict=True):
            if x.requires_grad:
                size_of_slope = torch.sigmoid(x.detach()).clamp_min(min(abs(t), 1e300))
                slopes.append((exact[2].double() * w / max(x.numel(), 1) * size_of_slope).abs())
    return [size], slopes or [None] * len(exact[1])


def draw_pairs(r: Random) -> tuple[dict[str, list[Any]], bool]:
    shapes, threads = draw_shapes(r)
    first = draw_dtype(r)
    mixed = r.random() < 0.4
    xs, ys = [], []
    for k, shape in enumerate(shapes):
        dtype = draw_dtype(r) if mixed else first
        xs.append(draw_spec(r, shape, dtype, tuple(f"{k}/{d}" for d in range(len(shape)))))
        ys.append(draw_target(r, xs[-1], draw_dtype(r) if mixed and r.random() < 0.5 else dtype))
    return {"xs": xs, "ys": ys}, threads


def draw_weights(r: Random, count: int) -> list[float]:
    if r.random() < 0.6:  # ordinary ones, so that one unusual weight does not hide the rest of most cases
        return [r.choice([1.0, 0.5, 4 / 3, -2.0, r.uniform(-5, 5)]) for _ in range(count)]
    return [draw_weight(r) if r.random() < 0.5 else 1.0 for _ in range(count)]


def with_learned_weights(r: Random, tensors: dict[str, list[Any]]) -> None:
    """Weights that are tensors, some of which require a gradient."""
    count = len(tensors["xs"])
    dtype = r.choice([torch.float32, torch.float64])
    tensors["ws"] = [draw_spec(r, (), dtype, ()) for _ in range(count)]


def draw_l1(r: Random) -> Case:
    tensors, threads = draw_pairs(r)
    if r.random() < 0.08 and len(tensors["xs"]) < 20:
        with_learned_weights(r, tensors)
    return Case(tensors, {"weights": draw_weights(r, len(tensors["xs"]))}, draw_upstream(r), threads)


def draw_label(r: Random, dtype: torch.dtype) -> float:
    if r.random() < 0.8:
        return r.choice([0.0, 1.0, 0.9, 0.1, -1.0, r.uniform(-2, 2)])
    most = torch.finfo(dtype).max
    return r.choice([math.nan, math.inf, most, -most / 2, 1e-40, -0.0, 1 / 3, 1e4])


def draw_against(r: Random, flags: bool = False) -> Case:
    shapes, threads = draw_shapes(r)
    first, mixed = draw_dtype(r), r.random() < 0.3
    xs = []
    for k, shape in enumerate(shapes):
        dtype = draw_dtype(r) if mixed else first
        xs.append(draw_spec(r, shape, dtype, tuple(f"{k}/{d}" for d in range(len(shape)))))
    labels: list[Any] = [r.random() < 0.5 if flags else draw_label(r, x.values.dtype) for x in xs]
    options = {"labels": labels, "weights": draw_weights(r, len(xs))}
    return Case({"xs": xs}, options, draw_upstream(r), threads)


def without_infinite_factors(case: Case) -> Case:
    """The derivative of the logistic loss at large logits is 0 in PyTorch and tiny here: times Inf, NaN or Inf."""
    if abs(case.upstream["value"]) > 6e4:  # infinite in float16
        case.upstream["value"] = 6e4
    case.options["weights"] = [1e38 if math.isinf(w) or abs(w) > 1e38 else w for w in case.options.get("weights", ())]
    return case


def draw_logistic(r: Random) -> Case:
    return without_infinite_factors(draw_against(r))


def draw_flags(r: Random) -> Case:
    return draw_against(r, flags=True)


def differences(tensors, options):
    return [x - y for x, y in zip(tensors["xs"], tensors["ys"], strict=True)]


def squares(tensors, options):
    return [(x - t).square() for x, t in zip(tensors["xs"], options["labels"], strict=True)]


def hinges(tensors, options):
    return [1 + x.abs() for x in tensors["xs"]]


def elements(tensors, options):
    return tensors["xs"]


# Values are rounded once, from double. A factor or an operand that is rounded before it is multiplied adds up to one
# unit in the last place of the product: the gradient of L1 and the mean is the coefficient itself, rounded once; that
# of the hinge has its sign; that of the squared error has two such operands.
_SHARED = (rounded, total, each, sizes_of_terms, scales_of_float64)
_AGAINST = (*_SHARED, against)
L1 = Operator(
    "multi_l1_loss", draw_l1, our_l1, plain_l1,
    {"value": 1.0, "gradient": 1.0, "strides": ("xs", "fake"), "scales": scales_of_float64(differences)},
    (*_SHARED, mean_l1, differences), IMPORTS, ("weights",),
)  # fmt: skip
LSGAN = Operator(
    "lsgan_loss", draw_against, our_lsgan, plain_lsgan,
    {"value": 1.0, "gradient": 2.5, "strides": ("xs", "fake"), "scales": scales_of_float64(squares)},
    (*_AGAINST, mean_squared, squares), IMPORTS, ("weights", "labels"),
)  # fmt: skip
HINGE = Operator(
    "hinge_loss", draw_flags, our_hinge, plain_hinge,
    {"value": 1.0, "gradient": 1.0, "strides": ("xs", "fake"), "scales": scales_of_float64(hinges)},
    (*_AGAINST, mean_hinge, hinges), IMPORTS, ("weights", "labels"),
)  # fmt: skip
# The kernel's exp and log1p are accurate to 1.5 units, the derivative to 4.
LOGISTIC = Operator(
    "logistic_loss", draw_logistic, our_logistic, plain_logistic,
    {"value": 2.0, "gradient": 4.0, "strides": ("xs", "fake"), "scales": scales_of_logistic},
    (*_AGAINST, mean_logistic, scales_of_logistic), IMPORTS, ("weights", "labels"),
)  # fmt: skip
MEAN = Operator(
    "mean_loss", draw_flags, our_mean, plain_mean,
    {"value": 1.0, "gradient": 1.0, "strides": ("xs", "fake"), "scales": scales_of_float64(elements)},
    (*_SHARED, elements), IMPORTS, ("weights", "labels"),
)  # fmt: skip
OPERATORS = [L1, LSGAN, HINGE, LOGISTIC, MEAN]
