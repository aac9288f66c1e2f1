"""The public losses that consist of operators on lists of tensors."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from pix2pixhd.functional import feature_matching_loss, l1_loss
from pix2pixhd.losses import DiscriminatorLoss, FeatureMatchingLoss, GANLoss, GeneratorLoss, L1Loss
from pix2pixhd.losses.presets import PRESETS

from .cases import Case, Operator, Spec, draw_dtype, draw_spec, draw_target, draw_upstream
from .check import leaves
from .multi_tensor import (
    each,
    mean_hinge,
    mean_l1,
    mean_logistic,
    mean_squared,
    rounded,
    total,
    without_infinite_factors,
)

IMPORTS = """from pix2pixhd.functional import feature_matching_loss, l1_loss
from pix2pixhd.losses import DiscriminatorLoss, FeatureMatchingLoss, GANLoss, GeneratorLoss, L1Loss"""
_TERMS = (rounded, total, each, mean_l1, mean_squared, mean_hinge, mean_logistic)


def scales_of(layers, count):
    """Split a flat list into ``count`` scales of nearly equal length, the first ones longer."""
    size, more = divmod(len(layers), count)
    starts = [k * size + min(k, more) for k in range(count + 1)]
    return [layers[starts[k] : starts[k + 1]] for k in range(count)]


def predictions(layers, options):
    """A discriminator's output in one of the accepted structures."""
    scales = scales_of(layers, options["scales"])
    if options["structure"] == "tuples":
        return tuple(tuple(scale) for scale in scales)
    if options["structure"] == "flat" and len(scales) == 1:
        return scales[0]
    return scales


def last_of(name, tensors, options, dtypes):
    """The predictions of all scales, and the dtypes for the terms."""
    preds = [scale[-1] for scale in scales_of(tensors[name], options["scales"])]
    kinds = each(dtypes, name)
    if kinds is None:
        return preds, [()] * len(preds)
    return preds, [scale[-1] for scale in scales_of(kinds, options["scales"])]


def adversarial(preds, kinds, options, real, for_discriminator, factor):
    """GANLoss as its documentation defines it, times a factor, one term and weight per scale."""
    mode = options["mode"]
    label = options["real_label"] if real else options["fake_label"]
    if mode == "lsgan":
        terms = [mean_squared(x, label, *kind) for x, kind in zip(preds, kinds, strict=True)]
    elif mode == "vanilla":
        terms = [mean_logistic(x, label, *kind) for x, kind in zip(preds, kinds, strict=True)]
    elif mode == "hinge" and for_discriminator:
        terms = [mean_hinge(x, real, *kind) for x, kind in zip(preds, kinds, strict=True)]
    else:
        terms = [x.mean() for x in preds]
        factor = -factor if real else factor
    return total(terms, [factor / len(preds) if options["reduction"] == "mean" else factor] * len(preds))


def our_gan(tensors, options):
    loss = GANLoss(mode=options["mode"], reduction=options["reduction"], target_real_label=options["real_label"],
                   target_fake_label=options["fake_label"])  # fmt: skip
    return [loss(predictions(tensors["fake"], options), options["real"], options["for_discriminator"])]


def plain_gan(tensors, options, dtypes):
    preds, kinds = last_of("fake", tensors, options, dtypes)
    return [adversarial(preds, kinds, options, options["real"], options["for_discriminator"], 1.0)]


def match(tensors, options, dtypes, factor):
    """Feature matching: the paper's weights 4 / (n_layers_D + 1) / num_D, SPADE's, or those per feature map."""
    count = options["scales"]
    sizes = [len(scale) - 1 for scale in scales_of(tensors["fake"], count)]
    kinds = each(dtypes, "fake", "ys") or [()] * len(tensors["fake"])
    rows = scales_of(list(zip(tensors["fake"], tensors["ys"], kinds, strict=True)), count)
    weight = {
        "pix2pixhd": lambda n: 4.0 / n / count,
        "scales": lambda n: 1.0 / count,
        "features": lambda n: 4.0 / sum(sizes),
    }[options["weighting"]]
    terms = [mean_l1(x, y.detach(), *kind) for row in rows for x, y, kind in row[:-1]]
    return total(terms, [factor * weight(n) for n in sizes for _ in range(n)])


def our_feature_matching(tensors, options):
    fake, real = predictions(tensors["fake"], options), predictions(tensors["ys"], options)
    if options["weight"] == 1.0:
        return [FeatureMatchingLoss(options["weighting"])(fake, real)]
    return [feature_matching_loss(fake, real, options["weighting"], weight=options["weight"])]


def plain_feature_matching(tensors, options, dtypes):
    return [match(tensors, options, dtypes, options["weight"])]


def our_l1_loss(tensors, options):
    x, y = tensors["xs"][0], tensors["ys"][0]
    return [l1_loss(x, y, options["reduction"]) if options["function"] else L1Loss(options["reduction"])(x, y)]


def plain_l1_loss(tensors, options, dtypes):
    x, y = tensors["xs"][0], tensors["ys"][0]
    if dtypes is None:
        return [F.l1_loss(x, y, reduction=options["reduction"])]
    d = rounded(x - y, *each(dtypes, "xs", "ys")[0]).abs()
    return [{"mean": d.mean, "sum": d.sum, "none": lambda: d}[options["reduction"]]()]


def our_generator(tensors, options):
    loss = GeneratorLoss(options["lambda_gan"], options["lambda_feat"], 0.0, preset=options["preset"],
                         gan_mode=options["mode"])  # fmt: skip
    found = loss(predictions(tensors["fake"], options), predictions(tensors["ys"], options))
    return [found.gan, found.feat, found.total]


def plain_generator(tensors, options, dtypes):
    """The terms and their sum, in the dtype of the terms; the sum of exact terms is not rounded in between."""
    preds, kinds = last_of("fake", tensors, options, dtypes)
    gan = adversarial(preds, kinds, options, True, False, options["lambda_gan"] * options["factor"])
    feat = match(tensors, options, dtypes, options["lambda_feat"])
    return [gan, feat, gan + feat]


def our_discriminator(tensors, options):
    loss = DiscriminatorLoss(options["preset"], gan_mode=options["mode"])
    found = loss(predictions(tensors["fake"], options), predictions(tensors["ys"], options))
    return [found.fake, found.real, found.total]


def plain_discriminator(tensors, options, dtypes):
    terms = []
    for name, real in (("fake", False), ("ys", True)):
        preds, kinds = last_of(name, tensors, options, dtypes)
        terms.append(adversarial(preds, kinds, options, real, True, options["factor"]))
    return [*terms, terms[0] + terms[1]]


def size_of_adversarial(preds, options, real, for_discriminator, factor):
    """The size of the terms of ``adversarial``: means of a linear function may cancel."""
    if options["mode"] == "wgan" or (options["mode"] == "hinge" and not for_discriminator):
        preds = [x.abs() for x in preds]
    return adversarial(preds, [()] * len(preds), options, real, for_discriminator, factor).abs()


def scales_of_adversarial(tensors, options, exact, dtypes):
    """Sizes of the terms, and of the two parts of the logistic loss's derivative, sigmoid(x) - label."""
    roles = {
        "gan": [("fake", options.get("real"), options.get("for_discriminator"), 1.0)],
        "generator": [("fake", True, False, options.get("lambda_gan", 1.0) * options.get("factor", 1.0))],
        "discriminator": [("fake", False, True, options.get("factor")), ("ys", True, True, options.get("factor"))],
    }[options["loss"]]
    slopes, sizes = {}, []
    with torch.no_grad():
        for name, real, for_discriminator, factor in roles:
            preds = last_of(name, tensors, options, None)[0]
            kinds = {kind[0] for kind in last_of(name, tensors, options, dtypes)[1]}
            size = size_of_adversarial(preds, options, real, for_discriminator, factor)
            # Each term of the logistic loss is rounded in the dtype of its tensor.
            mixed = options["mode"] == "vanilla" and torch.float64 in kinds and len(kinds) > 1
            sizes.append(size * 2.0**29 if mixed else size)
            label = options["real_label"] if real else options["fake_label"]
            weight = abs(factor) / (len(preds) if options["reduction"] == "mean" else 1)
            if options["mode"] == "vanilla" and exact[2] is not None:
                slopes |= {id(x): exact[2].abs() * weight / max(x.numel(), 1) * torch.sigmoid(x).clamp_min(label)
                           for x in preds}  # fmt: skip
        found = [slopes.get(id(leaf)) for leaf in leaves(tensors).values()]
        return [*sizes, None, None][: len(exact[0])], found


def draw_layers(r: Random) -> tuple[dict[str, list[Spec]], int]:
    """Feature maps and predictions of fake and real images, of 1 to 3 scales with 2 to 5 layers."""
    scales = r.choice([1, 1, 2, 2, 3])
    layers = scales * r.randint(2, 5) + r.randint(0, scales - 1)
    first, mixed = draw_dtype(r), r.random() < 0.15
    fake, real = [], []
    for k in range(layers):
        shape = (r.choice([1, 1, 2]), r.choice([1, 2, 4, 5, 8]), r.randint(1, 7), r.choice([1, 3, 4, 8, 9]))
        shape = shape if r.random() < 0.98 else (0, *shape[1:])
        dtype = draw_dtype(r) if mixed else first
        x = draw_spec(r, shape, dtype, tuple(f"{k}/{d}" for d in range(4)))
        if r.random() < 0.7:
            x.layout = ("permuted", (0, 2, 3, 1)) if r.random() < 0.5 else ("contiguous",)
        y = draw_target(r, x, dtype)
        y.same_as = "fake" if y.same_as else None
        fake.append(x)
        real.append(y)
    return {"fake": fake, "ys": real}, scales


def draw_common(r: Random, scales: int) -> dict[str, Any]:
    return {
        "scales": scales,
        "structure": r.choice(["lists", "tuples", "flat"]),
        "mode": r.choice(["lsgan", "vanilla", "hinge", "wgan"]),
        "reduction": r.choice(["sum", "mean"]),
        "real_label": r.choice([1.0, 1.0, 0.9, 0.8]),
        "fake_label": r.choice([0.0, 0.0, 0.1, 0.3]),
    }


def draw_gan(r: Random) -> Case:
    tensors, scales = draw_layers(r)
    options = draw_common(r, scales)
    options["loss"] = "gan"
    options["real"] = r.random() < 0.5
    options["for_discriminator"] = r.random() < 0.7 or not options["real"]
    return without_infinite_factors(Case({"fake": tensors["fake"]}, options, draw_upstream(r)))


def draw_feature_matching(r: Random) -> Case:
    tensors, scales = draw_layers(r)
    options = draw_common(r, scales)
    options["weighting"] = r.choice(["pix2pixhd", "scales", "features"])
    options["weight"] = r.choice([1.0, 1.0, 10.0, -0.3, 0.0, 1e30])
    return Case(tensors, options, draw_upstream(r))


def draw_l1_loss(r: Random) -> Case:
    dtype, other = draw_dtype(r), draw_dtype(r)
    shape = tuple(r.choice([1, 2, 3, 5, 8, 17]) for _ in range(r.randint(0, 3)))
    shape = shape if r.random() < 0.95 else (0, *shape)
    x = draw_spec(r, shape, dtype, tuple(str(d) for d in range(len(shape))))
    y = draw_target(r, x, dtype if r.random() < 0.7 else other)
    options = {"reduction": r.choice(["mean", "sum", "none"]), "function": r.random() < 0.5}
    return Case({"xs": [x], "ys": [y]}, options, draw_upstream(r))


def draw_generator(r: Random) -> Case:
    tensors, scales = draw_layers(r)
    options = draw_common(r, scales)
    preset = PRESETS[name := r.choice(list(PRESETS))]
    options |= {"loss": "generator", "preset": name, "weighting": preset.weighting, "reduction": preset.reduction,
                "real_label": 1.0, "fake_label": 0.0, "factor": preset.adversarial(options["mode"]),
                "lambda_gan": r.choice([preset.lambda_gan, 0.5, 2.0, 1e-3, 1e4]),
                "lambda_feat": r.choice([preset.lambda_feat, 1.0, 0.1, 1e4])}  # fmt: skip
    return without_infinite_factors(Case(tensors, options, draw_upstream(r, 3)))


def draw_discriminator(r: Random) -> Case:
    tensors, scales = draw_layers(r)
    for k, y in enumerate(tensors["ys"]):  # no tensor in both roles: PyTorch would add its gradients in half precision
        if y.same_as:
            tensors["ys"][k] = dataclasses.replace(y, same_as=None)
    options = draw_common(r, scales)
    preset = PRESETS[name := r.choice(list(PRESETS))]
    options |= {"loss": "discriminator", "preset": name, "reduction": preset.reduction, "real_label": 1.0,
                "fake_label": 0.0, "factor": preset.discriminator * preset.adversarial(options["mode"])}  # fmt: skip
    return without_infinite_factors(Case(tensors, options, draw_upstream(r, 3)))


# See multi_tensor.py for the bounds.
_BOUNDS: dict[str, Any] = {"value": 2.0, "gradient": 4.0, "strides": ("xs", "fake"), "scales": scales_of_adversarial}
_TOTAL = {**_BOUNDS, "total": True}
_MATCHING: dict[str, Any] = {"value": 1.0, "gradient": 1.0, "strides": ("xs", "fake")}
_SOURCES = (*_TERMS, scales_of, predictions, last_of, adversarial, match, size_of_adversarial, scales_of_adversarial)
_SIMPLER = {"structure": ["lists"], "mode": ["wgan", "lsgan"], "reduction": ["sum"], "weight": [1.0], "scales": [1, 2]}
_SHARED: dict[str, Any] = {"sources": _SOURCES, "imports": IMPORTS, "simpler": _SIMPLER}
OPERATORS = [
    Operator("GANLoss", draw_gan, our_gan, plain_gan, _BOUNDS, **_SHARED),
    Operator("FeatureMatchingLoss", draw_feature_matching, our_feature_matching, plain_feature_matching, _MATCHING,
             least=2, **_SHARED),
    Operator("L1Loss", draw_l1_loss, our_l1_loss, plain_l1_loss, {"value": 1.0, "gradient": 1.0}, _TERMS, IMPORTS,
             simpler={"function": [True], "reduction": ["mean", "sum"]}),
    Operator("GeneratorLoss", draw_generator, our_generator, plain_generator, _TOTAL, least=2, **_SHARED),
    Operator("DiscriminatorLoss", draw_discriminator, our_discriminator, plain_discriminator, _TOTAL, least=2,
             **_SHARED),
]  # fmt: skip
