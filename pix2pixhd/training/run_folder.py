"""Checks of the folder that a training run writes into."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_apart, check_replaceable, check_writable, is_temporary

__all__ = ["check_run_folder", "check_run_folder_writable", "remove_leftovers", "removing_empty"]

_OPTION = "run.output"
_FOLDERS = ("checkpoints", "logs", "samples", "results")
_REMEDY = "pix2pixhd did not write it; choose another folder, or move it away"


def check_run_folder(output: pathlib.Path, data: DataOptions, resume: bool) -> None:
    """Raises an error if a run would overwrite files that it did not write, or write into the data folders.

    Args:
        output: ``run.output``.
        data: The ``data`` section.
        resume: Whether the run is resumed, so that the checkpoints in the folder belong to it.

    Raises:
        InputError: If there are such files; the message names the first of them.
    """
    phases = [phase for phase in (data.phase, data.val_phase) if phase]
    kinds = (data.input_folder, data.image_folder, "inst")
    folders: list[pathlib.Path | None] = [
        pathlib.Path(data.dataroot) / f"{phase}_{kind}" for phase in phases for kind in kinds
    ]
    check_apart([output], {"data.dataroot": folders}, _OPTION)
    checkpoints = [] if resume else sorted((output / "checkpoints").glob("epoch_*.ckpt"))
    if checkpoints:
        raise InputError(
            f"run.output: {checkpoints[0]} would be replaced; continue its run with --resume, or choose another folder"
        )
    # An existing config.yaml is kept under another name. A resumed run continues the runs of its loggers.
    check_replaceable([output / "config.yaml", output / "loggers.json"], force=True, option=_OPTION)
    results = output / "results"
    images = [*(output / "samples").glob("step_*.png"), *(results / "images").rglob("*.png")]
    # Temporary files of a killed run are removed later, when it is certain that this run uses the folder.
    images = [path for path in images if not is_temporary(path)]
    ids = [] if resume else [output / "loggers.json"]
    check_replaceable([*ids, results / "index.html", *sorted(images)], option=_OPTION, remedy=_REMEDY)


def check_run_folder_writable(output: pathlib.Path) -> None:
    """Creates a run's folder, and checks that it and its existing subfolders are writable.

    Args:
        output: ``run.output``.

    Raises:
        InputError: If it is not, for example because a file has the name of a subfolder.
    """
    check_writable(output, _OPTION)
    for name in _FOLDERS:
        if os.path.lexists(output / name):
            check_writable(output / name, _OPTION)


def remove_leftovers(output: pathlib.Path) -> None:
    """Removes the temporary files of a run whose writing was interrupted.

    Args:
        output: ``run.output``.
    """
    found = [
        *output.glob(".pix2pixhd-*"),
        *(path for name in _FOLDERS for path in (output / name).rglob(".pix2pixhd-*")),
    ]
    for path in found:
        if is_temporary(path) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def removing_empty(output: pathlib.Path) -> Iterator[None]:
    """Removes a run's folder that the block created, if it fails before anything was written to it.

    Args:
        output: ``run.output``.
    """
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise
