"""SIGTERM and Ctrl-C save a run before it stops, and it resumes within the epoch bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.run import train
from pix2pixhd.training.shutdown import RunStopped

from .helpers import BatchRecorder, SendSignal, assert_identical, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(make_config, workers, capsys):
    def config(name):
        made = make_config(name, epochs=3, nThreads=workers)
        made.loss.pool_size = 2
        return made

    uninterrupted = BatchRecorder()
    expected = weights(train(config("uninterrupted"), callbacks=[uninterrupted]))
    assert len(uninterrupted.seen) == 9
    for step in (1, 2, 3, 5, 6):  # three steps per epoch: the first, a middle and the last one
        interrupted = config(f"interrupted {step}")
        with pytest.raises(RunStopped) as stopped:
            train(interrupted, callbacks=[SendSignal(step)])
        assert stopped.value.code == 128 + signal.SIGTERM
        assert "stopped; the run was saved, continue it with --resume" in capsys.readouterr().err
        rest = BatchRecorder()
        assert_identical(expected, weights(train(interrupted, resume=True, callbacks=[rest])))
        assert rest.seen == uninterrupted.seen[step:], step


def test_signal_handlers_are_restored(make_config):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RunStopped) as stopped:
        train(make_config(), callbacks=[SendSignal(1, signal.SIGINT)])
    assert stopped.value.code == 128 + signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_crashed_run_resumes_from_the_checkpoint_within_the_epoch(make_config):
    config = make_config("interrupted", epochs=2)
    config.run.save_latest_freq = 2

    class Interruption(Exception):
        pass

    class Crash(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx + 1 == 3:
                raise Interruption

    with pytest.raises(Interruption):
        train(config, callbacks=[Crash()])
    uninterrupted = weights(train(make_config("uninterrupted", epochs=2)))
    assert_identical(uninterrupted, weights(train(config, resume=True)))


def test_non_finite_weights_are_not_saved_within_an_epoch(make_config, tmp_path):
    config = make_config(epochs=2)
    config.trainer["max_epochs"] = 1
    train(config)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    good = last.read_bytes()
    config.trainer["max_epochs"] = 2

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            with torch.no_grad():
                next(module.netG.parameters())[0] = float("nan")

    with pytest.raises(InputError, match="no longer finite"):
        train(config, resume=True, callbacks=[Poison(), SendSignal(4)])
    assert last.read_bytes() == good


def test_a_signal_during_accumulation_stops_after_the_step(make_config):
    def config(name):
        made = make_config(name, epochs=3)
        made.optimizer.accumulate = 2
        return made

    interrupted = config("interrupted")
    with pytest.raises(RunStopped):
        train(interrupted, callbacks=[SendSignal(1)])  # saved after the second batch, which completes the step
    uninterrupted = weights(train(config("uninterrupted")))
    assert_identical(uninterrupted, weights(train(interrupted, resume=True)))


def test_a_compiler_that_the_signal_ended_is_not_reported_as_missing(command_line, capsys, monkeypatch):
    def compile_and_fail(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        raise TorchDynamoException("CppCompileError: g++ was terminated")

    monkeypatch.setattr(Pix2PixHD, "training_step", compile_and_fail)
    with pytest.raises(RunStopped) as stopped:
        main(command_line())
    assert stopped.value.code == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert "stopped before the first step" in error
    assert "compiler" not in error


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_stops_and_saves_a_real_process(command_line, tmp_path, processes):
    """Sends SIGTERM like the scheduler of a cluster; the exit code is the one that shells report for it."""
    arguments = [*command_line(output="stopped"), "--optimizer.niter=2000"]
    start = ["-m", "pix2pixhd"]
    if processes == 2:
        start = ["-m", "torch.distributed.run", "--nproc_per_node=2", *start]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    log = tmp_path / "log.txt"
    with (
        log.open("w") as output,
        subprocess.Popen([sys.executable, *start, *arguments], env=environment, stdout=output, stderr=output) as run,
    ):
        deadline = time.monotonic() + 120
        while not last.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.poll() is None, log.read_text()[-3000:]
        run.send_signal(signal.SIGTERM)
        code = run.wait(60)
    text = log.read_text()
    assert text.count("stopped; the run was saved") == 1, text[-3000:]
    # torchrun's agent forwards the signal and exits with its own error code.
    assert code == (128 + signal.SIGTERM if processes == 1 else 1)
    assert all(torch.isfinite(value).all() for value in read_checkpoint(last).weights.values())
