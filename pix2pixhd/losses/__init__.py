"""Losses as ``nn.Module`` classes. ``pix2pixhd.functional`` provides the functional forms."""

from pix2pixhd.losses.adversarial import GANLoss
from pix2pixhd.losses.feature_matching import FeatureMatchingLoss
from pix2pixhd.losses.frozen_features import FrozenFeatureLoss
from pix2pixhd.losses.l1 import L1Loss
from pix2pixhd.losses.lpips import LPIPS
from pix2pixhd.losses.objective import DiscriminatorLoss, DiscriminatorTerms, GeneratorLoss, GeneratorTerms
from pix2pixhd.losses.perceptual import VGGLoss
from pix2pixhd.losses.perceptual_features import FrozenFeatures, VGGFeatures
from pix2pixhd.losses.style import StyleLoss

__all__ = [
    "LPIPS",
    "DiscriminatorLoss",
    "DiscriminatorTerms",
    "FeatureMatchingLoss",
    "FrozenFeatureLoss",
    "FrozenFeatures",
    "GANLoss",
    "GeneratorLoss",
    "GeneratorTerms",
    "L1Loss",
    "StyleLoss",
    "VGGFeatures",
    "VGGLoss",
]
