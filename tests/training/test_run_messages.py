"""Errors before training, the message of a finished run, and the removal of temporary files."""

import csv
import shlex

import pytest

from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.training import shutdown
from pix2pixhd.training.run import train

from .helpers import SendSignal, files


def test_fast_dev_run_with_resume_is_rejected(command_line, tmp_path, capsys):
    assert main(command_line()) == 0
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert main(command_line("--resume", "--trainer.fast_dev_run=true")) == 2
    assert "--resume: trainer.fast_dev_run runs the first batches of a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before


def test_resuming_a_finished_run_names_the_options_to_raise(command_line, capsys):
    assert main(command_line()) == 0
    assert "all 1 epochs" not in capsys.readouterr().out
    assert main(command_line("--resume")) == 0
    assert "all 1 epochs had already been trained; to train longer, raise optimizer.niter" in capsys.readouterr().out


def test_resuming_with_fewer_epochs_than_trained_names_the_option(make_config):
    train(make_config(epochs=2))
    fewer = make_config(epochs=1)
    with pytest.raises(InputError, match=r"for 2 epochs, more than optimizer\.niter \+ optimizer\.niter_decay = 1"):
        train(fewer, resume=True)
    fewer = make_config(epochs=2)
    fewer.trainer["max_epochs"] = 1
    with pytest.raises(InputError, match=r"for 2 epochs, more than trainer\.max_epochs = 1"):
        train(fewer, resume=True)


def test_synchronized_batch_norm_is_rejected_on_the_cpu(make_config, tmp_path):
    config = make_config()
    config.model.norm = "batch"
    config.trainer["sync_batchnorm"] = True
    with pytest.raises(InputError, match=r"trainer\.sync_batchnorm needs GPUs"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_batch_norm_with_activation_checkpointing_is_rejected_with_the_configuration(make_config):
    config = make_config()
    config.model.norm, config.compute.checkpoint_activations = "batch", True
    with pytest.raises(InputError, match=r"compute\.checkpoint_activations .* batch norm"):
        config.check()


TEMPORARY = {
    "": ".yaml",
    "checkpoints/": ".ckpt",
    "samples/": ".png",
    "results/images/real/": ".png",
    "logs/run_0/": "",
}


@pytest.mark.parametrize("resume", [False, True])
def test_temporary_files_of_a_killed_run_are_removed(make_config, tmp_path, resume):
    run = tmp_path / "run"
    if resume:
        train(make_config())
    temporary = [f"{name}.pix2pixhd-0123456789ab{end}" for name, end in TEMPORARY.items()]
    foreign = ["checkpoints/.other.ckpt", "checkpoints/.pix2pixhd-mine.ckpt", ".pix2pixhd-files.json"]
    for name in (*temporary, *foreign):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"half")
    train(make_config(epochs=2), resume=resume)
    assert not [name for name in temporary if (run / name).exists()]
    assert all((run / name).read_bytes() == b"half" for name in foreign)
    assert files(run / "checkpoints") == [".other.ckpt", ".pix2pixhd-mine.ckpt", "last.ckpt"]


@pytest.mark.parametrize("kept", [True, False])
def test_the_error_for_a_damaged_checkpoint_names_the_kept_one(make_config, tmp_path, kept):
    config = make_config(epochs=2)
    config.run.save_epoch_freq = 1 if kept else 10
    config.trainer["max_epochs"] = 1
    train(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    remedy = "copy .*epoch_0000.ckpt, the latest kept checkpoint, over last.ckpt" if kept else "start a new run"
    whole = (checkpoints / "last.ckpt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        (checkpoints / "last.ckpt").write_bytes(damaged)
        with pytest.raises(InputError, match=rf"last\.ckpt: the checkpoint cannot be read: .*; {remedy}"):
            train(config, resume=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_log_every_n_steps_counts_steps(make_config, tmp_path, accumulate):
    config = make_config(epochs=2, max_dataset_size=2, nThreads=0)
    config.optimizer.accumulate, config.optimizer.niter = accumulate, 2 * accumulate  # four steps
    config.trainer["log_every_n_steps"] = 2
    train(config)
    with (tmp_path / "run" / "logs" / "run_0" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row.get("G_total")]) == 2


def test_the_resume_command_is_quoted_for_the_shell(make_config, tmp_path, capsys):
    config = make_config("a run's folder")
    with pytest.raises(shutdown.RunStopped):
        train(config, callbacks=[SendSignal(1)])
    command = capsys.readouterr().err.split("continue it with ")[1].splitlines()[0]
    assert shlex.split(command) == ["--resume", "--run.output", str(tmp_path / "a run's folder")]
