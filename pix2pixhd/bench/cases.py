"""The benchmark cases: losses and network blocks at the sizes of the paper's settings, each in several implementations.

All implementations of a case do the same work, forward and backward:

* ``fused``: the operators of this package;
* ``plain``: the same in plain PyTorch (the reference backend);
* ``compiled``: plain, under ``torch.compile``;
* ``limit``: the memory traffic that no implementation can avoid, which is to read both sides and to write one gradient.
  It is measured as one ``torch.add(a, b, out=c)`` per tensor into allocated memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pix2pixhd.bench.case import Case, Inputs, Setup, TensorCase
from pix2pixhd.bench.step_case import StepCase
from pix2pixhd.bench.step_setup import StepSetup
from pix2pixhd.errors import InputError
from pix2pixhd.losses import LPIPS, VGGLoss
from pix2pixhd.models.layers import InstanceNorm2d, ResnetBlock
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.nn import lean
from pix2pixhd.ops import logistic_loss, lsgan_loss, multi_l1_loss
from pix2pixhd.ops.autograd import wider

__all__ = ["CASES", "DEFAULT_CASES", "NETWORK_CASES", "check_images", "discriminator_shapes", "l1_case", "vgg_shapes"]

Shape = tuple[int, int, int, int]

_VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def discriminator_shapes(setup: Setup, ndf: int = 64, n_layers: int = 3) -> tuple[list[Shape], list[Shape]]:
    """Returns the shapes of the features and of the predictions of pix2pixHD's discriminator, over all scales."""
    features: list[Shape] = []
    predictions: list[Shape] = []
    for scale in range(setup.num_D):
        h, w, channels = setup.height, setup.width, ndf
        for _ in range(scale):  # AvgPool2d(3, stride=2, padding=1)
            h, w = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        for _ in range(n_layers):  # 4x4 convolutions with stride 2 and padding 2
            h, w = h // 2 + 1, w // 2 + 1
            features.append((setup.batch, channels, h, w))
            channels = min(2 * channels, 512)
        features.append((setup.batch, channels, h + 1, w + 1))
        predictions.append((setup.batch, 1, h + 2, w + 2))
    return features, predictions


def vgg_shapes(setup: Setup) -> list[Shape]:
    """Returns the shapes of the feature maps relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of VGG19."""
    return [(setup.batch, min(64 << k, 512), setup.height >> k, setup.width >> k) for k in range(5)]


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
    inputs = _inputs(shapes, setup, setup.dtype)
    return TensorCase(lambda _: lambda fake, real: multi_l1_loss(fake, real, constants), inputs, limit=True)


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
        inputs = _inputs(predictions, setup, setup.dtype, both=for_discriminator)
        count = len(predictions)
        if for_discriminator:
            labels, weights = [0.0] * count + [1.0] * count, [0.5] * 2 * count
            return TensorCase(lambda _: lambda fake, real: gan_loss(fake + real, labels, weights), inputs)
        return TensorCase(lambda _: lambda fake, real: gan_loss(fake, 1.0, [0.5] * count), inputs)

    return make


def _of_images(criterion: nn.Module, setup: Setup) -> Case:
    inputs = _inputs([(setup.batch, 3, setup.height, setup.width)], setup, torch.float32)
    for images in itertools.chain(*inputs):
        with torch.no_grad():
            images[0].tanh_()  # in [−1, 1]
    loss = criterion.to(setup.device)
    return TensorCase(lambda loss: lambda fake, real: loss(fake[0], real[0]).mean(), inputs, loss, setup.dtype)


def vgg_loss(setup: Setup) -> Case:
    """Returns VGGLoss with the paper's layers of a random VGG19."""
    return _of_images(VGGLoss(vgg=load_vgg("random")), setup)


def lpips(setup: Setup) -> Case:
    """Returns LPIPS on a random VGG16, with random linear weights, which need no package."""
    torch.manual_seed(0)
    return _of_images(LPIPS(net="vgg", pretrained=False, pnet_rand=True), setup)


def lean_block(setup: Setup) -> Case:
    """Returns a residual block of the 512p generator, with 1024 channels at a sixteenth of the resolution."""
    torch.manual_seed(0)
    block = lean(ResnetBlock(1024, "reflect", InstanceNorm2d)).to(setup.device)
    shape = (setup.batch, 1024, max(setup.height // 16, 2), max(setup.width // 16, 2))
    inputs: list[Inputs] = [(fake, []) for fake, _ in _inputs([shape], setup, torch.float32)]
    return TensorCase(lambda block: lambda fake, real: _mean_square(block(fake[0])), inputs, block, setup.dtype)


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
# The cases of the command without options.
DEFAULT_CASES = [name for name in CASES if not name.startswith("vanilla")]
# Those that evaluate networks, which take seconds on a CPU.
NETWORK_CASES = ("VGGLoss", "LPIPS", "residual block", "training step")


def check_images(name: str, setup: Setup) -> None:
    """Checks that the networks of a case accept the images. The command calls this before it measures the first case.

    Raises:
        InputError: If they are too small, or if the generator would return another size.
    """
    if name != "training step":
        return
    multiple = 2**StepSetup.n_downsample
    size = f"{setup.width}x{setup.height}"
    if any(side % multiple or side < 2 * multiple for side in (setup.width, setup.height)):
        raise InputError(
            f"--size: the case {name!r} needs width and height in multiples of {multiple} and at least {2 * multiple}, "
            f"got {size}; change it, or choose other cases with --case"
        )
    if any(height * width == 1 for _, _, height, width in discriminator_shapes(setup)[0]):
        raise InputError(
            f"--num-d: the images of the case {name!r} must have more than one pixel at the coarsest of {setup.num_D} "
            f"scales, got {size}; lower --num-d, or raise --size"
        )
