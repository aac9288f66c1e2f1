"""Checkpoints that exist whole or not at all."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pix2pixhd.files import replacing

__all__ = ["AtomicCheckpointIO", "save_torch"]

_REMEDY = "the previous checkpoint is untouched. Free some space and continue with --resume"


def save_torch(content: object, part: pathlib.Path) -> None:
    """Writes with ``torch.save``, inside a block of ``replacing``.

    Raises:
        OSError: If it cannot be written. torch's zip writer reports a failed write, to a full disk for example, as a
            ``RuntimeError`` about file positions.
    """
    try:
        with part.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or OSError(f"the disk may be full: {str(error).splitlines()[0]}") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, flushes it to the disk, and only then replaces the old one.

    Whenever the process or the machine stops, the file under the checkpoint's name is the old one or the new one. A
    full disk leaves the old one and ends the run with a message. There is no second copy in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What Lightning saves.
            path: The file to write.
            storage_options: Not used.

        Raises:
            InputError: If it cannot be written; the previous checkpoint is untouched.
        """
        target = pathlib.Path(path)
        # A run refuses to start in a folder with checkpoints of other origin, so these are its own.
        with replacing(target, force=True, remedy=_REMEDY) as part:
            save_torch(checkpoint, part)
