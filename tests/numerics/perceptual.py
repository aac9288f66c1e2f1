"""The elementwise operators of the perceptual loss, with their backward operators: ReLU, distances, pooling, LPIPS."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

import pix2pixhd.ops  # noqa: F401 - registers the operators

from .cases import Case, Operator, Spec, draw_dtype, draw_upstream, draw_values

IMPORTS = "import pix2pixhd.ops"
LAST = torch.channels_last


def biased(tensors, name, dtypes):
    """A feature map plus the bias, rounded to its dtype, in the float64 results too: ties depend on the rounding."""
    x = tensors[name][0]
    if not tensors["bias"]:
        return x
    y = x + tensors["bias"][0].view(1, -1, 1, 1)
    if dtypes is not None:
        y.data.copy_(y.data.to(dtypes[name][0]))
    return y


class OurReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        y = x.clone(memory_format=LAST)
        ctx.save_for_backward(torch.ops.pix2pixhd.relu_mask_(y, bias, True))
        return y

    @staticmethod
    def backward(ctx, grad):
        result = grad.clone(memory_format=LAST)
        torch.ops.pix2pixhd.relu_backward_(result, *ctx.saved_tensors)
        return result, None


def our_relu(tensors, options):
    return [OurReLU.apply(tensors["xs"][0], (tensors["bias"] or [None])[0])]


def plain_relu(tensors, options, dtypes):
    return [F.relu(biased(tensors, "xs", dtypes))]


class OurPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        y, codes = torch.ops.pix2pixhd.relu_pool(x.contiguous(memory_format=LAST), bias, True)
        ctx.size = x.shape[2:]
        ctx.save_for_backward(codes)
        return y

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous(memory_format=LAST)
        return torch.ops.pix2pixhd.relu_pool_backward(grad, *ctx.saved_tensors, *ctx.size), None


def our_pool(tensors, options):
    return [OurPool.apply(tensors["xs"][0], (tensors["bias"] or [None])[0])]


def plain_pool(tensors, options, dtypes):
    return [F.max_pool2d(F.relu(biased(tensors, "xs", dtypes)), 2)]


def gradient_of_distance(ctx, grad_loss, grad, squared, count):
    """Returns the gradient of x: from the distance, a mean over ``count`` elements, or from the feature map."""
    mask, kept, weight = ctx.saved_tensors
    if grad_loss is None:
        result = grad.clone(memory_format=LAST)
        torch.ops.pix2pixhd.relu_backward_(result, mask)
        return result
    result = torch.zeros(ctx.shape, dtype=grad_loss.dtype).contiguous(memory_format=LAST)
    coefficient = grad_loss.item() / max(count, 1)
    torch.ops.pix2pixhd.relu_distance_backward_(result, mask, kept, weight, squared, coefficient)
    return result


class OurDistance(torch.autograd.Function):
    """The sum over the images of the mean distance, and the activated feature map."""

    @staticmethod
    def forward(ctx, x, y, bias, weight, squared):
        a, b = x.clone(memory_format=LAST), y.clone(memory_format=LAST)
        loss, mask, kept = torch.ops.pix2pixhd.relu_distance_(a, b, bias, weight, squared, False, True)
        ctx.squared = squared
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, kept, weight)
        ctx.shape = x.shape
        return loss.sum().to(x.dtype), a

    @staticmethod
    def backward(ctx, grad_loss, grad):
        return gradient_of_distance(ctx, grad_loss, grad, ctx.squared, ctx.shape[1:].numel()), None, None, None, None


def our_distance(tensors, options):
    bias, weight = ((tensors[name] or [None])[0] for name in ("bias", "pixels"))
    return list(OurDistance.apply(tensors["xs"][0], tensors["ys"][0], bias, weight, options["squared"]))


def plain_distance(tensors, options, dtypes):
    a, b = F.relu(biased(tensors, "xs", dtypes)), F.relu(biased(tensors, "ys", dtypes))
    # Half precision is widened before the difference, as the perceptual loss under autocast does.
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    difference = a.to(wide) - b.to(wide)
    distance = difference.square() if options["squared"] else difference.abs()
    if tensors["pixels"]:
        distance = distance * tensors["pixels"][0].unsqueeze(1)
    return [distance.flatten(1).mean(1).sum().to(a.dtype), a]


def scales_of_distance(tensors, options, exact, dtypes):
    """Pixel weights may be negative. A squared difference is kept in the dtype of the feature map."""
    with torch.no_grad():
        a, b = F.relu(biased(tensors, "xs", dtypes)), F.relu(biased(tensors, "ys", dtypes))
        weight = tensors["pixels"][0].abs().unsqueeze(1) if tensors["pixels"] else 1.0
        difference = (a - b).abs()
        distance = (difference.square() if options["squared"] else difference) * weight
        unit = {torch.float16: 2.0**13, torch.bfloat16: 2.0**16}.get(dtypes["xs"][0], 2.0) / 2  # a second rounding
        slope = exact[1][0].abs() * unit if exact[1] and exact[1][0] is not None and options["squared"] else None
        return [distance.flatten(1).mean(1).sum(), None], [slope][: len(exact[1])]


class OurLPIPS(torch.autograd.Function):
    """The sum over the images of the mean distance between unit vectors, and the activated feature map."""

    @staticmethod
    def forward(ctx, x, y, bias, linear, weight):
        a, b = x.clone(memory_format=LAST), y.clone(memory_format=LAST)
        loss, mask, kept = torch.ops.pix2pixhd.relu_lpips_(a, b, bias, linear, weight, False, 1.0, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, kept, weight)
        ctx.shape = x.shape
        return loss.sum().to(x.dtype), a

    @staticmethod
    def backward(ctx, grad_loss, grad):
        return gradient_of_distance(ctx, grad_loss, grad, True, ctx.shape[2:].numel()), None, None, None, None


def our_lpips(tensors, options):
    bias, weight = ((tensors[name] or [None])[0] for name in ("bias", "pixels"))
    return list(OurLPIPS.apply(tensors["xs"][0], tensors["ys"][0], bias, tensors["linear"][0], weight))


def unit_vectors(x):
    """x divided by its norm over the channels, plus the lpips package's 1e-10; zero for zero vectors."""
    squares = x.square().sum(1, keepdim=True)
    positive = squares > 0
    norm = torch.where(positive, squares, 1.0).sqrt() * positive
    return x / (norm + 1e-10)


def plain_lpips(tensors, options, dtypes):
    a, b = F.relu(biased(tensors, "xs", dtypes)), F.relu(biased(tensors, "ys", dtypes))
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    difference = unit_vectors(a.to(wide)) - unit_vectors(b.to(wide))
    distance = (difference.square() * tensors["linear"][0].view(1, -1, 1, 1)).sum(1)
    if tensors["pixels"]:
        distance = distance * tensors["pixels"][0]
    return [distance.flatten(1).mean(1).sum().to(a.dtype), a]


def scales_of_lpips(tensors, options, exact, dtypes):
    """The terms of the distance and of its derivative, which cancel where the vectors are nearly parallel."""
    with torch.no_grad():
        a, b = F.relu(biased(tensors, "xs", dtypes)), F.relu(biased(tensors, "ys", dtypes))
        weight = tensors["pixels"][0].abs().unsqueeze(1) if tensors["pixels"] else 1.0
        u, v, linear = unit_vectors(a), unit_vectors(b), tensors["linear"][0].view(1, -1, 1, 1)
        value = ((u + v).square() * linear * weight).sum(1).flatten(1).mean(1).sum()
        slope = None
        if exact[2] is not None and exact[2].dim() == 0 and exact[1]:
            norm = a.square().sum(1, keepdim=True).sqrt() + 1e-10
            size = linear * (u + v)
            size = (size + (size * u).sum(1, keepdim=True) * u) / norm * weight
            unit = {torch.float16: 2.0**13, torch.bfloat16: 2.0**16}.get(dtypes["xs"][0], 4.0) / 4
            # In float16, half of the derivative of the distance is kept, perhaps as a subnormal number.
            size = size * unit + (0.05 * weight if dtypes["xs"][0] == torch.float16 else 0.0)
            slope = size * 2 * exact[2].double().abs() / max(a.shape[2] * a.shape[3], 1)
        return [value, None], [slope][: len(exact[1])]


def draw_map(r: Random, dtype: torch.dtype, shape: tuple[int, ...], *, finite: bool = False) -> Spec:
    values = draw_values(r, shape, dtype, finite=finite)
    if r.random() < 0.2 and values.numel():  # zero vectors after ReLU
        values[:, :, : r.randint(1, shape[2])] = -1.0
    return Spec(values, ("permuted", (0, 2, 3, 1)), 0, False, None, ("n", "c", "h", "w"))


def draw_case(r: Random, *, pairs: bool = False, finite: bool = False) -> Case:
    dtype = draw_dtype(r)
    shape = (
        r.choice([1, 1, 2, 3]),
        r.choice([32, 32, 64, 96]),
        r.choice([1, 2, 3, 4, 5, 8]),
        r.choice([2, 3, 4, 7, 9]),
    )
    if r.random() < 0.02:
        shape = (1, 64, 40, 31)  # several chunks
    elif r.random() < 0.02:
        shape = (0, *shape[1:])
    x = draw_map(r, dtype, shape, finite=finite)
    x.grad = True
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # of the pixel weights
    bias = [Spec(draw_values(r, shape[1:2], dtype, finite=True).clamp(-100, 100), axes=("c",))]
    tensors = {"xs": [x], "bias": bias if r.random() < 0.5 else []}
    if pairs:
        y = draw_map(r, dtype, shape, finite=finite)
        if r.random() < 0.5 and y.values.numel():
            y.values = torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(r.getrandbits(40))) < 0.5,
                                   x.values, y.values)  # fmt: skip
        weights = draw_values(r, (shape[0], *shape[2:]), wide, finite=True).clamp(-1e3, 1e3)
        weights = torch.where(weights.abs() < 1e-30, torch.zeros_like(weights), weights)  # no subnormal products
        tensors |= {"ys": [y], "pixels": [Spec(weights, axes=("n", "h", "w"))] if r.random() < 0.4 else []}
    return Case(tensors, {}, draw_upstream(r, 2 if pairs else 1), r.random() < 0.05)


def draw_pool(r: Random) -> Case:
    case = draw_case(r)
    x = case.tensors["xs"][0]
    if x.values.shape[2] < 2:  # PyTorch refuses to pool it
        x.values = torch.cat([x.values, x.values.flip(1)], 2)
    return case


def draw_distance(r: Random) -> Case:
    case = draw_case(r, pairs=True)
    case.options["squared"] = r.random() < 0.5
    return case


def draw_lpips(r: Random) -> Case:
    """Vectors of ordinary length: those of tiny ones have derivatives that overflow."""
    case = draw_case(r, pairs=True, finite=True)
    for spec in (case.tensors["xs"][0], case.tensors["ys"][0]):
        ordinary = spec.values.abs() < 100
        spec.values = torch.where(ordinary, spec.values, 1.0)
        spec.values = torch.where(spec.values.abs() < 1e-2, torch.zeros_like(spec.values), spec.values)
    for spec in case.tensors["bias"]:
        spec.values = torch.where(spec.values.abs() < 1e-2, torch.zeros_like(spec.values), spec.values.clamp(-1, 1))
    wide = torch.float64 if case.tensors["xs"][0].values.dtype == torch.float64 else torch.float32
    channels = case.tensors["xs"][0].values.shape[1]
    linear = torch.rand(channels, generator=torch.Generator().manual_seed(r.getrandbits(40))).to(wide)
    case.tensors["linear"] = [Spec(linear, axes=("c",))]
    if not math.isfinite(case.upstream["value"]) or not 1e-3 < abs(case.upstream["value"]) < 1e3:
        case.upstream["value"] = 1.0
    return case


# ReLU and pooling select numbers; the bias is added with one rounding. Sums are in double. The derivative of LPIPS has
# a few roundings, relative to its terms.
OPERATORS: list[Any] = [
    Operator("relu_mask_", draw_case, our_relu, plain_relu, {"value": 1.0, "gradient": 1.0}, (biased, OurReLU), IMPORTS,
             least=0),
    Operator("relu_pool", draw_pool, our_pool, plain_pool, {"value": 1.0, "gradient": 1.0}, (biased, OurPool), IMPORTS,
             least=0),
    Operator("relu_distance_", draw_distance, our_distance, plain_distance,
             {"value": 1.0, "gradient": 2.5, "scales": scales_of_distance}, (biased, OurDistance, scales_of_distance),
             IMPORTS, least=0),
    Operator("relu_lpips_", draw_lpips, our_lpips, plain_lpips,
             {"value": 1.0, "gradient": 8.0, "scales": scales_of_lpips},
             (biased, OurLPIPS, unit_vectors, scales_of_lpips), IMPORTS, least=0),
]  # fmt: skip
