"""Changed options on resume: applied or rejected, and recorded in run.output/config.yaml."""

import dataclasses
import pathlib
import shutil

import lightning.pytorch as pl
import pytest
import yaml

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.cli.main import main
from pix2pixhd.config.parser import absolute_paths, config_text, parse_train
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train

from .helpers import assert_identical, files, weights


class Rates(pl.Callback):
    """Records the settings of both optimizers at every step, and can change them at the start of an epoch."""

    def __init__(self, change_at=None, lr=None, betas=None):
        self.change_at, self.lr, self.betas, self.seen = change_at, lr, betas, []

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.change_at:
            for scheduler in module.lr_schedulers():
                rate = module.optimizer_options.rate(trainer.current_epoch)
                scheduler.base_lrs = [self.lr]
                scheduler.optimizer.param_groups[0].update(lr=self.lr * rate, betas=self.betas)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.seen.append([(group["lr"], *group["betas"]) for group in groups])


def test_resume_applies_a_new_learning_rate_and_betas(make_config):
    """Compares with an uninterrupted run whose optimizers are changed directly."""

    def config(name):
        made = make_config(name, epochs=2)
        made.optimizer.niter_decay = 2
        return made

    lr, betas = 1e-3, (0.8, 0.99)
    expected = weights(train(config("uninterrupted"), callbacks=[Rates(1, lr, betas)]))
    resumed = config("resumed")
    resumed.trainer["max_epochs"] = 1
    train(resumed)
    del resumed.trainer["max_epochs"]
    resumed.optimizer.lr, (resumed.optimizer.beta1, resumed.optimizer.beta2) = lr, betas
    rates = Rates()
    assert_identical(expected, weights(train(resumed, resume=True, callbacks=[rates])))
    steps = [[(lr * share, *betas)] * 2 for share in (1.0, 1.0, 0.5) for _ in range(3)]
    assert rates.seen == [[pytest.approx(group) for group in step] for step in steps]


def test_resume_reads_the_configuration_of_the_run(command_line, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main(command_line("--optimizer.lr=0.001", "--trainer.log_every_n_steps=3", "--run.loggers=csv")) == 0
    first = yaml.safe_load((run / "config.yaml").read_text())
    assert first["optimizer"]["lr"] == 0.001
    assert first["trainer"]["accelerator"] == "cpu"
    assert first["trainer"]["log_every_n_steps"] == 3
    assert first["compute"] == {
        "channels_last": None,
        "compile": False,
        "checkpoint_activations": False,
        "lean": True,
        "optimizer_in_backward": None,
    }
    monkeypatch.chdir(tmp_path)
    arguments = ["--resume", "--run.output=run", "--optimizer.niter=2", "--optimizer.lr=0.002"]
    config, resume = parse_train(arguments)
    assert resume
    assert (config.optimizer.lr, config.optimizer.niter, config.run.loggers) == (0.002, 2, ["csv"])
    assert main(["train", *arguments]) == 0
    second = yaml.safe_load((run / "config.yaml").read_text())
    assert (second["optimizer"]["lr"], second["optimizer"]["niter"], second["model"]) == (0.002, 2, first["model"])
    assert yaml.safe_load((run / "config_1.yaml").read_text()) == first
    # Unchanged options create no further copies.
    assert main(["train", "--resume", "--run.output", "run"]) == 0
    assert [name for name in files(run) if name.startswith("config")] == ["config.yaml", "config_1.yaml"]


def test_a_run_with_relative_paths_is_resumed_from_another_folder(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "before" / "data")
    assert main(command_line("--data.dataroot=data", "--run.output=before")) == 0
    pretrained = "--run.load_pretrain=before"
    assert main(command_line("--data.dataroot=data", pretrained, "--optimizer.niter=2", "--trainer.max_epochs=1")) == 0
    monkeypatch.chdir(tmp_path / "before")  # contains another folder named "data"
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["data"]["dataroot"] == str(tmp_path / "data")
    assert saved["run"]["load_pretrain"] == str(tmp_path / "before")
    assert saved["loss"]["vgg"] == "imagenet"
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").data.dataroot == str(tmp_path / "data")
    shutil.rmtree(tmp_path / "before" / "data")
    assert main(["train", "--resume", f"--run.output={tmp_path / 'run'}", "--trainer.max_epochs=2"]) == 0


def test_the_path_of_vgg_weights_is_saved_as_absolute(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config()
    for vgg, expected in (("vgg.pth", str(tmp_path / "vgg.pth")), ("random", "random"), ("/vgg.pth", "/vgg.pth")):
        changed = absolute_paths(dataclasses.replace(config, loss=dataclasses.replace(config.loss, vgg=vgg)))
        assert changed.loss.vgg == expected
        assert changed.loss.lpips_weights is None
    lpips = dataclasses.replace(config.loss, perceptual="lpips", lpips_weights="linear.pth")
    assert absolute_paths(dataclasses.replace(config, loss=lpips)).loss.lpips_weights == str(tmp_path / "linear.pth")
    assert absolute_paths(make_config(dataroot="")).data.dataroot == ""


def test_resume_accepts_an_explicit_config_file(make_config, tmp_path):
    config = make_config()
    train(config)
    (tmp_path / "other.yaml").write_text(config_text(config))
    parsed, _ = parse_train(["--resume", "--config", f"{tmp_path / 'other.yaml'}", "--optimizer.niter=2"])
    assert parsed == make_config(epochs=2)


def test_an_existing_config_file_in_the_output_folder_is_kept(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# the user's own\n")
    train(make_config())
    assert (tmp_path / "run" / "config_1.yaml").read_text() == "# the user's own\n"


@pytest.mark.parametrize(
    ("section", "name", "value", "reason"),
    [
        ("model", "ngf", 8, "the saved weights depend on it"),
        ("data", "label_nc", 5, "the saved weights depend on it"),
        ("data", "batchSize", 3, "the run stopped within an epoch"),
        ("data", "max_dataset_size", 2, "the run stopped within an epoch"),
        ("optimizer", "accumulate", 2, "the run stopped within an epoch"),
        ("run", "seed", 7, "the run stopped within an epoch"),
    ],
)
def test_changes_of_options_that_the_checkpoint_depends_on_are_rejected(stopped_run, section, name, value, reason):
    config = stopped_run()
    written = pathlib.Path(config.run.output) / "config.yaml"
    before = written.read_text()
    setattr(getattr(config, section), name, value)
    with pytest.raises(InputError, match=rf"was trained with {section}\.{name}=.* has {value}, and {reason}"):
        train(config, resume=True)
    assert written.read_text() == before


@pytest.fixture
def stopped_run(make_config):
    """A run that was stopped after the first of three steps."""

    def make():
        config = make_config()
        config.run.save_latest_freq = 1

        class Kill(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                if batch_idx == 1:
                    raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            train(config, callbacks=[Kill()])
        return config

    return make


def test_options_of_the_order_may_change_between_epochs(make_config):
    config = make_config(epochs=1)
    train(config)
    config.optimizer.niter, config.run.seed, config.data.batchSize = 2, 7, 2
    train(config, resume=True)
