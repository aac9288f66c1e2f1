"""Functions that build networks from a configuration."""

from __future__ import annotations

from torch import nn

from pix2pixhd.config.schema import DataOptions, ModelOptions
from pix2pixhd.models.discriminators import MultiscaleDiscriminator
from pix2pixhd.models.encoder import Encoder
from pix2pixhd.models.factory import define_D, define_E, define_G

__all__ = ["build_discriminator", "build_encoder", "build_generator"]


def build_generator(model: ModelOptions, data: DataOptions) -> nn.Module:
    """Build a generator with newly initialised weights.

    Args:
        model: Options of the networks.
        data: Options of the data's encoding, which determines the number of input and output channels.

    Raises:
        InputError: If the generator requires features that the data cannot provide.

    Example:
        >>> import torch
        >>> network = build_generator(ModelOptions(ngf=8), DataOptions(label_nc=4))
        >>> network(torch.zeros(1, 5, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    model.check(data)
    return define_G(
        data.input_channels + (model.feat_num if model.has_features else 0),
        data.output_nc,
        model.ngf,
        model.netG,
        model.n_downsample_global,
        model.n_blocks_global,
        model.n_local_enhancers,
        model.n_blocks_local,
        model.norm,
    )


def build_encoder(model: ModelOptions, data: DataOptions) -> Encoder | None:
    """Build a feature encoder with newly initialised weights; None if the generator takes no features.

    Args:
        model: Options of the networks.
        data: Options of the data's encoding.

    Example:
        >>> build_encoder(ModelOptions(), DataOptions()) is None
        True
    """
    if not model.has_features:
        return None
    return define_E(data.output_nc, model.feat_num, model.nef, model.n_downsample_E, model.norm)


def build_discriminator(model: ModelOptions, data: DataOptions) -> MultiscaleDiscriminator:
    """Build a multi-scale discriminator with newly initialised weights.

    Args:
        model: Options of the networks.
        data: Options of the data's encoding; the discriminator takes the encoded input and an image, concatenated.

    Example:
        >>> import torch
        >>> discriminator = build_discriminator(ModelOptions(ndf=8, num_D=2), DataOptions(label_nc=4))
        >>> len(discriminator(torch.zeros(1, 8, 32, 32)))
        2
    """
    return define_D(
        data.input_channels + data.output_nc,
        model.ndf,
        model.n_layers_D,
        model.norm,
        num_D=model.num_D,
        getIntermFeat=True,
    )
