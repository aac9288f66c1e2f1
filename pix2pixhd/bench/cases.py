"""The benchmark cases: losses at the sizes of the paper's settings, each against its rivals.

Rivals of one case do the same work, forward and backward:

* ``fused``: this package's operators;
* ``plain``: the same loss in plain PyTorch (the reference backend);
* ``compiled``: the plain one under ``torch.compile``;
* ``limit``: the bytes that any implementation must move, read both sides and write one gradient, as one
  ``torch.add(a, b, out=c)`` per tensor into memory that is already there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import pix2pixhd
from pix2pixhd.ops import logistic_loss, lsgan_loss, multi_l1_loss

Shape = tuple[int, int, int, int]
Rival = Callable[[], object]


def discriminator_shapes(
    height: int = 512, width: int = 1024, batch: int = 1, ndf: int = 64, n_layers: int = 3, num_D: int = 2
) -> tuple[list[Shape], list[Shape]]:
    """Shapes of pix2pixHD's multi-scale discriminator: features of all scales and layers; predictions of all scales."""
    features: list[Shape] = []
    predictions: list[Shape] = []
    for scale in range(num_D):
        h, w, channels = height, width, ndf
        for _ in range(scale):  # AvgPool2d(3, stride=2, padding=1)
            h, w = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        for _ in range(n_layers):  # 4x4 convolutions of stride 2, padding 2
            h, w = h // 2 + 1, w // 2 + 1
            features.append((batch, channels, h, w))
            channels = min(2 * channels, 512)
        features.append((batch, channels, h + 1, w + 1))
        predictions.append((batch, 1, h + 2, w + 2))
    return features, predictions


def vgg_shapes(height: int = 512, width: int = 1024, batch: int = 1) -> list[Shape]:
    """Shapes of VGG19's relu1_1, relu2_1, relu3_1, relu4_1, relu5_1."""
    return [(batch, min(64 << k, 512), height >> k, width >> k) for k in range(5)]


# Lists of tensors of the generated and of the real side.
Inputs = tuple[list[Tensor], list[Tensor]]
Loss = Callable[[list[Tensor], list[Tensor]], Tensor]


def _inputs(
    shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, sets: int, both: bool = False
) -> list[Inputs]:
    """Random inputs, as many sets as asked for; ``both`` when the real side gets a gradient too."""
    generator = torch.Generator(device).manual_seed(0)

    def make(requires_grad: bool) -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes]
        return [x.requires_grad_(requires_grad) for x in tensors]

    return [(make(True), make(both)) for _ in range(sets)]


def _in_backend(name: str, loss: Loss, inputs: Sequence[Inputs]) -> Rival:
    """Forward and backward; the gradients are dropped at once, as a training step's next node would consume them."""
    wrt = [[x for x in (*fake, *real) if x.requires_grad] for fake, real in inputs]
    turns = itertools.cycle(list(zip(inputs, wrt, strict=True)))

    def run() -> None:
        (fake, real), leaves = next(turns)
        with pix2pixhd.backend(name):
            torch.autograd.grad(loss(fake, real), leaves)

    return run


def _rivals(loss: Loss, inputs: Sequence[Inputs], with_compile: bool) -> dict[str, Rival]:
    rivals = {"fused": _in_backend("fused", loss, inputs), "plain": _in_backend("reference", loss, inputs)}
    if with_compile:
        # Compiled under the reference backend, and called under it: the choice is a guard of the compiled code.
        compiled = torch.compile(loss, fullgraph=True, dynamic=False)
        rivals["compiled"] = _in_backend("reference", compiled, inputs)
    return rivals


def l1_rivals(
    shapes: Sequence[Shape],
    weights: Sequence[float],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    with_compile: bool = True,
    with_limit: bool = True,
    sets: int = 1,
) -> dict[str, Rival]:
    """Rivals of the multi-tensor weighted L1 over these shapes; with several sets of inputs they take turns."""
    inputs = _inputs(shapes, dtype, torch.device(device), sets)
    rivals = _rivals(lambda fake, real: multi_l1_loss(fake, real, list(weights)), inputs, with_compile)
    if with_limit:
        plain = [([x.detach() for x in fake], real) for fake, real in inputs]
        turns = itertools.cycle([(fake, real, [torch.zeros_like(x) for x in fake]) for fake, real in plain])

        def limit() -> None:
            for x, y, z in zip(*next(turns), strict=True):
                torch.add(x, y, out=z)

        rivals["limit"] = limit
    return rivals


def feature_matching(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", with_compile: bool = True, sets: int = 1
) -> dict[str, Rival]:
    """Feature matching over the 512p discriminator's features: 24.1 M elements in 8 tensors."""
    features, predictions = discriminator_shapes()
    weight = 1.0 / len(predictions)  # 4 / (n_layers_D + 1) is 1 at n_layers_D = 3
    return l1_rivals(features, [weight] * len(features), dtype, device, with_compile, sets=sets)


def vgg_maps(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", with_compile: bool = True, sets: int = 1
) -> dict[str, Rival]:
    """The weighted L1 over the five VGG19 maps at 1024×512: 64.0 M elements."""
    return l1_rivals(vgg_shapes(), [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0], dtype, device, with_compile, sets=sets)


def adversarial(
    gan_loss: Callable[..., Tensor],
    for_discriminator: bool,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    with_compile: bool = True,
    sets: int = 1,
) -> dict[str, Rival]:
    """A loss against constant labels over the scales of the 512p discriminator.

    Either the generator's side or the discriminator's, real and fake predictions together.
    """
    _, predictions = discriminator_shapes()
    inputs = _inputs(predictions, dtype, torch.device(device), sets, both=for_discriminator)
    count = len(predictions)
    if for_discriminator:
        labels, weights = [0.0] * count + [1.0] * count, [0.5] * 2 * count
        return _rivals(lambda fake, real: gan_loss(fake + real, labels, weights), inputs, with_compile)
    return _rivals(lambda fake, _: gan_loss(fake, 1.0, [0.5] * count), inputs, with_compile)


CASES: dict[str, Callable[..., dict[str, Rival]]] = {
    "feature matching": feature_matching,
    "VGG maps": vgg_maps,
    "LSGAN, generator": functools.partial(adversarial, lsgan_loss, False),
    "LSGAN, discriminator": functools.partial(adversarial, lsgan_loss, True),
    "vanilla GAN, generator": functools.partial(adversarial, logistic_loss, False),
    "vanilla GAN, discriminator": functools.partial(adversarial, logistic_loss, True),
}
