"""Types of command-line arguments, which refuse values that would fail in a child process or after the measurement."""

import argparse
import pathlib
import re


def positive(kind, multiple_of=None):
    """A type for positive numbers: ``int`` or ``float``, and multiples of a number."""
    wanted = f"a positive {'number' if kind is float else 'integer'}"
    wanted += "" if multiple_of is None else f" and a multiple of {multiple_of}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not 0 < value < float("inf") or (multiple_of is not None and value % multiple_of):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return parse


def image_size(text):
    """A width and a height in multiples of 16, the size of the label regions and of the generator's smallest image."""
    sides = [int(side) for side in text.split("x")] if re.fullmatch(r"\d+x\d+", text) else [0]
    if any(side == 0 or side % 16 for side in sides):
        raise argparse.ArgumentTypeError(f"must be width x height in multiples of 16, such as 512x256, got {text!r}")
    return text


def output_file(text):
    """A file to write, in a folder that exists."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must be a file in a folder that exists, got {text!r}; create the folder first"
        )
    return path


def device(text):
    """``cpu``, or ``cuda`` where PyTorch finds a GPU."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if text == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("PyTorch finds no GPU on this machine; use --device cpu")
    return text
