"""Normalisation, activation and padding: the layer, and the operators below it."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from pix2pixhd.nn import InstanceNormAct2d
from pix2pixhd.ops.norm_act import norm_act, norm_act_backward, norm_statistics

from .cases import Case, Operator, Spec, draw_dtype, draw_spec, draw_upstream, place

IMPORTS = """from pix2pixhd.nn import InstanceNormAct2d
from pix2pixhd.ops.norm_act import norm_act, norm_act_backward, norm_statistics"""
MODES = ["zeros", "reflect", "replicate"]


def activated(z, options):
    if options["activation"] == "relu":
        return F.relu(z)
    return F.leaky_relu(z, options["slope"]) if options["activation"] == "leaky_relu" else z


def padded(y, options):
    mode = options["mode"]
    return F.pad(y, options["padding"], "constant" if mode == "zeros" else mode) if any(options["padding"]) else y


def our_layer(tensors, options):
    x = tensors["xs"][0]
    layer = InstanceNormAct2d(
        x.shape[1], options["eps"], False, options["activation"], options["slope"], options["padding"], options["mode"]
    )
    if tensors["ps"]:
        layer.affine = True
        del layer.weight, layer.bias
        layer.weight, layer.bias = tensors["ps"]
    return [layer(x)]


def normalised(x, weight, bias, per_image, eps, dtypes=None):
    """Normalisation with the biased variance, as instance_norm and batch_norm compute it; in float64 explicitly."""
    if dtypes is None:
        if per_image:
            return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
        return F.batch_norm(x, None, None, weight, bias, True, eps=eps)
    dims = (2, 3) if per_image else (0, 2, 3)
    centred = x - x.mean(dims, keepdim=True)
    z = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    z = z if weight is None else z * weight[:, None, None]
    return z if bias is None else z + bias[:, None, None]


def plain_layer(tensors, options, dtypes):
    weight, bias = tensors["ps"] or (None, None)
    return [
        padded(activated(normalised(tensors["xs"][0], weight, bias, True, options["eps"], dtypes), options), options)
    ]


class OurNormAct(torch.autograd.Function):
    """The operators with gradients of all their tensors."""

    @staticmethod
    def forward(ctx, options, x, weight, bias, residual):
        mean, rstd, _ = norm_statistics(x, options["per_image"], options["eps"])
        activation = [None, "relu", "leaky_relu"].index(options["activation"])
        mode = ["zeros", "reflect", "replicate"].index(options["mode"])
        ctx.rest = activation, options["slope"], options["padding"], mode
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return norm_act(x, mean, rstd, weight, bias, residual, *ctx.rest)

    @staticmethod
    def backward(ctx, grad):
        x, mean, rstd, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        found = norm_act_backward(
            grad, x, False, mean, rstd, weight, bias, *ctx.rest, True, needs[1], needs[2] or needs[3], needs[4]
        )
        return None, *[g if need else None for g, need in zip(found, needs[1:], strict=True)]


def our_operators(tensors, options):
    weight, bias = tensors["ps"] or (None, None)
    return [OurNormAct.apply(options, tensors["xs"][0], weight, bias, (tensors["rs"] or [None])[0])]


def plain_operators(tensors, options, dtypes):
    weight, bias = tensors["ps"] or (None, None)
    y = activated(normalised(tensors["xs"][0], weight, bias, options["per_image"], options["eps"], dtypes), options)
    return [padded(y + tensors["rs"][0] if tensors["rs"] else y, options)]


def scales_of_normalised(tensors, options, exact, dtypes):
    """The magnitudes of the terms of (x - mean) * rstd * weight + bias, and of its gradient.

    The gradient is rstd * weight * (g - mean(g) - x_hat * mean(g * x_hat)): all of it is relative to the largest g and
    x_hat of a channel. Where the sign of an activation's argument depends on rounding, gradients are not compared.
    """
    with torch.no_grad():
        x = tensors["xs"][0]
        weight, bias = tensors["ps"] or (None, None)
        dims = (2, 3) if options.get("per_image", True) else (0, 2, 3)
        mean = x.mean(dims, keepdim=True)
        centred = x - mean
        rstd = (centred.square().mean(dims, keepdim=True) + options["eps"]).rsqrt()
        w = 1.0 if weight is None else weight.abs()[:, None, None]
        shift = 0.0 if bias is None else bias.abs()[:, None, None]
        size = (x.abs() + mean.abs()) * rstd * w + shift
        size = size.amax(dims, keepdim=True) if x.numel() else size
        whole = size.expand(x.shape)
        if tensors.get("rs"):
            whole = whole + tensors["rs"][0].abs()
        values = [padded(whole, options)]
        z = normalised(x, weight, bias, options.get("per_image", True), options["eps"], dtypes)
        unit = 2.0**-16 if torch.float64 not in dtypes["xs"] else 2.0**-40
        if options["activation"] is not None and bool((z.abs() <= unit * size).any()):
            return values, []
        if exact[2] is None or not x.numel():
            return values, [None] * len(exact[1])
        # Each pixel is the source of at most 16 copies.
        g = exact[2].double().abs().nan_to_num(0.0, 0.0, 0.0).amax() * 16.0
        x_hat = (centred.abs() * rstd).nan_to_num(0.0, 0.0, 0.0).amax(dims, keepdim=True)
        noise = (x.abs() + mean.abs()).nan_to_num(0.0, 0.0, 0.0).amax(dims, keepdim=True) * rstd
        largest = {
            "xs": (g * rstd * w * (1.0 + (x_hat + noise) * (1.0 + x_hat))).expand(x.shape),
            "ps0": (g * (1.0 + x_hat + noise) * x.numel() / x.shape[1]).expand(x.shape[0], -1, 1, 1).amax((0, 2, 3)),
            "ps1": g * x.numel() / x.shape[1],
            "rs": g,
        }
        # Leaky ReLU without parameters and padding keeps its output, in its dtype, and recovers x_hat from it.
        keeps_output = options["activation"] == "leaky_relu" and not tensors["ps"] and not any(options["padding"])
        if keeps_output and "rs" not in tensors:
            unit = {torch.float16: 2.0**13, torch.bfloat16: 2.0**16}.get(dtypes["xs"][0], 8.0) / 8
            largest["xs"] = largest["xs"] * unit
        slopes = []
        for name, entries in tensors.items():
            for k, entry in enumerate(entries):
                if entry.requires_grad:
                    slopes.append(torch.as_tensor(largest[f"ps{k}" if name == "ps" else name]))
        return values, slopes


def draw_images(r: Random) -> tuple[Spec, torch.dtype]:
    dtype = draw_dtype(r)
    n, c = r.choice([1, 1, 1, 2, 3]), r.choice([1, 2, 3, 5, 8, 16, 17, 33, 64, 65])
    h, w = r.choice([1, 2, 3, 4, 5, 7, 8, 16]), r.choice([2, 3, 4, 5, 8, 9, 17])
    if r.random() < 0.02:
        n, c, h, w = 1, r.choice([1, 3]), 300, 500  # several chunks and threads
    x = draw_spec(r, (n, c, h, w), dtype, ("n", "c", "h", "w"))
    if x.layout[0] == "permuted" or r.random() < 0.3:
        x.layout = r.choice([("contiguous",), ("permuted", (0, 2, 3, 1)), x.layout])
    x.grad = r.random() < 0.9
    offset = r.choice([0.0, 0.0, 0.0, 1.0, 100.0])
    x.values = (x.values.double() + offset).to(dtype)
    # Close to the largest number, differences from the mean and their products with the gradient overflow.
    most = torch.finfo(dtype).max / (4096 if dtype != torch.float16 else 64)
    x.values = torch.where(x.values.isfinite(), x.values.clamp(-most, most), x.values)
    if x.layout[0] in ("expanded", "overlapping"):
        x.values = place(x.values, x.strides, x.offset).contiguous()
    return x, dtype


def draw_options(r: Random, x: Spec) -> dict[str, Any]:
    h, w = x.values.shape[2:]
    mode = r.choice(MODES)
    limits = (w - 1, w - 1, h - 1, h - 1) if mode == "reflect" else (3, 3, 3, 3)
    padding = tuple(r.randint(0, min(3, limit)) for limit in limits) if r.random() < 0.6 else (0, 0, 0, 0)
    return {
        "eps": r.choice([1e-5, 1e-5, 1e-3]),
        "activation": r.choice(["relu", "leaky_relu", None]),
        "slope": r.choice([0.2, 0.01]),
        "padding": padding,
        "mode": mode,
        "per_image": True,
    }


def draw_parameters(r: Random, x: Spec, dtype: torch.dtype) -> list[Spec]:
    """Weights and biases; weights are not tiny, so that z is not dominated by rounding."""
    channels = x.values.shape[1]
    parameters = []
    for _ in range(2):
        values = torch.tensor([r.choice([1.0, -1.0]) * r.uniform(0.3, 2.0) for _ in range(channels)])
        parameters.append(Spec(values.to(dtype), ("contiguous",), r.choice([0, 1, 3]), r.random() < 0.8, None, ("c",)))
    return parameters


def upstream_for(r: Random, x: Spec) -> dict[str, Any]:
    """An upstream gradient whose products with the images do not overflow."""
    upstream = draw_upstream(r)
    if x.values.numel() and x.values.double().nan_to_num(0.0, 0.0, 0.0).abs().max() > 1e15:
        return {**upstream, "value": 1.0, "special": []}
    upstream["special"] = [x for x in upstream["special"] if not math.isinf(x)]  # Inf - Inf depends on the order
    if x.values.dtype == torch.float16 and 1e4 < abs(upstream["value"]) < math.inf:
        upstream["value"] = 1e4
    if 1e30 < abs(upstream["value"]) < math.inf:
        upstream["value"] = 1e30
    return upstream


def draw_layer(r: Random) -> Case:
    x, dtype = draw_images(r)
    tensors = {"xs": [x], "ps": draw_parameters(r, x, dtype) if r.random() < 0.4 else []}
    return Case(tensors, draw_options(r, x), upstream_for(r, x), r.random() < 0.05)


def draw_operators(r: Random) -> Case:
    x, dtype = draw_images(r)
    residual = draw_spec(r, tuple(x.values.shape), dtype, x.axes)
    tensors = {"xs": [x], "ps": draw_parameters(r, x, dtype) if r.random() < 0.5 else [],
               "rs": [residual] if r.random() < 0.4 else []}  # fmt: skip
    options = draw_options(r, x)
    options["per_image"] = r.random() < 0.6
    return Case(tensors, options, upstream_for(r, x), r.random() < 0.05)


# The statistics are rounded once. Results and gradients have a few roundings, each relative to its scale.
_BOUNDS = {"value": 8.0, "gradient": 8.0, "scales": scales_of_normalised}
_SOURCES = (activated, padded, normalised, scales_of_normalised)
_SIMPLER: dict[str, list[Any]] = {"padding": [(0, 0, 0, 0)], "mode": ["zeros"], "activation": [None, "relu"],
                                  "eps": [1e-5], "per_image": [True]}  # fmt: skip
LAYER = Operator("InstanceNormAct2d", draw_layer, our_layer, plain_layer, _BOUNDS, _SOURCES, IMPORTS, simpler=_SIMPLER,
                 least=0)  # fmt: skip
OPERATORS = [
    LAYER,
    Operator("norm_act", draw_operators, our_operators, plain_operators, _BOUNDS, (*_SOURCES, OurNormAct), IMPORTS,
             simpler=_SIMPLER, least=0),
]  # fmt: skip
