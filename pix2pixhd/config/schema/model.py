"""The ``model`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.config.schema.data import DataOptions
from pix2pixhd.config.schema.ranges import at_least, check_ranges
from pix2pixhd.errors import InputError

__all__ = ["ModelOptions"]

# Channels double, and sizes halve, with each of these layers; more than this is a typing error.
_MOST_SCALES = 10
_LAYERS = at_least(1, _MOST_SCALES)


@dataclasses.dataclass
class ModelOptions:
    """The networks. Names and defaults are those of NVIDIA's options.

    Attributes:
        netG: ``global`` for one generator, ``local`` for enhancers around it.
        ngf: Channels of the generator's first convolution.
        n_downsample_global: How often the global generator halves its input.
        n_blocks_global: Residual blocks of the global generator.
        n_local_enhancers: Number of enhancers (``local``).
        n_blocks_local: Residual blocks of each enhancer (``local``).
        norm: ``instance`` or ``batch``.
        ndf: Channels of the discriminator's first convolution.
        n_layers_D: Layers of each discriminator between the first and the prediction.
        num_D: Number of discriminator scales.
        instance_feat: Whether an encoder gives the generator features of every instance's look, which can be exchanged
            when pictures are generated.
        label_feat: The same for every class, instead of every instance.
        feat_num: Number of features (``instance_feat``, ``label_feat``).
        nef: Channels of the encoder's first convolution.
        n_downsample_E: How often the encoder halves its input.

    Raises:
        InputError: For numbers out of range.

    Example:
        >>> ModelOptions(netG="local", n_downsample_global=4).multiple
        32
    """

    netG: Literal["global", "local"] = "global"
    ngf: int = 64
    n_downsample_global: int = 4
    n_blocks_global: int = 9
    n_local_enhancers: int = 1
    n_blocks_local: int = 3
    norm: Literal["instance", "batch"] = "instance"
    ndf: int = 64
    n_layers_D: int = 3
    num_D: int = 2
    instance_feat: bool = False
    label_feat: bool = False
    feat_num: int = 3
    nef: int = 16
    n_downsample_E: int = 4

    def __post_init__(self) -> None:
        one, several, scales = at_least(1), at_least(0), at_least(0, _MOST_SCALES)
        check_ranges("model", self, ngf=one, ndf=one, nef=one, feat_num=one)
        check_ranges("model", self, n_blocks_global=several, n_blocks_local=several)
        check_ranges("model", self, n_downsample_global=scales, n_downsample_E=scales)
        check_ranges("model", self, **dict.fromkeys(("n_local_enhancers", "n_layers_D", "num_D"), _LAYERS))
        if self.instance_feat and self.label_feat:
            raise InputError("model: instance_feat and label_feat are both true; features are of one or the other")

    @property
    def has_features(self) -> bool:
        """Whether the generator takes an encoder's features beside its other input."""
        return self.instance_feat or self.label_feat

    @property
    def multiple(self) -> int:
        """Height and width of what the networks take must be multiples of this."""
        enhancers: int = self.n_local_enhancers if self.netG == "local" else 0
        generator = int(2 ** (self.n_downsample_global + enhancers))
        return max(generator, 2**self.n_downsample_E) if self.has_features else generator

    def check(self, data: DataOptions) -> None:
        """Whether the data have what the encoder averages over.

        Raises:
            InputError: If they do not.
        """
        if self.instance_feat and data.no_instance:
            raise InputError("model.instance_feat averages over instances; set data.no_instance: false")
        if self.label_feat and not data.label_nc:
            raise InputError("model.label_feat averages over classes, so data.label_nc must not be 0")
