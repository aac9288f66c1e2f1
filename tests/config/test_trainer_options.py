"""The trainer section: supported options, refused ones, and the checks of both."""

import datetime
import inspect

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml

from pix2pixhd.config.parser import config_text, parse_train
from pix2pixhd.config.schema import DataOptions, ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from pix2pixhd.config.schema.trainer import REFUSED, TrainerOptions, trainer_options
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train


def test_every_option_of_lightning_is_supported_or_refused():
    lightning = set(inspect.signature(pl.Trainer).parameters)
    supported = set(TrainerOptions.__dataclass_fields__)
    assert supported <= lightning
    assert not supported & set(REFUSED)
    assert lightning - supported - set(REFUSED) == set()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_options_are_named_with_a_reason(name):
    with pytest.raises(InputError, match=rf"^trainer\.{name} is not supported: \w+"):
        TrainConfig(DataOptions(), trainer={name: 1})
    config = TrainConfig(DataOptions())
    config.trainer[name] = 1
    with pytest.raises(InputError, match=rf"trainer\.{name} is not supported"):
        train(config)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epoch": 3}, r"no option trainer\.max_epoch; did you mean trainer\.max_epochs\?"),
        ({"max_epochs": "many"}, r"trainer\.max_epochs: Expected int, null\. Got value: many"),
        ({"max_epochs": 0}, r"trainer\.max_epochs must be at least 1, got 0"),
        ({"devices": "abc"}, r"trainer\.devices must be auto, .* got 'abc'"),
        ({"devices": []}, r"trainer\.devices must be auto, .* got \[\]"),
        ({"precision": "8"}, r"trainer\.precision must be one of 32-true, .* got 8"),
        ({"max_time": {"fortnights": 1}}, r"trainer\.max_time must be a positive duration"),
    ],
)
def test_dictionaries_of_python_users_are_checked(trainer, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(DataOptions(), trainer=trainer)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"precision": 16}, {"precision": "16-mixed"}),
        ({"precision": "bf16"}, {"precision": "bf16-mixed"}),
        ({"devices": "2"}, {"devices": 2}),
        ({"devices": "2,"}, {"devices": [2]}),
        ({"devices": "[0, 2]"}, {"devices": [0, 2]}),
        ({"devices": [1]}, {"devices": [1]}),
        ({"max_time": "1:12:00:00"}, {"max_time": "01:12:00:00"}),
        ({"max_time": {"hours": 25, "seconds": 3}}, {"max_time": "01:01:00:03"}),
        ({"max_time": datetime.timedelta(minutes=90)}, {"max_time": "00:01:30:00"}),
        ({"limit_train_batches": 1}, {"limit_train_batches": 1}),
        ({"limit_train_batches": 1.0}, {"limit_train_batches": 1.0}),
        ({"fast_dev_run": True}, {"fast_dev_run": True}),
        ({"fast_dev_run": 3}, {"fast_dev_run": 3}),
        ({"max_epochs": None}, {"max_epochs": None}),
        ({"deterministic": "warn"}, {"deterministic": "warn"}),
    ],
)
def test_values_are_normalized_and_survive_the_file(given, expected, tmp_path):
    options = trainer_options(given)
    for name, value in expected.items():
        assert getattr(options, name) == value
        assert type(getattr(options, name)) is type(value)
    (tmp_path / "config.yaml").write_text(config_text(TrainConfig(DataOptions(), trainer=given)))
    parsed, _ = parse_train(["--config", str(tmp_path / "config.yaml")])
    assert trainer_options(parsed.trainer) == options
    pl.Trainer(**options.arguments() | {"devices": 1, "precision": "32-true"}, logger=False)


def test_the_command_line_overrides_the_file_wherever_it_stands(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optimizer: {lr: 0.5}\n")
    for arguments in (["--config", str(path), "--optimizer.lr=0.25"], ["--optimizer.lr=0.25", f"--config={path}"]):
        assert parse_train(arguments)[0].optimizer.lr == 0.25


@pytest.mark.parametrize("form", ["csv", "[csv]", "[csv, tensorboard]", "[]"])
def test_loggers_are_given_as_one_name_or_a_list(form, tmp_path):
    expected = [form] if form == "csv" else yaml.safe_load(form)
    assert parse_train([f"--run.loggers={form}"])[0].run.loggers == expected
    (tmp_path / "a.yaml").write_text(f"run:\n  loggers: {form}\n  metrics: l1\n")
    config, _ = parse_train(["--config", str(tmp_path / "a.yaml")])
    assert config.run.loggers == expected
    assert config.run.metrics == ["l1"]


def test_numbers_of_numpy_are_numbers():
    model, optimizer = ModelOptions(ngf=np.int64(8)), OptimizerOptions(lr=np.float32(0.5), niter=np.int32(3))
    assert (type(model.ngf), type(optimizer.lr), type(optimizer.niter)) == (int, float, int)
    config_text(TrainConfig(DataOptions(), model, optimizer=optimizer))


@pytest.mark.parametrize("value", ["8", 8.5, True, None])
def test_other_types_are_refused(value):
    with pytest.raises(InputError, match=r"model\.ngf must be an integer, got"):
        ModelOptions(ngf=value)


def test_values_assigned_later_are_checked_before_training(make_config):
    config = make_config()
    config.optimizer.lr = float("nan")
    with pytest.raises(InputError, match=r"optimizer\.lr must be finite and above 0, got nan"):
        train(config)
    config = make_config()
    config.run = RunOptions(output=config.run.output)
    config.run.seed = -1
    with pytest.raises(InputError, match=r"run\.seed must be at least 0"):
        train(config)
