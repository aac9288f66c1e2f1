"""Fused GAN losses and a training package for pix2pixHD-style image-to-image translation."""

from pix2pixhd.ops import backend

__version__ = "0.1.0"

__all__ = ["__version__", "backend"]
