"""Reading files of weights without running code in them."""

from __future__ import annotations

import pathlib
import pickle
import re

import torch

__all__ = ["read_weights"]


def read_weights(path: pathlib.Path, mapped: bool = False) -> object:
    """Reads what ``torch.save`` wrote: tensors, numbers, strings and containers of them, never code.

    Args:
        path: The file.
        mapped: Whether tensors are mapped into memory and read when they are used; not for files of old versions.

    Raises:
        ValueError: If the file is damaged or holds anything else; the message is the reason alone.
    """
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files fail in many ways: zip, pickle, struct, EOF
        raise ValueError(_failure(error)) from error
    return content


def _failure(error: Exception) -> str:
    """The reason why ``torch.load(weights_only=True)`` failed, without its advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", text)
        if refused is None:
            return "it is damaged, or not a file of torch.save"
        return (
            f"it holds more than weights: a Python object of type {refused[1]}, and loading it could run any code; "
            "save the network's state_dict() instead"
        )
    return text.splitlines()[0] if text else type(error).__name__
