"""After kill -9, a full disk or a non-finite loss the last good checkpoint remains, and the run resumes from it."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from pix2pixhd.checkpoints import atomic as checkpoint_io
from pix2pixhd.checkpoints.atomic import AtomicCheckpointIO
from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.errors import InputError
from pix2pixhd.training.datamodule import reporting_dead_workers
from pix2pixhd.training.run import train
from pix2pixhd.training.shutdown import RunStopped

from .helpers import SendSignal, assert_identical, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"value": 1}, path)

    def half_written(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io.torch, "save", half_written)
    with pytest.raises(InputError, match=r"last\.ckpt: cannot be written .*No space left.* --resume"):
        writer.save_checkpoint({"value": 2}, path)
    assert torch.load(path) == {"value": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, full_disk):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    with full_disk(2000), pytest.raises(InputError, match=r"cannot be written \(File too large\).* --resume"):
        AtomicCheckpointIO().save_checkpoint({"value": torch.zeros(10000)}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_worker_that_dies_while_a_checkpoint_is_written_is_not_reported_as_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")

    def interrupted(checkpoint, file):
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # by PyTorch's signal handler
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # by the destructor of the zip writer

    monkeypatch.setattr(checkpoint_io.torch, "save", interrupted)
    with pytest.raises(InputError, match="terminated a process that loads images"), reporting_dead_workers():
        AtomicCheckpointIO().save_checkpoint({"value": 2}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_stops_a_run_with_the_last_epoch_intact(make_config, tmp_path, monkeypatch):
    config = make_config(epochs=3)
    config.trainer["max_epochs"] = 1
    train(config)
    uninterrupted = make_config("uninterrupted", epochs=3)
    before = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").weights
    config.trainer["max_epochs"] = 3

    def full(checkpoint, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io.torch, "save", full)
        with pytest.raises(InputError, match="cannot be written"):
            train(config, resume=True)
    assert_identical(before, read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").weights)
    assert_identical(weights(train(uninterrupted)), weights(train(config, resume=True)))


def test_a_non_finite_loss_stops_the_run_before_its_checkpoint(make_config, tmp_path):
    config = make_config(epochs=2)
    config.trainer["max_epochs"] = 1
    train(config)
    good = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").weights
    config.trainer["max_epochs"] = 2

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            with torch.no_grad():
                next(module.netG.parameters())[0] = float("nan")

    message = r"epoch 1: .*G_GAN, .* are no longer finite, so training was stopped; .*optimizer\.lr"
    with pytest.raises(InputError, match=message):
        train(config, resume=True, callbacks=[Poison()])
    assert_identical(good, read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").weights)


@pytest.mark.slow
def test_a_run_that_is_killed_twice_resumes_to_the_same_weights(command_line, make_config, tmp_path):
    """Kills the process some time after a checkpoint, within an epoch or while it writes a checkpoint."""
    epochs = 12
    arguments = [*command_line(output="killed"), f"--optimizer.niter={epochs}", "--run.display_freq=2"]
    command = [sys.executable, "-m", "pix2pixhd", *arguments, "--run.sample_count=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"

    def written():
        return last.stat().st_mtime_ns if last.exists() else 0

    for more, delay in (([], 0.0), (["--resume"], 0.3)):
        before = written()
        with subprocess.Popen(
            [*command, *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            deadline = time.monotonic() + 120
            while written() == before and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(delay)
            assert run.poll() is None, "the run ended before it was killed"
            run.send_signal(signal.SIGKILL)
    resumed = weights(train(make_config("killed", epochs=epochs), resume=True))
    assert_identical(resumed, read_checkpoint(last).weights)
    assert_identical(weights(train(make_config("uninterrupted", epochs=epochs))), resumed)


def test_a_damaged_checkpoint_is_reported(make_config, tmp_path):
    config = make_config()
    train(config)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 100):
        last.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt: (the checkpoint cannot be read|not a checkpoint)"):
            train(config, resume=True)


@pytest.mark.parametrize("problem", ["data", "weights"])
def test_a_run_that_fails_before_training_leaves_no_empty_folder(make_config, tmp_path, problem):
    config = make_config("new/run", **({"label_nc": 2} if problem == "data" else {}))
    if problem == "weights":
        config.run.load_pretrain = str(tmp_path / "missing.ckpt")
    with pytest.raises(InputError):
        train(config)
    assert not (tmp_path / "new").exists()
    for folder in ("new", "new/run"):  # folders of the user are kept, also if they are empty
        (tmp_path / folder).mkdir()
        with pytest.raises(InputError):
            train(config)
        assert (tmp_path / folder).is_dir()


def test_a_run_killed_before_its_first_last_checkpoint_resumes_from_the_epochs_checkpoint(make_config, tmp_path):
    """The checkpoint of an epoch is written before last.ckpt."""
    config = make_config(epochs=2)
    config.trainer["max_epochs"] = 1
    train(config)
    config.trainer["max_epochs"] = 2
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    kept = last.with_name("epoch_0000.ckpt")
    last.replace(kept)
    with pytest.raises(InputError, match="continue its run with --resume"):
        train(config)
    with pytest.raises(InputError, match=rf"there is no {last} to continue from; copy {kept}, .*, over last\.ckpt"):
        train(config, resume=True)
    last.write_bytes(kept.read_bytes())
    assert_identical(weights(train(make_config("uninterrupted", epochs=2))), weights(train(config, resume=True)))


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_within_an_epoch_restores_the_random_state(make_config, tmp_path, workers):
    config = make_config(epochs=2, nThreads=workers)
    with pytest.raises(RunStopped):
        train(config, callbacks=[SendSignal(4)])
    train(config, resume=True)
    train(make_config("uninterrupted", epochs=2, nThreads=workers))
    first, second = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["processes"][0]["rng"]
        for name in ("run", "uninterrupted")
    )
    assert torch.equal(first, second)


def test_a_run_killed_after_its_last_checkpoint_gets_its_last_sheet_and_results_page(make_config, tmp_path):
    config = make_config(epochs=1)
    train(config)
    run = tmp_path / "run"
    last, page = run / "samples" / "step_000003.png", run / "results" / "index.html"
    before = last.read_bytes(), page.read_bytes()
    train(config, resume=True)
    assert (last.read_bytes(), page.read_bytes()) == before
    last.unlink()
    page.unlink()
    train(config, resume=True)
    assert (last.read_bytes(), page.read_bytes()) == before


def test_a_run_killed_during_validation_logs_later_steps_under_their_numbers(make_config, tmp_path):
    class Interruption(Exception):
        pass

    class Crash(pl.Callback):
        def on_validation_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise Interruption

    def steps(name):
        rows = []
        for path in (tmp_path / name / "logs").glob("run_*/metrics.csv"):
            with path.open(newline="") as file:
                rows += [(row["step"], row["lr-G"]) for row in csv.DictReader(file) if row.get("lr-G")]
        return sorted(set(rows))

    def config(name):
        made = make_config(name, epochs=4, val_phase="test")
        made.run.loggers, made.trainer["num_sanity_val_steps"] = ["csv"], 0
        return made

    with pytest.raises(Interruption):
        train(config("killed"), callbacks=[Crash()])
    train(config("killed"), resume=True)
    train(config("uninterrupted"))
    assert steps("killed") == steps("uninterrupted")
    assert len(steps("killed")) == 4
