"""The losses as functions on flat lists, without modules."""

from pix2pixhd.ops import hinge_loss, lsgan_loss, mean_loss, multi_l1_loss

__all__ = ["hinge_loss", "lsgan_loss", "mean_loss", "multi_l1_loss"]
