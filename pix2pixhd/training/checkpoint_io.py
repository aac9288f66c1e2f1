"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pix2pixhd.data import InputError

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, to the disk, and only then puts it in its place.

    Whenever the process or the machine stops, the file under the checkpoint's name is the old one or the new one. A
    full disk leaves the old one and ends the run with a message. There is no second copy in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What Lightning saves.
            path: Where to.
            storage_options: Not used.

        Raises:
            InputError: If it cannot be written; what was there before is untouched.
        """
        target = pathlib.Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            raise InputError(
                f"{target}: the checkpoint cannot be written ({str(error).splitlines()[0]}); the one before is "
                "untouched. Make room and continue with --resume"
            ) from error
        _sync_folder(target.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Puts the new name on the disk too, where folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
