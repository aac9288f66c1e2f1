"""The generator's loss of a run, built from its options."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch

from pix2pixhd.config.messages import as_options
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.errors import InputError
from pix2pixhd.losses import LPIPS, GeneratorLoss, VGGLoss
from pix2pixhd.losses.presets import get_preset
from pix2pixhd.models.lpips_trunks import TrunkName
from pix2pixhd.models.vgg import Architecture, layer_names
from pix2pixhd.models.weights import check_file

__all__ = ["check_loss", "generator_loss", "perceptual_name"]


def check_loss(options: LossOptions) -> None:
    """Checks the names of the layers against the network, and that files of weights exist, without loading weights.

    Raises:
        InputError: If the network has no such layer, with those that it has, or if there is no such file.

    Example:
        >>> check_loss(LossOptions(perceptual_layers=["relu1_2", "relu3_3"]))
    """
    try:
        if options.perceptual == "vgg" and options.perceptual_layers is not None:
            layer_names(str(options.network), options.perceptual_layers)
        if _is_enabled(options):
            if options.vgg not in ("imagenet", "random"):
                check_file(options.vgg, "vgg")
            if options.lpips_weights is not None:
                check_file(options.lpips_weights, "model_path", "pass the weights of the linear layers")
    except (ValueError, FileNotFoundError) as error:
        raise InputError(as_options(str(error))) from None


def _is_enabled(options: LossOptions) -> bool:
    return options.perceptual != "none" and options.lambda_vgg != 0


def generator_loss(options: LossOptions) -> GeneratorLoss:
    """Builds the generator's loss from its options.

    Raises:
        InputError: For a layer that the network does not have, and if weights are not available; the message names the
            file to download and its folder.
    """
    check_loss(options)
    enabled = _is_enabled(options)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            perceptual = _perceptual_loss(options) if enabled else "imagenet"
        for warning in caught:  # that of random weights recommends an argument of the loss
            warnings.warn(as_options(str(warning.message)), warning.category, stacklevel=2)
        return GeneratorLoss(
            options.lambda_gan,
            options.lambda_feat,
            options.lambda_vgg if enabled else 0.0,
            preset=options.preset,
            gan_mode=options.gan_mode,
            vgg=perceptual,
        )
    except (RuntimeError, FileNotFoundError, ValueError) as error:
        text = as_options(str(error))
        prefix = "" if text.startswith("loss.") else "loss.vgg: "
        raise InputError(f"{prefix}{text}\nOr train without the perceptual loss: loss.perceptual: none") from error


def _perceptual_loss(options: LossOptions) -> VGGLoss | LPIPS:
    common: dict[str, Any] = {
        "dtype": None if options.perceptual_dtype is None else getattr(torch, options.perceptual_dtype),
        "memory_limit": None if options.vgg_memory_limit is None else options.vgg_memory_limit * 2**20,
    }
    if options.perceptual == "lpips":
        return LPIPS(
            net=cast(TrunkName, options.network), trunk=options.vgg, model_path=options.lpips_weights, **common
        )
    return VGGLoss(
        vgg=options.vgg,
        network=cast(Architecture, options.network),
        layers=options.perceptual_layers,
        weights=options.perceptual_weights,
        criterion=options.perceptual_distance or "l1",
        normalize=get_preset(options.preset).normalize,
        **common,
    )


def perceptual_name(loss: GeneratorLoss) -> str:
    """Returns the name under which the perceptual term is logged: ``G_LPIPS`` for LPIPS, ``G_VGG`` otherwise."""
    return "G_LPIPS" if isinstance(loss.vgg, LPIPS) else "G_VGG"
