"""Losses as functions, on flat lists of tensors and on discriminator outputs."""

from pix2pixhd.losses.feature_matching import feature_matching_loss
from pix2pixhd.losses.l1 import l1_loss
from pix2pixhd.ops import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss

__all__ = [
    "feature_matching_loss",
    "hinge_loss",
    "l1_loss",
    "logistic_loss",
    "lsgan_loss",
    "mean_loss",
    "multi_l1_loss",
]
