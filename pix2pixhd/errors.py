"""The exception for invalid input that the user can correct."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Raised for invalid input: a file, a folder, an option or a checkpoint.

    The message names the input, the expected and the actual value, and the remedy. The ``pix2pixhd`` command prints it
    without a traceback and exits with code 2.

    Example:
        >>> str(InputError("train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41"))
        'train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41'
    """
