"""Data that become invalid after the check are reported in one message, from whichever process reads them."""

import multiprocessing
import os
import pathlib
import signal
import socket
import time

import lightning.pytorch as pl
import numpy as np
import pytest
from PIL import Image
from torch.utils.data._utils import signal_handling

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from pix2pixhd.data import DataError
from pix2pixhd.errors import InputError
from pix2pixhd.training import first_process
from pix2pixhd.training.datamodule import PairedData
from pix2pixhd.training.first_process import on_first_process
from pix2pixhd.training.run import train
from tests.training_fixtures import train_arguments


@pytest.fixture
def root(tmp_path, make_data):
    make_data(tmp_path / "data")
    return make_data(tmp_path / "data", names=("x", "y"), phase="test")


@pytest.fixture
def command_line(root, tmp_path):
    few = ("--data.val_phase=test", "--run.display_freq=0", "--run.sample_count=1", "--run.results_count=0")

    def make(*more):
        return train_arguments(root, tmp_path / "run", "--data.nThreads=2", *few, *more)

    return make


def one_message(capsys, arguments, *parts):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for part in ("pix2pixhd train: error: ", *parts):
        assert part in error


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("path", ["train_img/b.png", "test_img/y.png"])
def test_errors_in_workers_and_validation_give_one_message(capsys, command_line, root, path, workers):
    # The first validation image is read earlier, as a sample for the image grids. The loader reads y.
    truncate(root / path)
    arguments = command_line("--data.check=false", f"--data.nThreads={workers}")
    one_message(capsys, arguments, str(root / path), "cannot be read", "replace it")


def config(root, tmp_path, **data):
    return TrainConfig(
        data=DataOptions(
            **{"dataroot": str(root), "label_nc": 4, "resize_or_crop": "crop", "fineSize": 16, "nThreads": 0} | data
        ),
        model=ModelOptions(ngf=4, n_downsample_global=2, n_blocks_global=1, ndf=4, n_layers_D=2),
        loss=LossOptions(lambda_vgg=0.0),
        optimizer=OptimizerOptions(niter=2, niter_decay=0),
        run=RunOptions(output=str(tmp_path / "run"), display_freq=0, results_count=0),
        trainer={"accelerator": "cpu", "enable_progress_bar": False},
    )


class Damage(pl.Callback):
    """Changes a file after the first epoch."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            self.change()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pathlib.Path.unlink, "a.png: the file no longer exists; restore it"),
        (truncate, "a.png: cannot be read"),
        (lambda path: Image.new("L", (32, 24), 7).save(path), "a.png: label id 7 is outside data.label_nc=4"),
        (lambda path: Image.new("L", (40, 24)).save(path), "is 32x24 .* but .*a.png is 40x24"),
    ],
)
def test_files_that_become_invalid_during_training_are_reported(root, tmp_path, change, message, workers):
    path = root / "train_label" / "a.png"
    with pytest.raises(DataError, match=message) as caught:
        train(config(root, tmp_path, nThreads=workers), callbacks=[Damage(lambda: change(path))])
    assert "Traceback" not in str(caught.value)


def test_without_the_check_nothing_is_decoded_before_training(root, monkeypatch):
    monkeypatch.setattr("pix2pixhd.data.images._open", lambda path: pytest.fail(f"decoded {path}"))
    options = DataOptions(dataroot=str(root), label_nc=4, check=False)
    assert len(PairedData(options, multiple=4).train) == 3
    (root / "train_img" / "a.png").unlink()
    with pytest.raises(DataError, match="no partner"):
        PairedData(options, multiple=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_nc": 3}, "label id 3 is outside data.label_nc=3"),
        ({"resize_or_crop": "crop", "fineSize": 64}, "smaller than the crop data.fineSize=64"),
        ({"resize_or_crop": "scale_width", "loadSize": 30}, "multiples of 4"),
        ({"resize_or_crop": "none", "batchSize": 4}, "batchSize=4 needs images of equal size"),
    ],
)
def test_without_the_check_the_loader_reports_the_same_problems(root, make_data, changes, message):
    make_data(root, names=("d",), size=(48, 32))
    options = DataOptions(dataroot=str(root), nThreads=0, check=False, **{"label_nc": 4, **changes})
    loader = PairedData(options, multiple=4).train_dataloader()
    with pytest.raises(DataError, match=message):
        list(loader)


class KillWorker(pl.Callback):
    """Kills a worker process, as the kernel does when it is out of memory."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        os.kill(trainer.train_dataloader._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(30)  # PyTorch raises as soon as the signal arrives


def test_a_worker_killed_by_the_system_is_reported(root, tmp_path, monkeypatch):
    # PyTorch sets its handler once per process, and Lightning removes it at the end of a run.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    with pytest.raises(InputError, match=r"the system terminated a process.*lower data.nThreads"):
        train(config(root, tmp_path, nThreads=1), callbacks=[KillWorker()])


def test_unused_classes_cause_a_hint(root, capsys):
    PairedData(DataOptions(dataroot=str(root), label_nc=35, resize_or_crop="none"), multiple=4)
    assert "if the dataset has 4 classes, set data.label_nc to 4" in capsys.readouterr().err
    PairedData(DataOptions(dataroot=str(root), label_nc=4, resize_or_crop="none"), multiple=4)
    assert capsys.readouterr().err == ""


def follow(check, rank, port, output):
    """Runs one of two SLURM processes. The first one hosts the store. Writes the message that a user would see."""
    os.environ |= {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        on_first_process(check)
        output.write_text("passed")
        while rank == 0 and not output.with_name("1.txt").exists():
            time.sleep(0.05)  # like the process group, which every process joins next
    except InputError as error:
        output.write_text(str(error))
        raise SystemExit(2) from None


def passes():
    pass


def fails():
    raise InputError("the data are wrong")


def dies():
    time.sleep(3)  # until the other process is connected
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("check", "codes", "messages"),
    [
        (passes, [0, 0], ["passed", "passed"]),
        (fails, [2, 2], ["the data are wrong", ""]),
        (dies, [-signal.SIGKILL, 2], ["", "process 1: the first process, at 127.0.0.1:"]),
    ],
)
def test_the_first_process_runs_the_check_for_all_processes(check, codes, messages, free_port, tmp_path, monkeypatch):
    monkeypatch.setattr(first_process, "_EXIT_DELAY_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    outputs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    processes = [
        context.Process(
            target=follow, args=(check if rank == 0 else pytest.fail, rank, free_port, outputs[rank]), daemon=True
        )
        for rank in range(2)
    ]
    for process in reversed(processes):
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == codes
    for output, message in zip(outputs, messages, strict=True):
        assert (output.read_text() if output.exists() else "").startswith(message)


def test_processes_of_lightnings_launcher_do_not_repeat_the_check(root, monkeypatch):
    label = root / "train_label" / "a.png"
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(label)
    options = DataOptions(dataroot=str(root), label_nc=4, resize_or_crop="none")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(PairedData(options, multiple=4).train) == 3
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DataError, match="label id 9"):
        PairedData(options, multiple=4)
