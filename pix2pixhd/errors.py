"""The one exception for input that a user can correct."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """An input cannot be used: a file, a folder, an option, a checkpoint.

    The message names the input, what was expected, what was found and the remedy. The ``pix2pixhd`` command prints it
    without a traceback and exits with code 2.

    Example:
        >>> str(InputError("train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41"))
        'train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41'
    """
