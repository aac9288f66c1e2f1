"""A run that stopped within an epoch resumes with the same batches, or is rejected without changing any file."""

import os
import pathlib
import subprocess
import sys

import pytest

from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train
from tests.helpers import run_command_under_torchrun

from .helpers import BatchRecorder, assert_identical, training_state

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def stopped(make_config):
    """A run that stopped after the first of three steps of its second epoch, with a kept checkpoint of the first."""
    config = make_config(epochs=2)
    config.run.save_epoch_freq = 1
    config.trainer["max_steps"] = 4
    train(config)
    del config.trainer["max_steps"]
    return config


def remove(root, name):
    for path in root.glob(f"train_*/{name}.png"):
        path.unlink()


def rename(root, name):
    for path in root.glob(f"train_*/{name}.png"):
        path.rename(path.with_stem("other"))


def limit(config):
    config.trainer["limit_train_batches"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, root: rename(root, "b"), "had other images than data.dataroot has now; restore the images"),
        (lambda config, root: remove(root, "b"), "had other images than data.dataroot has now; restore the images"),
        (
            lambda config, root: limit(config),
            "had 3 batches per process, now it has 2; set trainer.limit_train_batches and the data back",
        ),
    ],
)
def test_resuming_within_an_epoch_with_other_batches_is_rejected(stopped, data_root, tmp_path, change, message):
    run = tmp_path / "run"
    before = (run / "config.yaml").read_bytes(), (run / "checkpoints" / "last.ckpt").read_bytes()
    change(stopped, data_root)
    stopped.optimizer.lr = 1e-3  # must not reach config.yaml
    expected = (
        rf"last\.ckpt was written within an epoch that {message} until .*, or copy .*epoch_0000\.ckpt, the latest"
    )
    with pytest.raises(InputError, match=expected):
        train(stopped, resume=True)
    assert before == ((run / "config.yaml").read_bytes(), (run / "checkpoints" / "last.ckpt").read_bytes())
    # The remedy works.
    (run / "checkpoints" / "epoch_0000.ckpt").replace(run / "checkpoints" / "last.ckpt")
    batches = BatchRecorder()
    train(stopped, resume=True, callbacks=[batches])
    assert {epoch for epoch, _, _ in batches.seen} == {1}


def test_resuming_within_an_epoch_with_the_same_batches_is_accepted(stopped, make_config, tmp_path):
    stopped.trainer["limit_train_batches"] = 3
    train(stopped, resume=True)
    train(make_config("uninterrupted", epochs=2))
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "run"))


def test_resuming_within_an_epoch_with_another_seed_is_rejected(stopped, tmp_path):
    (tmp_path / "run" / "config.yaml").unlink()
    stopped.run.seed = 7
    with pytest.raises(InputError, match=r"run\.seed=0, the configuration has 7"):
        train(stopped, resume=True)


MESSAGE = "was divided between 1 process, now there are 2; resume with 1 process until the epoch ends, or copy"


@pytest.mark.slow
def test_another_number_of_processes_is_rejected_with_one_message(stopped, tmp_path):
    command = ["-m", "pix2pixhd", "train", "--resume", f"--run.output={tmp_path / 'run'}", "--trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.stderr.count(MESSAGE) == 1, done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_another_number_of_processes_under_torchrun_is_rejected_with_one_message(stopped, tmp_path):
    arguments = ["train", "--resume", f"--run.output={tmp_path / 'run'}"]
    codes, printed = run_command_under_torchrun(tmp_path / "processes", arguments)
    assert printed.count(MESSAGE) == 1, printed
    assert 2 in codes
    assert "Traceback" not in printed
