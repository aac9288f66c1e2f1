"""Atomic checkpoint writes: a checkpoint is replaced completely or not at all."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pix2pixhd.errors import dead_worker
from pix2pixhd.files import replacing

__all__ = ["AtomicCheckpointIO", "save_torch"]

_REMEDY = "the previous checkpoint is unchanged. Free some space and continue with --resume"


def save_torch(content: object, part: pathlib.Path) -> None:
    """Writes a file with ``torch.save``, inside a block of ``replacing``.

    Raises:
        OSError: If the file cannot be written. torch's zip writer reports a failed write, for example to a full disk,
            as a ``RuntimeError`` about file positions, which is converted.
        RuntimeError: If a process that loads images died in the meantime.
    """
    try:
        with part.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            if dead_worker(cause) is not None:
                raise cause from None
            cause = cause.__context__
        raise cause or OSError(f"the disk may be full: {str(error).splitlines()[0]}") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, flushes it to the disk, and then replaces the previous checkpoint.

    If the process or the machine stops at any time, the file under the checkpoint's name is either the previous or the
    new checkpoint. If the disk is full, the previous checkpoint is kept and the run ends with an error message. No
    second copy is held in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: The state that Lightning saves.
            path: The file to write.
            storage_options: Unused.

        Raises:
            InputError: If it cannot be written; the previous checkpoint is unchanged.
        """
        target = pathlib.Path(path)
        # A run refuses to start in a folder with checkpoints of another run, so these are its own.
        with replacing(target, force=True, remedy=_REMEDY) as part:
            save_torch(checkpoint, part)
