"""Messages and errors of the build."""

from __future__ import annotations

import sys


class BuildError(SystemExit):
    """End the build with one message instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\npix2pixhd: {message}\n")


def say(message: str) -> None:
    """Print a message to stderr."""
    print(f"pix2pixhd: {message}", file=sys.stderr, flush=True)
