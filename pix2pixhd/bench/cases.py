"""The benchmark cases: losses at the sizes of the paper's settings, each in several implementations.

All implementations of a case do the same work, forward and backward:

* ``fused``: the operators of this package;
* ``plain``: the same loss in plain PyTorch (the reference backend);
* ``compiled``: the plain loss under ``torch.compile``;
* ``limit``: the memory traffic that no implementation can avoid, which is to read both sides and to write one gradient.
  It is measured as one ``torch.add(a, b, out=c)`` per tensor into allocated memory.
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
Implementation = Callable[[], object]


def discriminator_shapes(
    height: int = 512, width: int = 1024, batch: int = 1, ndf: int = 64, n_layers: int = 3, num_D: int = 2
) -> tuple[list[Shape], list[Shape]]:
    """Shapes of the features and of the predictions of pix2pixHD's multi-scale discriminator, over all scales."""
    features: list[Shape] = []
    predictions: list[Shape] = []
    for scale in range(num_D):
        h, w, channels = height, width, ndf
        for _ in range(scale):  # AvgPool2d(3, stride=2, padding=1)
            h, w = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        for _ in range(n_layers):  # 4x4 convolutions with stride 2 and padding 2
            h, w = h // 2 + 1, w // 2 + 1
            features.append((batch, channels, h, w))
            channels = min(2 * channels, 512)
        features.append((batch, channels, h + 1, w + 1))
        predictions.append((batch, 1, h + 2, w + 2))
    return features, predictions


def vgg_shapes(height: int = 512, width: int = 1024, batch: int = 1) -> list[Shape]:
    """Shapes of the feature maps relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of VGG19."""
    return [(batch, min(64 << k, 512), height >> k, width >> k) for k in range(5)]


# Tensors of the generated and of the real images.
Inputs = tuple[list[Tensor], list[Tensor]]
Loss = Callable[[list[Tensor], list[Tensor]], Tensor]


def _inputs(
    shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, sets: int, both: bool = False
) -> list[Inputs]:
    """Independent sets of random inputs. With ``both`` the real side requires a gradient too."""
    generator = torch.Generator(device).manual_seed(0)

    def make(requires_grad: bool) -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes]
        return [x.requires_grad_(requires_grad) for x in tensors]

    return [(make(True), make(both)) for _ in range(sets)]


def _in_backend(name: str, loss: Loss, inputs: Sequence[Inputs]) -> Implementation:
    """Forward and backward. The gradients are freed at once, as if the next node of a training step consumed them."""
    wrt = [[x for x in (*fake, *real) if x.requires_grad] for fake, real in inputs]
    sets = itertools.cycle(list(zip(inputs, wrt, strict=True)))

    def run() -> None:
        (fake, real), leaves = next(sets)
        with pix2pixhd.backend(name):
            torch.autograd.grad(loss(fake, real), leaves)

    return run


def _implementations(loss: Loss, inputs: Sequence[Inputs], with_compile: bool) -> dict[str, Implementation]:
    implementations = {"fused": _in_backend("fused", loss, inputs), "plain": _in_backend("reference", loss, inputs)}
    if with_compile:
        # Compiled and called under the reference backend: the selected backend is a guard of the compiled code.
        compiled = torch.compile(loss, fullgraph=True, dynamic=False)
        implementations["compiled"] = _in_backend("reference", compiled, inputs)
    return implementations


def l1_implementations(
    shapes: Sequence[Shape],
    weights: Sequence[float],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    with_compile: bool = True,
    with_limit: bool = True,
    sets: int = 1,
) -> dict[str, Implementation]:
    """Implementations of the multi-tensor weighted L1. Several sets of inputs are used alternately."""
    inputs = _inputs(shapes, dtype, torch.device(device), sets)
    implementations = _implementations(
        lambda fake, real: multi_l1_loss(fake, real, list(weights)), inputs, with_compile
    )
    if with_limit:
        detached = [([x.detach() for x in fake], real) for fake, real in inputs]
        buffers = itertools.cycle([(fake, real, [torch.zeros_like(x) for x in fake]) for fake, real in detached])

        def limit() -> None:
            for x, y, z in zip(*next(buffers), strict=True):
                torch.add(x, y, out=z)

        implementations["limit"] = limit
    return implementations


def feature_matching(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", with_compile: bool = True, sets: int = 1
) -> dict[str, Implementation]:
    """Feature matching of the 512p discriminator: 24.1 M elements in 8 tensors."""
    features, predictions = discriminator_shapes()
    weight = 1.0 / len(predictions)  # 4 / (n_layers_D + 1) is 1 at n_layers_D = 3
    return l1_implementations(features, [weight] * len(features), dtype, device, with_compile, sets=sets)


def vgg_feature_maps(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", with_compile: bool = True, sets: int = 1
) -> dict[str, Implementation]:
    """Weighted L1 of the five VGG19 feature maps at 1024×512: 64.0 M elements."""
    return l1_implementations(vgg_shapes(), [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0], dtype, device, with_compile, sets=sets)


def adversarial(
    gan_loss: Callable[..., Tensor],
    for_discriminator: bool,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    with_compile: bool = True,
    sets: int = 1,
) -> dict[str, Implementation]:
    """A loss against constant labels over the scales of the 512p discriminator.

    The generator's loss reads the predictions of the generated images, the discriminator's loss those of both.
    """
    _, predictions = discriminator_shapes()
    inputs = _inputs(predictions, dtype, torch.device(device), sets, both=for_discriminator)
    count = len(predictions)
    if for_discriminator:
        labels, weights = [0.0] * count + [1.0] * count, [0.5] * 2 * count
        return _implementations(lambda fake, real: gan_loss(fake + real, labels, weights), inputs, with_compile)
    return _implementations(lambda fake, _: gan_loss(fake, 1.0, [0.5] * count), inputs, with_compile)


CASES: dict[str, Callable[..., dict[str, Implementation]]] = {
    "feature matching": feature_matching,
    "VGG feature maps": vgg_feature_maps,
    "LSGAN, generator": functools.partial(adversarial, lsgan_loss, False),
    "LSGAN, discriminator": functools.partial(adversarial, lsgan_loss, True),
    "vanilla GAN, generator": functools.partial(adversarial, logistic_loss, False),
    "vanilla GAN, discriminator": functools.partial(adversarial, logistic_loss, True),
}
