"""The output of a run: the summary before training, the report of a profiler, and the final message."""

import io
import logging

import pytest

from pix2pixhd.cli.main import main
from pix2pixhd.training.run import train
from pix2pixhd.training.shutdown import RunStopped

from .helpers import SendSignal, files


def summary(text):
    return dict(line.split(maxsplit=1) if not line.startswith("image size") else ("image size", line[10:].strip())
                for line in text.splitlines() if " " in line)  # fmt: skip


def test_the_summary_reports_device_data_and_networks(command_line, capsys, tmp_path):
    options = ["--data.val_phase=test", "--optimizer.accumulate=2", "--trainer.precision=bf16-mixed"]
    options += ["--optimizer.niter=2", "--model.instance_feat=true", "--model.nef=4", "--model.n_downsample_E=2"]
    assert main(command_line(*options, "--trainer.max_steps=1")) == 0
    out = capsys.readouterr().out
    found = summary(out)
    assert found["device"] == "cpu"
    assert found["precision"] == "bf16-mixed, channels-last"
    assert found["images"] == "3 for training, 2 for validation"
    assert found["image size"].startswith("16x16")
    assert found["batch"] == "2 = batchSize 1 x accumulate 2"
    assert found["epochs"] == "2 of 3 batches"
    assert found["output"] == str(tmp_path / "run")
    assert found["start"] == "new weights"
    assert f"stopped by max_steps after 1 step: checkpoints, samples and logs are in {tmp_path / 'run'}; " in out
    assert "continue with --resume --run.output" in out
    assert "and a larger --trainer.max_steps" in out
    assert main(command_line(*options, "--resume", "--trainer.max_steps=-1")) == 0
    out = capsys.readouterr().out
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert summary(out)["start"] == f"resumed from {last} at epoch 0, batch 2 (after 1 step)"
    assert f"done: checkpoints, samples and logs are in {tmp_path / 'run'}" in out


def test_the_summary_reports_the_number_of_parameters(make_config, capsys):
    module = train(make_config())
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in (("G", module.netG), ("D", module.netD))}
    line = summary(capsys.readouterr().out)["parameters"]
    assert line == ", ".join(f"{name} {number / 1e3:.1f} K" for name, number in count.items())


def test_the_report_of_the_profiler_is_printed(command_line):
    """Lightning writes the report to a logger, which the command line must not hide."""
    report = io.StringIO()
    handler = logging.StreamHandler(report)
    logger = logging.getLogger("lightning.pytorch.profilers.profiler")
    logger.addHandler(handler)
    try:
        assert main(command_line("--trainer.profiler=simple", "--trainer.fast_dev_run=true")) == 0
    finally:
        logger.removeHandler(handler)
    assert "run_training_batch" in report.getvalue()


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_fast_dev_run_writes_no_files(command_line, capsys, tmp_path, batches):
    options = ["--data.val_phase=test", "--run.save_latest_freq=1", "--run.display_freq=1", "--optimizer.niter=3"]
    assert main(command_line(f"--trainer.fast_dev_run={batches}", *options)) == 0
    out = capsys.readouterr().out
    assert f"{batches} batch{'es' if batches > 1 else ''} ran without an error (fast_dev_run); nothing was saved" in out
    assert "checkpoints" not in out
    assert not {"checkpoints", "samples", "results", "logs"} & set(files(tmp_path / "run"))


def test_fast_dev_run_runs_the_given_number_of_batches(make_config, capsys):
    config = make_config(epochs=3)
    config.trainer["fast_dev_run"] = 3
    assert train(config).trainer.global_step == 2 * 3
    config.trainer["fast_dev_run"] = 3
    with pytest.raises(RunStopped):
        train(config, callbacks=[SendSignal(2)])
    assert "stopped; nothing was saved" in capsys.readouterr().err
