"""The benchmark cases: losses and network blocks at the sizes of the paper's settings, each in several implementations.

All implementations of a case do the same work, forward and backward:

* ``fused``: the operators of this package;
* ``plain``: the same in plain PyTorch (the reference backend);
* ``compiled``: plain, under ``torch.compile``;
* ``limit``: the memory traffic that no implementation can avoid, which is to read both sides and to write one gradient.
  It is measured as one ``torch.add(a, b, out=c)`` per tensor into allocated memory.

Some cases have further ones:

* ``checkpoint``: plain, with the network under activation checkpoints;
* ``features``: fused, with the features of the real images computed in advance;
* ``bounded``: fused, with a ``memory_limit`` of about half of the feature maps;
* ``lpips``, ``torchmetrics``: the classes of these packages, with the same weights;
* ``fused-graph``, ``plain-graph``: captured as CUDA graphs, without the overhead of Python and of launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pix2pixhd.bench.case import Case, Inputs, Setup, TensorCase
from pix2pixhd.bench.compiled_step import SUFFIX, CompiledStepCase
from pix2pixhd.bench.perceptual_cases import lpips, vgg_loss
from pix2pixhd.bench.shapes import Shape, discriminator_shapes, vgg_shapes
from pix2pixhd.bench.step_case import StepCase
from pix2pixhd.models.layers import InstanceNorm2d, ResnetBlock
from pix2pixhd.nn import lean
from pix2pixhd.ops import logistic_loss, lsgan_loss, multi_l1_loss
from pix2pixhd.ops.autograd import wider

__all__ = [
    "BANDWIDTH_CASES",
    "CASES",
    "DEFAULT_CASES",
    "LOSSES",
    "NETWORK_CASES",
    "discriminator_shapes",
    "evaluates_network",
    "l1_case",
    "make_case",
    "vgg_shapes",
]

_VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def _mean_square(x: Tensor) -> Tensor:
    return x.to(wider(x.dtype)).square().mean()


def _inputs(shapes: Sequence[Shape], setup: Setup, dtype: torch.dtype, both: bool = False) -> list[Inputs]:
    """Returns independent sets of random inputs. With ``both`` the real side requires a gradient too."""
    generator = torch.Generator(setup.device).manual_seed(0)

    def make(requires_grad: bool) -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator, dtype=dtype, device=setup.device) for shape in shapes]
        return [x.requires_grad_(requires_grad) for x in tensors]

    return [(make(True), make(both)) for _ in range(setup.sets)]


def l1_case(shapes: Sequence[Shape], weights: Sequence[float], setup: Setup) -> Case:
    """Returns the multi-tensor weighted L1."""
    constants = list(weights)
    return TensorCase(
        lambda _: lambda fake, real: multi_l1_loss(fake, real, constants),
        lambda: _inputs(shapes, setup, setup.dtype),
        setup=setup,
        limit=True,
    )


def feature_matching(setup: Setup) -> Case:
    """Returns feature matching of the discriminator; 24.1 M elements in 8 tensors with the default setup."""
    features, predictions = discriminator_shapes(setup)
    weight = 1.0 / len(predictions)  # 4 / (n_layers_D + 1) is 1 at n_layers_D = 3
    return l1_case(features, [weight] * len(features), setup)


def vgg_feature_maps(setup: Setup) -> Case:
    """Returns the weighted L1 of the five VGG19 feature maps; 64.0 M elements with the default setup."""
    return l1_case(vgg_shapes(setup), _VGG_WEIGHTS, setup)


def _adversarial(gan_loss: Callable[..., Tensor], for_discriminator: bool) -> Callable[[Setup], Case]:
    """Returns a loss against constant labels over the scales of the discriminator.

    The generator's loss reads the predictions of the generated images, the discriminator's loss those of both.
    """

    def make(setup: Setup) -> Case:
        _, predictions = discriminator_shapes(setup)
        count = len(predictions)
        labels, weights = [0.0] * count + [1.0] * count, [0.5] * 2 * count

        def discriminator(fake: list[Tensor], real: list[Tensor]) -> Tensor:
            return gan_loss(fake + real, labels, weights)

        def generator(fake: list[Tensor], real: list[Tensor]) -> Tensor:
            return gan_loss(fake, 1.0, [0.5] * count)

        return TensorCase(
            lambda _: discriminator if for_discriminator else generator,
            lambda: _inputs(predictions, setup, setup.dtype, both=for_discriminator),
            setup=setup,
            graphs=True,
        )

    return make


def lean_block(setup: Setup) -> Case:
    """Returns a residual block of the 512p generator, with 1024 channels at a sixteenth of the resolution."""
    shape = (setup.batch, 1024, max(setup.height // 16, 2), max(setup.width // 16, 2))

    def block() -> nn.Module:
        torch.manual_seed(0)
        return lean(ResnetBlock(1024, "reflect", InstanceNorm2d)).to(setup.device)

    def inputs() -> list[Inputs]:
        return [(fake, []) for fake, _ in _inputs([shape], setup, torch.float32)]

    return TensorCase(lambda block: lambda fake, real: _mean_square(block(fake[0])), inputs, block, setup)


CASES: dict[str, Callable[[Setup], Case]] = {
    "feature matching": feature_matching,
    "VGG feature maps": vgg_feature_maps,
    "LSGAN, generator": _adversarial(lsgan_loss, False),
    "LSGAN, discriminator": _adversarial(lsgan_loss, True),
    "vanilla GAN, generator": _adversarial(logistic_loss, False),
    "vanilla GAN, discriminator": _adversarial(logistic_loss, True),
    "VGGLoss": vgg_loss,
    "LPIPS": lpips,
    "residual block": lean_block,
    "training step": StepCase,
}
# Losses, which can be measured inside a compiled step too.
LOSSES = [name for name in CASES if name not in ("residual block", "training step")]
# The cases with a bandwidth limit.
BANDWIDTH_CASES = ("feature matching", "VGG feature maps")
# The cases of the command without options.
DEFAULT_CASES = [name for name in CASES if not name.startswith("vanilla")]
# Those that evaluate networks, which take seconds on a CPU.
NETWORK_CASES = ("VGGLoss", "LPIPS", "residual block", "training step")


def make_case(name: str, setup: Setup) -> Case:
    """Returns one of ``CASES``, or with ``SUFFIX`` one of ``LOSSES`` inside a compiled step."""
    case = CASES[name.removesuffix(SUFFIX)](setup)
    return CompiledStepCase(cast(TensorCase, case)) if name.endswith(SUFFIX) else case


def evaluates_network(name: str) -> bool:
    """Whether a case evaluates networks."""
    return name.removesuffix(SUFFIX) in NETWORK_CASES
