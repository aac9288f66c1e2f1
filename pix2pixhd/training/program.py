"""How the user calls this program."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import sys

__all__ = ["command_name"]


def command_name() -> str:
    """The ``pix2pixhd`` command, quoted for a shell in the current folder.

    A virtual environment that is not activated, such as the one of ``make demo``, has no ``pix2pixhd`` on the PATH.

    Example:
        >>> command_name()  # doctest: +SKIP
        '.venv/bin/pix2pixhd'
    """
    if shutil.which("pix2pixhd") is not None:
        return "pix2pixhd"
    called = pathlib.Path(sys.argv[0])
    if called.name == "pix2pixhd" and called.is_file():
        return shlex.quote(str(called))
    return f"{shlex.quote(sys.executable)} -m pix2pixhd"
