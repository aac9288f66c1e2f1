"""Table of the public losses for the contract tests, each with its formula in plain PyTorch.

Every loss is called as a function of a list of tensors. To test a new loss, add one entry to ``losses``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd import functional
from pix2pixhd.losses import (
    DiscriminatorLoss,
    FeatureMatchingLoss,
    FrozenFeatureLoss,
    GANLoss,
    GeneratorLoss,
    L1Loss,
    StyleLoss,
    VGGLoss,
)

Tensors = list[Tensor]
SCALE_SHAPES = ((2, 4, 6, 5), (2, 1, 4, 3))  # a discriminator's feature map and its prediction
IMAGE = ((1, 3, 16, 16),)
VGG_LAYERS = ("relu1_1", "relu2_1")
VGG_WEIGHTS = (0.5, 1.0)


@dataclasses.dataclass
class Loss:
    """One entry of the table.

    Attributes:
        criterion: A module or a function from ``pix2pixhd.functional``.
        call: Calls the criterion on the tensors.
        plain: Computes the loss in plain PyTorch from the tensors, and from the network if ``vgg`` is True.
        shapes: Shapes of the tensors.
        anneal: Sets a numeric attribute of the criterion, as a schedule does.
        vgg: Whether the loss uses a VGG or another frozen network.
    """

    criterion: Any
    call: Callable[[Any, Tensors], Tensor]
    plain: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = SCALE_SHAPES
    anneal: Callable[[Any, float], None] | None = None
    vgg: bool = False

    def __call__(self, xs: Tensors) -> Tensor:
        return self.call(self.criterion, xs)

    @functools.cached_property
    def network(self) -> torch.nn.Module | None:
        """The frozen network of the criterion, or None."""
        if not self.vgg:
            return None
        criterion = self.criterion.vgg if isinstance(self.criterion, GeneratorLoss) else self.criterion
        return criterion.frozen_network()

    @functools.cached_property
    def double_network(self) -> torch.nn.Module | None:
        """A float64 copy of ``network``."""
        return copy.deepcopy(self.network).double() if self.vgg else None

    def oracle(self, xs: Tensors) -> Tensor:
        """Computes the loss in plain PyTorch, with the float64 network for float64 inputs."""
        if not self.vgg:
            return self.plain(xs)
        return self.plain(xs, self.double_network if xs[-1].dtype == torch.float64 else self.network)


def target(x: Tensor) -> Tensor:
    """Returns the comparison target: fixed values with the shape and dtype of ``x``."""
    count = x.numel()
    return (torch.arange(count, dtype=torch.float64).mul(0.7).sin() / 2).view(x.shape).to(x.dtype)


def _l1(xs: Tensors) -> Tensor:
    return sum(F.l1_loss(x, target(x)) for x in xs)


def _lsgan(xs: Tensors, label: float = 1.0) -> Tensor:
    return F.mse_loss(xs[-1], torch.full_like(xs[-1], label))


def _logistic(xs: Tensors, label: float = 1.0) -> Tensor:
    return F.binary_cross_entropy_with_logits(xs[-1], torch.full_like(xs[-1], label))


def _hinge(xs: Tensors) -> Tensor:
    return F.relu(1.0 - xs[-1]).mean()


def _features(xs: Tensors) -> Tensor:
    return 4.0 * F.l1_loss(xs[0], target(xs[0]))  # one scale with one feature map


def _vgg(xs: Tensors, network: torch.nn.Module) -> Tensor:
    pairs = zip(network(xs[-1]), network(target(xs[-1])), VGG_WEIGHTS, strict=True)
    return sum(w * F.l1_loss(x, y.detach()) for x, y, w in pairs)


def _both(xs: Tensors) -> list[list[Tensor]]:
    return [[target(x) for x in xs]]


def _set(name: str) -> Callable[[Any, float], None]:
    return lambda criterion, value: setattr(criterion, name, value)


def _vgg_loss() -> VGGLoss:
    return VGGLoss(vgg="random", layers=VGG_LAYERS, weights=VGG_WEIGHTS)


def _any_network() -> torch.nn.Sequential:
    """Returns a network whose first tapped output is modified in place by the next layer."""
    torch.manual_seed(3)
    convolutions = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, 2, padding=1)]
    return torch.nn.Sequential(convolutions[0], torch.nn.ReLU(inplace=True), convolutions[1], torch.nn.Tanh())


def _squared_features(xs: Tensors, network: torch.nn.Module) -> Tensor:
    def maps(x: Tensor) -> Tensors:
        first = network[0](x)
        return [first, network[3](network[2](F.relu(first)))]

    return sum(w * F.mse_loss(x, y) for w, x, y in zip(VGG_WEIGHTS, maps(xs[-1]), maps(target(xs[-1])), strict=True))


def _gram(x: Tensor) -> Tensor:
    matrix = x.float().flatten(2) if x.dtype != torch.float64 else x.flatten(2)
    with torch.autocast("cpu", enabled=False):
        return matrix @ matrix.transpose(1, 2) / (matrix.shape[1] * matrix.shape[2])


def _style(xs: Tensors, network: torch.nn.Module) -> Tensor:
    pairs = zip(network(xs[-1]), network(target(xs[-1])), strict=True)
    # Without the factor, plain PyTorch's float16 gradients underflow.
    return 1e3 * sum(F.mse_loss(_gram(x), _gram(y)) for x, y in pairs)


def losses() -> dict[str, Loss]:
    """Returns the table with new criteria."""
    f, gan, label = functional, lambda c, xs: c([xs], True), _set("real_label")
    return {
        "GANLoss lsgan": Loss(GANLoss(), gan, _lsgan, anneal=label),
        "GANLoss vanilla": Loss(GANLoss(mode="vanilla"), gan, _logistic, anneal=label),
        "GANLoss hinge": Loss(GANLoss(mode="hinge"), gan, _hinge),
        "GANLoss wgan": Loss(GANLoss(mode="wgan"), gan, lambda xs: -xs[-1].mean()),
        "DiscriminatorLoss hinge": Loss(DiscriminatorLoss(gan_mode="hinge"), lambda c, xs: c([xs[:1]], [xs[1:]]).total,
                                        lambda xs: 0.5 * (F.relu(1.0 + xs[0]).mean() + _hinge(xs)),
                                        anneal=_set("factor")),
        "DiscriminatorLoss wgan": Loss(DiscriminatorLoss(gan_mode="wgan"), lambda c, xs: c([xs[:1]], [xs[1:]]).total,
                                       lambda xs: 0.5 * (xs[0].mean() - xs[-1].mean()), anneal=_set("factor")),
        "FeatureMatchingLoss": Loss(FeatureMatchingLoss(), lambda c, xs: c([xs], _both(xs)), _features),
        "L1Loss": Loss(L1Loss(), lambda c, xs: c(xs[0], target(xs[0])), lambda xs: _l1(xs[:1])),
        "L1Loss sum": Loss(L1Loss("sum"), lambda c, xs: c(xs[0], target(xs[0])),
                           lambda xs: F.l1_loss(xs[0], target(xs[0]), reduction="sum")),
        "VGGLoss": Loss(_vgg_loss(), lambda c, xs: c(xs[0], target(xs[0])), _vgg, IMAGE, vgg=True),
        "FrozenFeatureLoss": Loss(FrozenFeatureLoss(_any_network(), ["0", "3"], "mse", weights=VGG_WEIGHTS),
                                  lambda c, xs: c(xs[0], target(xs[0])), _squared_features, IMAGE, vgg=True),
        "StyleLoss": Loss(StyleLoss("random", style_layers=VGG_LAYERS, normalize="none", style_weight=1e3),
                          lambda c, xs: c(xs[0], target(xs[0])), _style, IMAGE, vgg=True),
        "GeneratorLoss": Loss(GeneratorLoss(lambda_vgg=0.0), lambda c, xs: c([xs], _both(xs)).total,
                              lambda xs: 0.5 * _lsgan(xs) + 10 * _features(xs), anneal=_set("lambda_feat")),
        "GeneratorLoss with VGG": Loss(GeneratorLoss(vgg=_vgg_loss()),
                                       lambda c, xs: c([xs[:2]], _both(xs[:2]), xs[2], target(xs[2])).total,
                                       lambda xs, n: 0.5 * _lsgan(xs[:2]) + 10 * (_features(xs) + _vgg(xs, n)),
                                       SCALE_SHAPES + IMAGE, _set("lambda_vgg"), vgg=True),
        "DiscriminatorLoss": Loss(DiscriminatorLoss(), lambda c, xs: c([xs[:1]], [xs[1:]]).total,
                                  lambda xs: 0.5 * (_lsgan(xs[:1], 0.0) + _lsgan(xs)), anneal=_set("factor")),
        "multi_l1_loss": Loss(f.multi_l1_loss, lambda c, xs: c(xs, [target(x) for x in xs]), _l1),
        "lsgan_loss": Loss(f.lsgan_loss, lambda c, xs: c(xs[-1:], 0.9), lambda xs: _lsgan(xs, 0.9)),
        "logistic_loss": Loss(f.logistic_loss, lambda c, xs: c(xs[-1:], 0.9), lambda xs: _logistic(xs, 0.9)),
        "hinge_loss": Loss(f.hinge_loss, lambda c, xs: c(xs[-1:], True), _hinge),
        "mean_loss": Loss(f.mean_loss, lambda c, xs: c(xs[-1:]), lambda xs: xs[-1].mean()),
        "feature_matching_loss": Loss(f.feature_matching_loss, lambda c, xs: c([xs], _both(xs)), _features),
        "l1_loss": Loss(f.l1_loss, lambda c, xs: c(xs[0], target(xs[0])), lambda xs: _l1(xs[:1])),
    }  # fmt: skip
