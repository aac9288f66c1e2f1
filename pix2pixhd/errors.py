"""The exception for invalid input that the user can correct, and the message for a lack of memory."""

from __future__ import annotations

import re
import sys

__all__ = ["InputError", "out_of_memory"]


class InputError(ValueError):
    """Raised for invalid input: a file, a folder, an option or a checkpoint.

    The message names the input, the expected and the actual value, and the remedy. The ``pix2pixhd`` command prints it
    without a traceback and exits with code 2.

    Example:
        >>> str(InputError("train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41"))
        'train_label/a.png: label id 40 is outside data.label_nc=35; set data.label_nc to 41'
    """


def out_of_memory(error: BaseException) -> str | None:
    """Returns the message for an error that reports a lack of memory; None for other errors.

    Example:
        >>> out_of_memory(MemoryError())
        'out of memory'
    """
    torch = sys.modules.get("torch")  # not imported here: most errors occur before it is needed
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory ({str(error).partition(chr(10))[0]})"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and (allocation := re.search(r"DefaultCPUAllocator: ([^\n]*)", str(error))):
        return f"out of memory ({allocation[1]})"
    return None
