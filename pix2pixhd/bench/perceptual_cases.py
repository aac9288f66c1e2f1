"""The perceptual losses as benchmark cases, with the implementations that only they have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pix2pixhd.bench.case import Case, Inputs, Loss, Setup, TensorCase, Variant
from pix2pixhd.losses import LPIPS, VGGLoss
from pix2pixhd.models.vgg import FrozenVGG, load_vgg
from pix2pixhd.ops.conv_stack import POOLED_KINDS, TAPPED_KINDS

__all__ = ["image_inputs", "lpips", "vgg_loss"]

# Bytes per pixel, and the least number of them: about half of what the losses need without a limit in float32.
_BOUND, _SMALLEST_BOUND = 384, 64 << 20


class Checkpointed(nn.Module):
    """A VGG whose layers between two compared feature maps are under an activation checkpoint."""

    def __init__(self, network: FrozenVGG) -> None:
        super().__init__()
        ends, index = [0], 0
        for kind in network.layer_kinds:
            index += 2  # a convolution and its ReLU
            if kind in TAPPED_KINDS:
                ends.append(index)
            if kind in POOLED_KINDS:
                index += 1
        self.blocks = nn.ModuleList(network.features[begin:end] for begin, end in itertools.pairwise(ends))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the feature maps."""
        feature_maps = []
        for block in self.blocks:
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            feature_maps.append(x)
        return feature_maps


def image_inputs(setup: Setup) -> list[Inputs]:
    """Returns independent sets of random images in [−1, 1]. The generated ones require a gradient."""
    generator = torch.Generator(setup.device).manual_seed(0)
    shape = (setup.batch, 3, setup.height, setup.width)

    def make() -> Tensor:
        return torch.randn(shape, generator=generator, device=setup.device).tanh_()

    return [([make().requires_grad_()], [make()]) for _ in range(setup.sets)]


def _mean(criterion: Any) -> Loss:
    return lambda fake, real: criterion(fake[0], real[0]).mean()


def _case(make: Callable[..., nn.Module], setup: Setup, network: str, others: dict[str, Variant]) -> Case:
    """Returns the case of a loss.

    Args:
        make: Makes the loss; its arguments are the VGG and options.
        setup: The images.
        network: Name of the attribute that holds the VGG.
        others: Implementations besides those that both losses have.
    """

    def another(criterion: nn.Module, vgg: nn.Module, **options: Any) -> Loss:
        """Returns the loss with another network or with options, and the same linear weights, if it has any."""
        found = make(vgg, **options)
        found.load_state_dict(criterion.state_dict(), strict=False)
        return _mean(found.to(setup.device))

    limit = max(_BOUND * setup.batch * setup.height * setup.width, _SMALLEST_BOUND)
    variants = {
        "checkpoint": Variant(lambda criterion: another(criterion, Checkpointed(getattr(criterion, network)))),
        "features": Variant(
            lambda criterion: lambda fake, features: criterion(fake[0], features).mean(),
            backend="fused",
            prepare=lambda criterion, real: criterion.features(real[0]),
        ),
        "bounded": Variant(
            lambda criterion: another(criterion, getattr(criterion, network), memory_limit=limit), backend="fused"
        ),
    }

    def criterion() -> nn.Module:
        torch.manual_seed(0)
        return make(None).to(setup.device)

    return TensorCase(_mean, lambda: image_inputs(setup), criterion, setup, variants={**variants, **others})


def vgg_loss(setup: Setup) -> Case:
    """Returns VGGLoss with the paper's layers of a random VGG19."""

    def make(vgg: nn.Module | None, **options: Any) -> nn.Module:
        return VGGLoss(vgg=load_vgg("random") if vgg is None else vgg, **options)

    return _case(make, setup, "vgg", {})


def lpips(setup: Setup) -> Case:
    """Returns LPIPS on a random VGG16, with random linear weights, which need no package."""

    def make(trunk: nn.Module | None, **options: Any) -> nn.Module:
        return LPIPS(net="vgg", pretrained=False, pnet_rand=True, trunk=trunk, **options)

    def from_package(criterion: nn.Module) -> Loss:
        import lpips

        found = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        return same_weights(found, criterion)

    def from_torchmetrics(criterion: nn.Module) -> Loss:
        from torchmetrics.functional.image.lpips import _LPIPS

        return same_weights(_LPIPS(net="vgg", pretrained=False, pnet_rand=True), criterion)

    def same_weights(found: nn.Module, criterion: nn.Module) -> Loss:
        found.load_state_dict(criterion.state_dict(), strict=False)
        return _mean(found.to(setup.device))

    packages = {
        "lpips": Variant(from_package, package="lpips"),
        "torchmetrics": Variant(from_torchmetrics, package="torchmetrics"),
    }
    return _case(make, setup, "net", packages)
