"""Losses as functions, on flat lists of tensors and on discriminator outputs."""

from pix2pixhd import ops
from pix2pixhd.losses.feature_matching import feature_matching_loss
from pix2pixhd.losses.l1 import l1_loss
from pix2pixhd.ops import *  # noqa: F403 - all public functions of the operators

__all__ = ["feature_matching_loss", "l1_loss", *ops.__all__]
