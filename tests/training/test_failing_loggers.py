"""Loggers that fail do not stop a run, and what they could not write is not lost if that is possible."""

import csv
import errno
import pathlib
import threading
import warnings

import pytest
from torch.utils import tensorboard

from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.training import loggers, tolerant_loggers
from pix2pixhd.training.run import train
from pix2pixhd.training.shutdown import RunStopped

from .helpers import SendSignal


class FullDisk(OSError):
    def __init__(self):
        super().__init__(errno.ENOSPC, "No space left on device")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def csv_logger(tmp_path):
    (made,) = loggers.make_loggers(["csv"], tmp_path, resume=False)
    return made, tmp_path / "logs" / "run_0" / "metrics.csv"


def test_rows_that_a_full_disk_refused_are_written_later(csv_logger, full_disk):
    logger, path = csv_logger
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(20):
            logger.log_metrics({"G_GAN": 1 / 3}, step)
            with full_disk(105):  # after a few rows, in the middle of one
                logger.save()
    assert [str(x.message).partition(" (")[0] for x in caught] == ["CSV cannot log"]
    assert 1 < len(rows(path)) < 6
    logger.save()
    assert [(int(row["step"]), float(row["G_GAN"])) for row in rows(path)] == [(step, 1 / 3) for step in range(20)]


def test_a_file_that_was_moved_away_is_started_again(csv_logger):
    logger, path = csv_logger
    for step in range(2):
        logger.log_metrics({"G_GAN": 0.5}, step)
        logger.save()
        path.rename(path.with_name(f"moved_{step}.csv"))
    assert rows(path.with_name("moved_1.csv")) == [{"step": "1", "G_GAN": "0.5"}]


def test_new_columns_never_leave_a_shorter_file(csv_logger, monkeypatch):
    logger, path = csv_logger
    for step in range(3):
        logger.log_metrics({"G_GAN": 0.5}, step)
        logger.save()
    before = path.read_bytes()
    seen = []

    def watch(self, target):
        seen.append(path.read_bytes())
        raise FullDisk

    logger.log_metrics({"l1": 0.25}, 3)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", watch)
        with pytest.warns(UserWarning, match="CSV cannot log .*No space left on device.*free some space"):
            logger.save()
    assert seen == [before] == [path.read_bytes()]
    logger.save()
    assert [(row["step"], row["G_GAN"], row["l1"]) for row in rows(path)] == [
        *((str(step), "0.5", "") for step in range(3)),
        ("3", "", "0.25"),
    ]


def test_tensorboard_starts_another_file_after_an_error(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tolerant_loggers.TolerantTensorBoard, "_pause", 0.0)
    config = make_config(epochs=2)
    config.run.loggers, config.run.display_freq = ["tensorboard"], 0
    config.trainer["log_every_n_steps"] = 1
    add, failures = tensorboard.SummaryWriter.add_scalar, iter([None, FullDisk()])

    def fail_once(*arguments, **options):
        if error := next(failures, None):
            raise error
        return add(*arguments, **options)

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", fail_once)
    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalars", fail_once)
    with pytest.warns(UserWarning, match="TensorBoard cannot log .*No space left on device.*training continues"):
        train(config)
    assert len(list((tmp_path / "run" / "logs" / "run_0").glob("events.*"))) == 2


@pytest.mark.parametrize("method", ["log_metrics", "log_hyperparams", "save", "finalize"])
def test_a_server_that_fails_during_training_does_not_stop_the_run(make_config, tmp_path, monkeypatch, method):
    """The class of MLflow's logger with another base, since MLflow is not installed."""
    calls = []

    class Server(loggers.TensorBoardLogger):
        pass

    def fail(self, *arguments, **options):
        calls.append(method)
        raise ConnectionError("no route to host\nat all")

    setattr(Server, method, fail)

    class TolerantServer(tolerant_loggers._Tolerant, Server):
        pass

    monkeypatch.setattr(loggers, "TolerantTensorBoard", TolerantServer)
    config = make_config(epochs=2)
    config.run.loggers = ["tensorboard"]
    config.trainer["log_every_n_steps"] = 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config)
    found = [str(x.message) for x in caught if "cannot log" in str(x.message)]
    assert found == ["Server cannot log (no route to host); training continues, and it is tried again every 5 minutes"]
    assert calls == [method]  # a client may wait for minutes before it fails
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_logs_that_cannot_be_created_are_reported_before_training(command_line, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise FullDisk

    monkeypatch.setattr(tensorboard, "SummaryWriter", fail)
    assert main(command_line()) == 2
    error = capsys.readouterr().err
    assert "run.output: tensorboard cannot write its logs" in error
    assert "No space left on device); free some space or choose another folder" in error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_only_the_tracebacks_of_tensorboards_threads_are_hidden(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    class Writer(threading.Thread):
        def run(self):
            raise FullDisk

    Writer.__module__ = "tensorboard.summary.writer.event_file_writer"
    with tolerant_loggers.quiet_writer_threads():
        for thread in (Writer(), threading.Thread(target=lambda: 1 / 0)):
            thread.start()
            thread.join()
    assert seen == [ZeroDivisionError]
    assert threading.excepthook.__qualname__.endswith("<lambda>")


def test_the_losses_of_the_last_step_before_a_stop_are_logged(make_config, tmp_path):
    def losses(name):
        found = {}
        for run in sorted((tmp_path / name / "logs").glob("run_*")):
            found |= {int(row["step"]): row["G_total"] for row in rows(run / "metrics.csv") if row.get("G_total")}
        return found

    def config(name):
        made = make_config(name, epochs=2)
        made.run.loggers = ["csv"]
        made.trainer["log_every_n_steps"] = 1
        return made

    with pytest.raises(RunStopped):
        train(config("stopped"), callbacks=[SendSignal(2)])
    assert list(losses("stopped")) == [0, 1]
    train(config("stopped"), resume=True)
    train(config("uninterrupted"))
    assert losses("stopped") == losses("uninterrupted")
    assert len(losses("stopped")) == 6


def test_a_server_that_cannot_be_used_is_no_problem_of_the_folder(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(loggers, "TolerantMLFlow", fail)
    with pytest.raises(InputError, match=r"run\.loggers: mlflow cannot be used \(no route to host\)"):
        loggers.make_loggers(["mlflow"], tmp_path, resume=False)
