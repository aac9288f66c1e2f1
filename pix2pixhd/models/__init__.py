"""Generators, encoder and discriminators of pix2pixHD with the parameter names of NVIDIA's checkpoints."""

from pix2pixhd.models.discriminators import MultiscaleDiscriminator, NLayerDiscriminator
from pix2pixhd.models.encoder import Encoder, instance_mean
from pix2pixhd.models.factory import define_D, define_E, define_G
from pix2pixhd.models.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd.models.layers import InstanceNorm2d, ResnetBlock, get_norm_layer, init_weights

__all__ = [
    "Encoder",
    "GlobalGenerator",
    "InstanceNorm2d",
    "LocalEnhancer",
    "MultiscaleDiscriminator",
    "NLayerDiscriminator",
    "ResnetBlock",
    "define_D",
    "define_E",
    "define_G",
    "get_norm_layer",
    "init_weights",
    "instance_mean",
]
