"""The exception for invalid input that the user can correct, and messages that several commands share."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import shlex
import sys
import urllib.parse

__all__ = ["InputError", "dead_worker", "install_command", "out_of_memory"]


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


def dead_worker(error: BaseException) -> str | None:
    """Returns PyTorch's message about a worker process of a data loader that died; None for other errors.

    PyTorch raises this error in the main thread from a signal handler, so at any point of the program.

    Example:
        >>> dead_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
        'DataLoader worker (pid 7) is killed by signal: Killed. '
    """
    text = str(error)
    return (
        text.splitlines()[0] if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid") else None
    )


def install_command(extra: str = "", options: str = "") -> str:
    """Returns the command that installs this package from its checkout: the package is not in the package index.

    pip records the checkout that it installed from. If that is unknown or gone, the command is for the checkout as the
    current folder.

    Args:
        extra: The extras to install too, for example ``"train,demo"``.
        options: Options of pip, for example ``"--force-reinstall"``.

    Example:
        >>> "[train]" in install_command("train")
        True
    """
    checkout = _checkout()
    source = shlex.quote(f"{checkout or '.'}[{extra}]" if extra else f"{checkout or '.'}")
    command = " ".join(filter(None, ("pip install", options, source)))
    return command if checkout else f"{command} in the checkout of pix2pixhd"


def _checkout() -> pathlib.Path | None:
    """Returns the folder that pip installed this package from, if it is still a checkout."""
    try:
        record = importlib.metadata.distribution("pix2pixhd-fused").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urllib.parse.urlsplit(json.loads(record)["url"] if record else "")
    folder = pathlib.Path(urllib.parse.unquote(url.path))
    return folder if url.scheme == "file" and (folder / "pyproject.toml").is_file() else None
