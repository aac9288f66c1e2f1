"""The weights of VGG19 for a demo with the perceptual loss."""

from __future__ import annotations

import os
import pathlib
import re

from pix2pixhd.errors import InputError
from pix2pixhd.models.vgg import load_vgg
from pix2pixhd.models.weights import check_file

__all__ = ["usable_vgg"]


def usable_vgg(given: str) -> str:
    """Returns the value of ``loss.vgg`` for the argument of ``--perceptual``, once the weights have been read.

    Args:
        given: ``"imagenet"`` for torch.hub's cache or a download, ``"random"``, or the path of a state dict.

    Raises:
        InputError: If the weights cannot be downloaded or read, or are not those of a VGG19.

    Example:
        >>> usable_vgg("vgg19-dcbb9e9d.pth")  # doctest: +SKIP
        '/home/me/vgg19-dcbb9e9d.pth'
    """
    vgg = given
    if given not in ("imagenet", "random"):
        # These functions raise no error for homes of unknown users and folders that cannot be read.
        path = pathlib.Path(os.path.abspath(os.path.expanduser(given)))
        remedy = "pass the path of a state dict of VGG19, or --perceptual alone for torch.hub's cache or a download"
        try:
            check_file(path, "--perceptual", remedy)
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        vgg = str(path)
    try:
        load_vgg(vgg, argument="--perceptual", caller="demo")
    except (RuntimeError, ValueError) as error:
        text = re.sub(r"demo\((--perceptual)=\"([^\"]*)\"\)", r"\1 \2", str(error))
        text = text.replace('--perceptual="random"', "--perceptual random").removeprefix("--perceptual: ")
        raise InputError(
            f"--perceptual: {text}\nOr train without the perceptual loss: leave --perceptual out"
        ) from error
    return vgg
