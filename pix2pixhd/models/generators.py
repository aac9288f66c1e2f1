"""The generators of pix2pixHD (arXiv 1711.11585, section 3.1) with the parameter names of NVIDIA's checkpoints."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pix2pixhd.models.layers import InstanceNorm2d, NormLayer, ResnetBlock, init_weights
from pix2pixhd.nn.lean import add_output

__all__ = ["GlobalGenerator", "LocalEnhancer"]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        minimum = 0 if name.startswith("n_") else 1
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _check_input(x: Tensor, channels: int, multiple: int) -> None:
    """Reject sizes that the generator would not reproduce, because every downsampling rounds up."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"input must be [N, {channels}, H, W], got {list(x.shape)}")
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or min(height, width) < 2 * multiple:
        raise ValueError(
            f"input is {width}x{height} (width x height), but this generator needs both to be multiples of {multiple} "
            f"and at least {2 * multiple}; resize, crop or pad the image, or use fewer downsamplings"
        )


def _stem(input_nc: int, ngf: int, norm_layer: NormLayer) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, kernel_size=7), norm_layer(ngf), nn.ReLU(inplace=True)]


def _down(channels: int, norm_layer: NormLayer) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels * 2, kernel_size=3, stride=2, padding=1)
    return [conv, norm_layer(channels * 2), nn.ReLU(inplace=True)]


def _up(channels: int, norm_layer: NormLayer) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(channels * 2, channels, kernel_size=3, stride=2, padding=1, output_padding=1)
    return [conv, norm_layer(channels), nn.ReLU(inplace=True)]


def _to_image(ngf: int, output_nc: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, kernel_size=7), nn.Tanh()]


def _global_trunk(
    input_nc: int, ngf: int, n_downsampling: int, n_blocks: int, norm_layer: NormLayer, padding_type: str
) -> list[nn.Module]:
    """Build the global generator up to its last feature map, ``[N, ngf, H, W]``."""
    layers = _stem(input_nc, ngf, norm_layer)
    widths = [ngf * 2**i for i in range(n_downsampling)]
    for width in widths:
        layers += _down(width, norm_layer)
    layers += [ResnetBlock(ngf * 2**n_downsampling, padding_type, norm_layer) for _ in range(n_blocks)]
    for width in reversed(widths):
        layers += _up(width, norm_layer)
    return layers


def _run(layers: nn.Sequential, x: Tensor, checkpoints: bool, residual: Tensor | None = None) -> Tensor:
    """Run the layers and add ``residual``.

    With ``checkpoints``, activations are saved only after each ReLU and residual block.
    """
    if not (checkpoints and torch.is_grad_enabled()):
        return cast(Tensor, layers(x)) if residual is None else add_output(residual, layers, x)
    start = 0
    for end, layer in enumerate(layers, 1):
        # The next layer is a convolution or a padding, which only reads the saved activation. A ReLU would modify it.
        if end == len(layers) or isinstance(layer, (nn.ReLU, ResnetBlock)):
            x = cast(Tensor, checkpoint(layers[start:end], x, use_reentrant=False, preserve_rng_state=False))
            start = end
    return x if residual is None else residual + x


class GlobalGenerator(nn.Module):
    """The global generator G1: downsampling, residual blocks, upsampling. Its output is in [−1, 1].

    Parameters are named ``model.N…`` as in NVIDIA's ``latest_net_G.pth`` of a ``--netG global`` run. Weights are
    initialised from N(0, 0.02). The normalisation layer defaults to instance norm, as NVIDIA's option ``--norm`` does
    (the default of NVIDIA's class itself is batch norm).

    Args:
        input_nc: Channels of the input: one-hot labels and the edge map, or image channels.
        output_nc: Channels of the generated image.
        ngf: Channels of the first convolution; each downsampling doubles them.
        n_downsampling: Number of downsamplings, each by a factor of 2.
        n_blocks: Number of residual blocks at the lowest resolution.
        norm_layer: Function from the number of channels to a normalisation layer.
        padding_type: Padding of the residual blocks: ``"reflect"``, ``"replicate"`` or ``"zero"``.

    Attributes:
        multiple: Height and width of the input must be multiples of this, and at least twice as large.
        checkpoint_activations: Whether training saves about every third activation and recomputes the others.

    Raises:
        ValueError: If a count is too small or ``padding_type`` is unknown; in ``forward``, if the number of channels
            differs or the size violates ``multiple``.

    Example:
        >>> import torch
        >>> generator = GlobalGenerator(input_nc=36, output_nc=3, ngf=8, n_downsampling=2, n_blocks=1)
        >>> generator(torch.randn(1, 36, 32, 64)).shape
        torch.Size([1, 3, 32, 64])
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 64,
        n_downsampling: int = 3,
        n_blocks: int = 9,
        norm_layer: NormLayer = InstanceNorm2d,
        padding_type: str = "reflect",
    ) -> None:
        super().__init__()
        _check_counts(input_nc=input_nc, output_nc=output_nc, ngf=ngf, n_downsampling=n_downsampling, n_blocks=n_blocks)
        self.input_nc = input_nc
        self.multiple: int = 2**n_downsampling
        self.checkpoint_activations = False
        trunk = _global_trunk(input_nc, ngf, n_downsampling, n_blocks, norm_layer, padding_type)
        self.model = nn.Sequential(*trunk, *_to_image(ngf, output_nc))
        init_weights(self)

    def forward(self, input: Tensor) -> Tensor:
        """Generate images ``[N, output_nc, H, W]`` in [−1, 1] from ``[N, input_nc, H, W]``."""
        _check_input(input, self.input_nc, self.multiple)
        return _run(self.model, input, self.checkpoint_activations)


class LocalEnhancer(nn.Module):
    """The coarse-to-fine generator: a global generator at low resolution, enclosed by enhancers G2, G3, ….

    Parameters are named as in NVIDIA's ``latest_net_G.pth`` of a ``--netG local`` run: ``model.N…`` for the global part
    without its output layers, ``model{n}_1.N…`` and ``model{n}_2.N…`` for the downsampling and upsampling layers of the
    n-th enhancer.

    Args:
        input_nc: Channels of the input: one-hot labels and the edge map, or image channels.
        output_nc: Channels of the generated image.
        ngf: Channels of the finest enhancer's first convolution; the global part starts with
            ``ngf·2^n_local_enhancers``.
        n_downsample_global: Number of downsamplings of the global part.
        n_blocks_global: Number of residual blocks of the global part.
        n_local_enhancers: Number of enhancers; each doubles the resolution.
        n_blocks_local: Number of residual blocks of each enhancer.
        norm_layer: Function from the number of channels to a normalisation layer.
        padding_type: Padding of the residual blocks: ``"reflect"``, ``"replicate"`` or ``"zero"``.

    Attributes:
        multiple: Height and width of the input must be multiples of this, and at least twice as large.
        checkpoint_activations: Whether training saves about every third activation and recomputes the others.

    Raises:
        ValueError: As for ``GlobalGenerator``.

    Example:
        >>> import torch
        >>> generator = LocalEnhancer(36, 3, ngf=4, n_downsample_global=2, n_blocks_global=1, n_blocks_local=1)
        >>> generator(torch.randn(1, 36, 32, 64)).shape
        torch.Size([1, 3, 32, 64])
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsample_global: int = 3,
        n_blocks_global: int = 9,
        n_local_enhancers: int = 1,
        n_blocks_local: int = 3,
        norm_layer: NormLayer = InstanceNorm2d,
        padding_type: str = "reflect",
    ) -> None:
        super().__init__()
        _check_counts(
            input_nc=input_nc,
            output_nc=output_nc,
            ngf=ngf,
            n_downsample_global=n_downsample_global,
            n_blocks_global=n_blocks_global,
            n_local_enhancers=n_local_enhancers,
            n_blocks_local=n_blocks_local,
        )
        self.input_nc = input_nc
        self.n_local_enhancers = n_local_enhancers
        self.multiple: int = 2 ** (n_downsample_global + n_local_enhancers)
        self.checkpoint_activations = False
        ngf_global = ngf * 2**n_local_enhancers
        self.model = nn.Sequential(
            *_global_trunk(input_nc, ngf_global, n_downsample_global, n_blocks_global, norm_layer, padding_type)
        )
        for n in range(1, n_local_enhancers + 1):
            width = ngf * 2 ** (n_local_enhancers - n)
            blocks = [ResnetBlock(width * 2, padding_type, norm_layer) for _ in range(n_blocks_local)]
            output = _to_image(ngf, output_nc) if n == n_local_enhancers else []
            down = nn.Sequential(*_stem(input_nc, width, norm_layer), *_down(width, norm_layer))
            up = nn.Sequential(*blocks, *_up(width, norm_layer), *output)
            self.add_module(f"model{n}_1", down)
            self.add_module(f"model{n}_2", up)
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        init_weights(self)

    def forward(self, input: Tensor) -> Tensor:
        """Generate images ``[N, output_nc, H, W]`` in [−1, 1] from ``[N, input_nc, H, W]``."""
        _check_input(input, self.input_nc, self.multiple)
        pyramid = [input]
        for _ in range(self.n_local_enhancers):
            pyramid.append(self.downsample(pyramid[-1]))
        features = _run(self.model, pyramid.pop(), self.checkpoint_activations)
        for n in range(1, self.n_local_enhancers + 1):
            down, up = self._enhancer(n, 1), self._enhancer(n, 2)
            features = _run(down, pyramid.pop(), self.checkpoint_activations, features)
            features = _run(up, features, self.checkpoint_activations)
        return features

    def _enhancer(self, n: int, half: int) -> nn.Sequential:
        layers = self.get_submodule(f"model{n}_{half}")
        assert isinstance(layers, nn.Sequential)
        return layers

    def finest_enhancer(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Return the last enhancer's downsampling and upsampling layers, trained first around a trained G1."""
        return self._enhancer(self.n_local_enhancers, 1), self._enhancer(self.n_local_enhancers, 2)
