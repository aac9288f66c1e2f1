"""Functions that build networks from NVIDIA's options, with the signatures of its ``networks.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from pix2pixhd.models.discriminators import MultiscaleDiscriminator
from pix2pixhd.models.encoder import Encoder
from pix2pixhd.models.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd.models.layers import get_norm_layer

__all__ = ["define_D", "define_E", "define_G"]

_Network = TypeVar("_Network", bound=nn.Module)


def define_G(
    input_nc: int,
    output_nc: int,
    ngf: int,
    netG: str,
    n_downsample_global: int = 3,
    n_blocks_global: int = 9,
    n_local_enhancers: int = 1,
    n_blocks_local: int = 3,
    norm: str = "instance",
    gpu_ids: Sequence[int] = (),
) -> GlobalGenerator | LocalEnhancer | Encoder:
    """Build a generator from NVIDIA's options.

    Args:
        input_nc: Channels of the input.
        output_nc: Channels of the generated image.
        ngf: Channels of the first convolution.
        netG: ``"global"``, ``"local"`` or ``"encoder"``.
        n_downsample_global: Number of downsamplings of the global generator or the encoder.
        n_blocks_global: Number of residual blocks of the global generator.
        n_local_enhancers: Number of enhancers (``"local"``).
        n_blocks_local: Number of residual blocks of each enhancer (``"local"``).
        norm: ``"instance"`` or ``"batch"``.
        gpu_ids: The network is moved to the first GPU in the list; it stays on the CPU if the list is empty.

    Raises:
        ValueError: If ``netG`` or ``norm`` is unknown, or a count is too small.

    Example:
        >>> generator = define_G(36, 3, 8, "global", n_downsample_global=2, n_blocks_global=1)
    """
    norm_layer = get_norm_layer(norm)
    generator: GlobalGenerator | LocalEnhancer | Encoder
    if netG == "global":
        generator = GlobalGenerator(input_nc, output_nc, ngf, n_downsample_global, n_blocks_global, norm_layer)
    elif netG == "local":
        generator = LocalEnhancer(
            input_nc,
            output_nc,
            ngf,
            n_downsample_global,
            n_blocks_global,
            n_local_enhancers,
            n_blocks_local,
            norm_layer,
        )
    elif netG == "encoder":
        generator = Encoder(input_nc, output_nc, ngf, n_downsample_global, norm_layer)
    else:
        raise ValueError(f"netG must be 'global', 'local' or 'encoder', got {netG!r}")
    return _to_device(generator, gpu_ids)


def define_E(
    input_nc: int,
    output_nc: int,
    nef: int = 16,
    n_downsample_E: int = 4,
    norm: str = "instance",
    gpu_ids: Sequence[int] = (),
) -> Encoder:
    """Build an instance feature encoder from NVIDIA's options.

    Args:
        input_nc: Channels of the image.
        output_nc: Number of features, ``feat_num`` in NVIDIA's options.
        nef: Channels of the first convolution.
        n_downsample_E: Number of downsamplings of the encoder.
        norm: ``"instance"`` or ``"batch"``.
        gpu_ids: The network is moved to the first GPU in the list; it stays on the CPU if the list is empty.

    Raises:
        ValueError: If ``norm`` is unknown, or a count is too small.

    Example:
        >>> encoder = define_E(3, 3, nef=8, n_downsample_E=2)
    """
    return _to_device(Encoder(input_nc, output_nc, nef, n_downsample_E, get_norm_layer(norm)), gpu_ids)


def define_D(
    input_nc: int,
    ndf: int,
    n_layers_D: int,
    norm: str = "instance",
    use_sigmoid: bool = False,
    num_D: int = 1,
    getIntermFeat: bool = False,
    gpu_ids: Sequence[int] = (),
) -> MultiscaleDiscriminator:
    """Build a multi-scale discriminator from NVIDIA's options.

    Args:
        input_nc: Channels of condition and image, concatenated.
        ndf: Channels of the first convolution.
        n_layers_D: Number of layers between the first layer and the prediction.
        norm: ``"instance"`` or ``"batch"``.
        use_sigmoid: Whether predictions are probabilities.
        num_D: Number of scales.
        getIntermFeat: Whether intermediate features are returned, for feature matching.
        gpu_ids: The network is moved to the first GPU in the list; it stays on the CPU if the list is empty.

    Raises:
        ValueError: If ``norm`` is unknown, or a count is below 1.

    Example:
        >>> discriminator = define_D(39, 8, 3, num_D=2, getIntermFeat=True)
    """
    discriminator = MultiscaleDiscriminator(
        input_nc, ndf, n_layers_D, get_norm_layer(norm), use_sigmoid, num_D, getIntermFeat
    )
    return _to_device(discriminator, gpu_ids)


def _to_device(network: _Network, gpu_ids: Sequence[int]) -> _Network:
    return network.to(f"cuda:{gpu_ids[0]}") if gpu_ids else network
