"""Loggers for the metrics and sample images of a run."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from pix2pixhd.errors import InputError
from pix2pixhd.files import MARK, write_text
from pix2pixhd.training.tolerant_loggers import (
    TolerantCSV,
    TolerantMLFlow,
    TolerantTensorBoard,
    TolerantWandb,
    is_first_process,
)

__all__ = ["SAMPLES", "log_samples", "make_loggers"]

# Loggers that write into the run's folder.
_LOCAL = ("csv", "tensorboard")
SAMPLES = "label | generated | real"


class _ContinuedMLFlow(TolerantMLFlow):
    """Resumes an MLflow run, whose parameters cannot be changed after they are set."""

    def log_hyperparams(self, params: Any) -> None:
        """Keeps the parameters that were logged when the run started, and marks the run as active again."""
        if is_first_process():
            self._attempt(lambda: self.experiment.update_run(self.run_id, "RUNNING"))


def make_loggers(names: Sequence[str], output: pathlib.Path, resume: bool) -> list[Any]:
    """Creates and connects the loggers of a run.

    The ids of W&B and MLflow runs are saved in ``output/loggers.json``. A resumed run continues these runs.

    Args:
        names: Names among ``csv``, ``tensorboard``, ``mlflow`` and ``wandb``.
        output: The run's folder.
        resume: Whether the run is resumed.

    Raises:
        InputError: If one of them is not installed or cannot be used, or if ``loggers.json`` cannot be written.

    Example:
        >>> make_loggers([], pathlib.Path("runs/a"), resume=False)
        []
    """
    taken = [int(path.name[4:]) for path in (output / "logs").glob("run_*") if path.name[4:].isdigit()]
    version = f"run_{max(taken, default=-1) + 1}"
    server = os.environ.get("MLFLOW_TRACKING_URI")
    uri = server or f"sqlite:///{output.resolve() / 'mlflow.db'}"
    # In the run's folder, like the database; MLflow's default is the current folder.
    images = None if server else (output.resolve() / "mlflow").as_uri()
    # The key of an MLflow run's id contains the server, because the id is unknown to other servers.
    keys = {"wandb": "wandb", "mlflow": f"mlflow {uri}"}
    ids = _read_ids(output) if resume else {}

    def wandb() -> TolerantWandb:
        run_id = ids.get(keys["wandb"])
        return TolerantWandb(None if run_id else version, str(output), project=output.name, id=run_id)

    def mlflow() -> TolerantMLFlow:
        run_id = ids.get(keys["mlflow"])
        kind = _ContinuedMLFlow if run_id else TolerantMLFlow
        name = None if run_id else version
        return kind(output.name, name, tracking_uri=uri, run_id=run_id, artifact_location=images)

    make: dict[str, Callable[[], Any]] = {
        "csv": lambda: TolerantCSV(str(output), "logs", version),
        "tensorboard": lambda: TolerantTensorBoard(str(output), "logs", version),
        "mlflow": mlflow,
        "wandb": wandb,
    }
    loggers = []
    # In this order, because CSVLogger warns if the folder already exists.
    for name in sorted(set(names), key=list(make).index):
        loggers.append(_connected(name, make[name]))
        if name in keys and is_first_process():
            ids[keys[name]] = loggers[-1].version
    if ids and is_first_process():
        # A resumed run has read the ids in the existing file, so overwriting it loses nothing.
        text = json.dumps({"comment": MARK, **ids}, indent=1) + "\n"
        write_text(output / "loggers.json", text, force=resume)
    return loggers


def _connected(name: str, make: Callable[[], Any]) -> Any:
    """Creates a logger and its files, or connects to its server, so that a failure is reported before training."""
    try:
        logger = make()
        _ = logger.experiment
    except ModuleNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"run.loggers: {name} is not installed ({reason}); pip install {name}") from None
    except OSError as error:
        if name not in _LOCAL:
            raise _unusable(name, error) from error
        raise InputError(
            f"run.output: {name} cannot write its logs ({error}); free some space or choose another folder"
        ) from error
    except Exception as error:  # every library raises its own exceptions, for example for an unreachable server
        raise _unusable(name, error) from error
    return logger


def _unusable(name: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"run.loggers: {name} cannot be used ({reason}); set it up, or leave it out")


def _read_ids(output: pathlib.Path) -> dict[str, str]:
    path = output / "loggers.json"
    if not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in ids.items() if name != "comment"}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: the ids of the W&B and MLflow runs cannot be read ({error}); delete the file to start new ones"
        ) from None


def log_samples(logger: Any, image: Image.Image, step: int) -> None:
    """Sends a sheet of sample images to a logger, if it is one that accepts images.

    Args:
        logger: One of Lightning's loggers.
        image: The sheet.
        step: The step that the logger records for the image.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(SAMPLES, np.array(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(SAMPLES, [image], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key="samples", step=step)
