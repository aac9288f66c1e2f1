"""Reading of weight files without executing code from them."""

from __future__ import annotations

import pathlib
import pickle
import re

import torch

__all__ = ["read_weights"]


def read_weights(path: pathlib.Path, mapped: bool = False) -> object:
    """Read a file written by ``torch.save``: tensors, numbers, strings and containers of them, never code.

    Args:
        path: The file.
        mapped: Whether tensors are memory-mapped and read on access. Files in torch's legacy format do not support it.

    Raises:
        ValueError: If the file is damaged or contains anything else; the message is only the reason.
    """
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files fail in many ways: zip, pickle, struct, EOF
        raise ValueError(_failure(error)) from error
    return content


def _failure(error: Exception) -> str:
    """Return the reason why ``torch.load(weights_only=True)`` failed, without its advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", text)
        if refused is None:
            return "it is damaged, or was not written by torch.save"
        return (
            f"it contains more than weights: a Python object of type {refused[1]}, and loading it could execute code; "
            "save the network's state_dict() instead"
        )
    return text.splitlines()[0] if text else type(error).__name__
