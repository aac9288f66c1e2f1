"""The losses on features of frozen networks, with tiny networks: VGGLoss, LPIPS, StyleLoss, FrozenFeatureLoss."""

from __future__ import annotations

import functools
import warnings
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from pix2pixhd.losses import LPIPS, FrozenFeatureLoss, StyleLoss, VGGLoss
from tests.losses.helpers import conv_network, narrow_vgg

from .cases import Case, Operator, Spec, draw_upstream, place
from .perceptual import unit_vectors

IMPORTS = """import functools
import warnings

from pix2pixhd.losses import LPIPS, FrozenFeatureLoss, StyleLoss, VGGLoss
from tests.losses.helpers import conv_network, narrow_vgg"""
LAYERS = ["relu1_1", "relu2_1"]
LPIPS_LAYERS = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]


@functools.cache
def network_of(name, dtype):
    """A frozen network with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "any":
            network = conv_network().requires_grad_(False).eval()
        elif name == "lpips":
            network = narrow_vgg("vgg16", LPIPS_LAYERS)
        else:
            network = narrow_vgg("vgg19", LAYERS)
    return network.to(dtype)


def maps_of(name, x):
    """The feature maps in plain PyTorch."""
    network = network_of(name, x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)  # the convolutions of the losses are in this format, too
    if name != "any":
        return network(x)
    first = network[0](x)
    second = network[1][1](F.relu(first))
    third = torch.sigmoid(second)
    return [first, second, third, network[2](third)]


def our_vgg(tensors, options):
    x = tensors["xs"][0]
    loss = VGGLoss(vgg=network_of("vgg", x.dtype), weights=options["weights"], criterion=options["criterion"],
                   reduction="none")  # fmt: skip
    return [loss(x, tensors["ys"][0], (tensors["pixels"] or [None])[0]).sum()]


def plain_vgg(tensors, options, dtypes):
    total = 0.0
    for w, a, b in zip(
        options["weights"], maps_of("vgg", tensors["xs"][0]), maps_of("vgg", tensors["ys"][0]), strict=True
    ):
        distance = (a - b.detach()).abs() if options["criterion"] == "l1" else (a - b.detach()).square()
        if tensors["pixels"]:
            distance = distance * F.adaptive_avg_pool2d(tensors["pixels"][0], a.shape[2:])
        total = total + w * distance.flatten(1).mean(1).sum()
    return [total]


def our_frozen(tensors, options):
    x = tensors["xs"][0]
    loss = FrozenFeatureLoss(network_of("any", x.dtype), ["0", "1.1", "1", "2"], options["distance"],
                             weights=options["weights"] * 2)  # fmt: skip
    return [loss(x, tensors["ys"][0])]


def distance_of(kind, a, b):
    """A distance of two feature maps, one value per image."""
    if kind == "l1":
        return (a - b).abs().flatten(1).mean(1)
    if kind == "mse":
        return (a - b).square().flatten(1).mean(1)
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(a, b, dim=1, eps=0.0).flatten(1).mean(1)
    if kind == "lpips":
        return (unit_vectors(a) - unit_vectors(b)).square().sum(1).flatten(1).mean(1)
    grams = [x.flatten(2) @ x.flatten(2).transpose(1, 2) / x[0].numel() for x in (a, b)]
    return (grams[0] - grams[1]).square().flatten(1).mean(1)


def plain_frozen(tensors, options, dtypes):
    pairs = zip(maps_of("any", tensors["xs"][0]), maps_of("any", tensors["ys"][0]), strict=True)
    terms = [distance_of(options["distance"], a, b.detach()).mean() for a, b in pairs]
    return [sum(w * term for w, term in zip(options["weights"] * 2, terms, strict=True))]


def our_style(tensors, options):
    x = tensors["xs"][0]
    loss = StyleLoss(network_of("vgg", x.dtype), style_layers=LAYERS, normalize="none", style_weight=100.0,
                     layer_weights=options["weights"])  # fmt: skip
    return [loss(x, tensors["ys"][0])]


def plain_style(tensors, options, dtypes):
    pairs = zip(maps_of("vgg", tensors["xs"][0]), maps_of("vgg", tensors["ys"][0]), strict=True)
    terms = [distance_of("gram", a, b.detach()).mean() for a, b in pairs]
    return [sum(100.0 * w * term for w, term in zip(options["weights"], terms, strict=True))]


@functools.cache
def lpips_of(dtype):
    return LPIPS(net="vgg", lpips=False, trunk=network_of("lpips", dtype)).to(dtype)


def our_lpips(tensors, options):
    return [lpips_of(tensors["xs"][0].dtype)(tensors["xs"][0], tensors["ys"][0]).sum()]


def plain_lpips(tensors, options, dtypes):
    shift, scale = (torch.tensor(v).to(tensors["xs"][0]).view(1, 3, 1, 1)
                    for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))  # fmt: skip
    maps = [maps_of("lpips", (x - shift) / scale) for x in (tensors["xs"][0], tensors["ys"][0])]
    return [sum(distance_of("lpips", a, b).sum() for a, b in zip(*maps, strict=True))]


def draw_images(r: Random, dtype: torch.dtype, shape: tuple[int, ...]) -> Spec:
    generator = torch.Generator().manual_seed(r.getrandbits(40))
    values = (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)
    layout = r.choice([("contiguous",), ("permuted", (0, 2, 3, 1)), ("cropped",), ("expanded", (0,))])
    spec = Spec(values, layout, r.choice([0, 1]), False, None, ("n", "c", "h", "w"))
    spec.values = place(spec.values, spec.strides, spec.offset).contiguous() if layout[0] == "expanded" else values
    return spec


def draw_case(r: Random, sizes: tuple[int, ...] = (16, 17, 20, 33)) -> Case:
    dtype = r.choice([torch.float32, torch.float32, torch.float64])
    shape = (r.choice([1, 1, 2]), 3, r.choice(sizes), r.choice(sizes))
    x, y = draw_images(r, dtype, shape), draw_images(r, dtype, shape)
    x.grad = True
    if r.random() < 0.15:
        y.values, y.layout = x.values, x.layout  # equal images: ties
    elif r.random() < 0.15:
        index = r.randrange(x.values.numel())
        x.values = x.values.clone()
        x.layout = ("contiguous",)
        x.values.view(-1)[index] = r.choice([float("nan"), float("inf"), 1e20, 1e-40])
    weights = [r.choice([1.0, 0.5, -0.3, 0.0, 10.0]), r.choice([1.0, 0.25, 2.0])]
    # The gradient is computed in the forward and multiplied by the upstream gradient, which must be finite.
    upstream = {**draw_upstream(r), "value": r.choice([1.0, -3.0, 0.1, 65536.0, 0.0])}
    return Case({"xs": [x], "ys": [y]}, {"weights": weights}, upstream)  # threads: convolutions depend on their number


def draw_vgg(r: Random) -> Case:
    case = draw_case(r)
    case.options["criterion"] = r.choice(["l1", "mse"])
    x = case.tensors["xs"][0].values
    pixels = torch.rand((x.shape[0], 1, *x.shape[2:]), generator=torch.Generator().manual_seed(r.getrandbits(40)))
    case.tensors["pixels"] = [Spec(pixels.to(x.dtype), axes=("n", "one", "h", "w"))] if r.random() < 0.3 else []
    return case


def draw_frozen(r: Random) -> Case:
    case = draw_case(r)
    case.options["distance"] = r.choice(["l1", "mse", "cosine", "lpips", "gram"])
    return case


# A few units relative to the largest gradient of the image: convolutions add thousands of terms in another order.
_BOUNDS: dict[str, Any] = {"value": 32.0, "gradient": 64.0, "norm": True}
_SOURCES = (network_of, maps_of, distance_of, unit_vectors)
OPERATORS = [
    Operator("VGGLoss", draw_vgg, our_vgg, plain_vgg, _BOUNDS, _SOURCES, IMPORTS, least=0),
    Operator("FrozenFeatureLoss", draw_frozen, our_frozen, plain_frozen, _BOUNDS, _SOURCES, IMPORTS, least=0),
    Operator("StyleLoss", draw_case, our_style, plain_style, _BOUNDS, _SOURCES, IMPORTS, least=0),
    Operator("LPIPS", draw_case, our_lpips, plain_lpips, _BOUNDS, (lpips_of, *_SOURCES), IMPORTS, least=0),
]
