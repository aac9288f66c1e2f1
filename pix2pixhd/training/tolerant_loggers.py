"""Lightning's loggers, made to let training continue when a disk is full or a server does not answer."""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from pix2pixhd.errors import InputError
from pix2pixhd.files import replacing

__all__ = [
    "TolerantCSV",
    "TolerantMLFlow",
    "TolerantTensorBoard",
    "TolerantWandb",
    "is_first_process",
    "logger_errors",
    "quiet_writer_threads",
]

# A client may try for minutes to reach its server before it raises an error.
_PAUSE_SECONDS = 300.0


def is_first_process() -> bool:
    """Returns whether this process writes the logs."""
    return getattr(rank_zero_only, "rank", 0) == 0


def logger_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that loggers raise when a server or the disk fails, including those of MLflow and W&B."""
    # MLflow uses requests, whose connection errors are OSErrors.
    named = (("mlflow.exceptions", "MlflowException"), ("wandb.errors", "Error"))
    found = [getattr(sys.modules.get(module), name, None) for module, name in named]
    return (OSError, InputError, *(error for error in found if error is not None))


def _reason(raised: BaseException) -> BaseException | None:
    """Returns the error of a server or the disk that caused an exception; None if nothing like that did.

    Lightning's TensorBoard logger raises a ``ValueError`` about unsupported values for all errors.
    """
    error: BaseException | None = raised
    while error is not None and not isinstance(error, logger_errors()):
        error = error.__cause__
    return error


class _Tolerant:
    """A mixin that turns errors of a server or the disk into one warning."""

    _remedy = f"it is tried again every {_PAUSE_SECONDS / 60:.0f} minutes"
    _pause = _PAUSE_SECONDS
    _next_attempt = 0.0
    _warned = False

    def _attempt(self, call: Callable[[], Any]) -> None:
        if time.monotonic() < self._next_attempt:
            return
        try:
            call()
        except Exception as raised:
            error = _reason(raised)
            if error is None:
                raise
            self._next_attempt = time.monotonic() + self._pause
            if not self._warned:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                name = type(self).__name__.removeprefix("Tolerant")
                rank_zero_warn(f"{name} cannot log ({reason}); training continues, and {self._remedy}")
            self._warned = True
            self._failed()

    def _failed(self) -> None:
        """Prepares the next attempt."""

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        self._attempt(lambda: super(_Tolerant, self).log_metrics(*arguments, **options))  # type: ignore[misc]

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        self._attempt(lambda: super(_Tolerant, self).log_hyperparams(*arguments, **options))  # type: ignore[misc]

    def save(self) -> None:
        self._attempt(super().save)  # type: ignore[misc]

    def finalize(self, status: str = "success") -> None:
        self._attempt(lambda: super(_Tolerant, self).finalize(status))  # type: ignore[misc]


class _CompleteRows(_ExperimentWriter):
    """Writes complete rows only, and keeps those that could not be written for the next attempt."""

    def save(self) -> None:
        """Appends the new rows; writes the whole file if they have new columns or if it is missing."""
        if not self.metrics:
            return
        path = pathlib.Path(self.metrics_file_path)
        columns = sorted({*self.metrics_keys, *(name for row in self.metrics for name in row)})
        exists = path.exists()  # somebody may have moved it away
        if columns != self.metrics_keys or not exists:
            rows = []
            if exists:
                with path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            with replacing(path, force=True) as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows([*rows, *self.metrics])
        else:
            _append(path, columns, self.metrics)
        self.metrics_keys, self.metrics = columns, []


def _append(path: pathlib.Path, columns: list[str], rows: list[dict[str, float]]) -> None:
    size = path.stat().st_size
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerows(rows)
    except OSError:
        os.truncate(path, size)
        raise


class _CSVWriter(ExperimentWriter, _CompleteRows):
    pass


class TolerantCSV(_Tolerant, CSVLogger):
    """Writes metrics as CSV. Rows that cannot be written are kept in memory and written later."""

    _remedy = "the rows are written as soon as it is possible; free some space"
    _pause = 0.0

    @property
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None and is_first_process():
            self._experiment = _CSVWriter(self.log_dir)
        return super().experiment


class TolerantTensorBoard(_Tolerant, TensorBoardLogger):
    """Writes metrics for TensorBoard. After an error it starts another file in the same folder."""

    _remedy = f"{_Tolerant._remedy}; free some space"

    def _failed(self) -> None:
        self._experiment = None


class TolerantMLFlow(_Tolerant, MLFlowLogger):
    """Sends metrics to MLflow."""


class TolerantWandb(_Tolerant, WandbLogger):
    """Sends metrics to W&B."""


@contextlib.contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Hides the traceback of TensorBoard's thread if it cannot write; its logger raises the same error."""
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs, /) -> None:
        module = type(arguments.thread).__module__
        if not (module.startswith("tensorboard.") and isinstance(arguments.exc_value, OSError)):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous
