"""The type of command-line arguments that are image sizes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

__all__ = ["image_size"]


def image_size(smallest: int, largest: int) -> Callable[[str], tuple[int, int]]:
    """Returns the type of an argument WIDTHxHEIGHT.

    Args:
        smallest: Smallest width and height.
        largest: Largest width and height.
    """

    def parse(text: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, for example 1024x512, got {text!r}")
        sides = [int(side) if len(side) <= len(str(largest)) else largest + 1 for side in match.groups()]
        if min(sides) < smallest or max(sides) > largest:
            raise argparse.ArgumentTypeError(
                f"must be at least {smallest}x{smallest} and at most {largest}x{largest}, got {text!r}"
            )
        return sides[0], sides[1]

    return parse
