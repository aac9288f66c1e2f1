"""The ``model`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.data import DataOptions
from pix2pixhd.config.schema.ranges import at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["GeneratorName", "ModelOptions", "NormName"]

GeneratorName = Literal["global", "local"]
NormName = Literal["instance", "batch"]

# Each of these layers doubles the channels and halves the size, so a larger number is a typing error.
_MAX_SCALES = 10
_LAYERS = at_least(1, _MAX_SCALES)


@dataclasses.dataclass
class ModelOptions:
    """Architecture of the networks. The option names and defaults are NVIDIA's.

    Attributes:
        netG: Generator architecture: ``global`` for the global generator, ``local`` for the global generator with local
            enhancers.
        ngf: Number of channels of the generator's first convolution.
        n_downsample_global: Number of downsampling layers of the global generator.
        n_blocks_global: Number of residual blocks of the global generator.
        n_local_enhancers: Number of local enhancers (``netG: local``).
        n_blocks_local: Number of residual blocks of each local enhancer (``netG: local``).
        norm: Normalization layers: ``instance`` or ``batch``.
        ndf: Number of channels of the discriminators' first convolution.
        n_layers_D: Number of layers of each discriminator between the first layer and the prediction.
        num_D: Number of discriminators, one per image scale.
        instance_feat: Whether an encoder extracts style features of every instance, which are an additional input of
            the generator. The features can be changed when images are generated.
        label_feat: Whether the encoder extracts style features of every class instead of every instance.
        feat_num: Number of style features (``instance_feat``, ``label_feat``).
        nef: Number of channels of the encoder's first convolution.
        n_downsample_E: Number of downsampling layers of the encoder.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> ModelOptions(netG="local", n_downsample_global=4).multiple
        32
    """

    netG: GeneratorName = "global"
    ngf: int = 64
    n_downsample_global: int = 4
    n_blocks_global: int = 9
    n_local_enhancers: int = 1
    n_blocks_local: int = 3
    norm: NormName = "instance"
    ndf: int = 64
    n_layers_D: int = 3
    num_D: int = 2
    instance_feat: bool = False
    label_feat: bool = False
    feat_num: int = 3
    nef: int = 16
    n_downsample_E: int = 4

    def __post_init__(self) -> None:
        one, blocks, scales = at_least(1), at_least(0), at_least(0, _MAX_SCALES)
        check_ranges("model", self, ngf=one, ndf=one, nef=one, feat_num=one)
        check_ranges("model", self, n_blocks_global=blocks, n_blocks_local=blocks)
        check_ranges("model", self, n_downsample_global=scales, n_downsample_E=scales)
        check_ranges("model", self, **dict.fromkeys(("n_local_enhancers", "n_layers_D", "num_D"), _LAYERS))
        if self.instance_feat and self.label_feat:
            raise InputError("model: instance_feat and label_feat are both true; set only one of them")

    @property
    def has_features(self) -> bool:
        """Whether an encoder's features are an additional input of the generator."""
        return self.instance_feat or self.label_feat

    @property
    def multiple(self) -> int:
        """The networks require a height and a width that are multiples of this number."""
        enhancers: int = self.n_local_enhancers if self.netG == "local" else 0
        generator = int(2 ** (self.n_downsample_global + enhancers))
        return max(generator, 2**self.n_downsample_E) if self.has_features else generator

    def check(self, data: DataOptions) -> None:
        """Checks that the data have the regions over which the encoder averages its features.

        Raises:
            InputError: If they do not.
        """
        if self.instance_feat and data.no_instance:
            raise InputError("model.instance_feat averages over instances; set data.no_instance: false")
        if self.label_feat and not data.label_nc:
            raise InputError("model.label_feat averages over classes, so data.label_nc must not be 0")
