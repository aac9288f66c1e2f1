"""Loggers receive metrics, learning rates and sample images, and a resumed run continues its logger runs."""

import csv
import itertools
import json
import sys
import types
import warnings

import pytest
import torch
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from lightning.pytorch.loggers import wandb as lightning_wandb
from PIL import Image

from pix2pixhd.errors import InputError
from pix2pixhd.training import loggers
from pix2pixhd.training.callbacks.sample_sheets import SampleSheets
from pix2pixhd.training.run import train

from .helpers import files


class Service:
    """The records of a W&B or MLflow server: runs with metrics, images, parameters and a status."""

    def __init__(self):
        self.runs = {}
        self._numbers = itertools.count()

    def begin(self, known=None, **details):
        key = known or f"id{next(self._numbers)}"
        run = self.runs.setdefault(key, {"metrics": [], "images": [], "config": {}, "started": 0, **details})
        run["started"] += 1
        return key


def module(name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


@pytest.fixture
def wandb(monkeypatch):
    """The part of wandb's interface that Lightning and this package use."""
    service = Service()

    class Run:
        def __init__(self, name, id, **options):
            self.id = service.begin(id, name=name)
            self.record = service.runs[self.id]
            self.config = types.SimpleNamespace(update=lambda values, **_: self.record["config"].update(values))

        def define_metric(self, *args, **kwargs):
            pass

        def log(self, values):
            images = {name: value for name, value in values.items() if isinstance(value, list)}
            self.record["metrics"].append({k: v for k, v in values.items() if k not in images})
            self.record["images"] += [(values["trainer/global_step"], x) for x in itertools.chain(*images.values())]

    class RunDisabled:
        pass

    fake = module("wandb", init=Run, run=None, Image=lambda image, **_: image)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "wandb.sdk", module("wandb.sdk"))
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib", module("wandb.sdk.lib", RunDisabled=RunDisabled))
    monkeypatch.setitem(sys.modules, "wandb.wandb_run", module("wandb.wandb_run", Run=Run))
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return service


@pytest.fixture
def mlflow(monkeypatch):
    """The part of MLflow's interface that Lightning and this package use."""
    service = Service()

    class Client:
        def __init__(self, uri):
            self.runs = service.runs

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, artifact_location):
            service.folder = artifact_location
            return "1"

        def create_run(self, experiment_id, tags):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=service.begin(status="RUNNING")))

        def get_run(self, run_id):
            self.runs[run_id]["started"] += self.runs[run_id]["status"] != "RUNNING"
            return types.SimpleNamespace(info=types.SimpleNamespace(experiment_id="1"))

        def update_run(self, run_id, status):
            self.runs[run_id]["status"] = status

        def set_terminated(self, run_id, status):
            self.runs[run_id]["status"] = status

        def log_batch(self, run_id, metrics=(), params=()):
            assert self.runs[run_id]["status"] == "RUNNING"
            for key, value in params:
                if self.runs[run_id]["config"].setdefault(key, value) != value:
                    raise RuntimeError(f"Changing param values is not allowed: {key}")
            self.runs[run_id]["metrics"].append({key: value for key, value, *_ in metrics})

        def log_image(self, run_id, image, key, step):
            self.runs[run_id]["images"].append((step, image))

    resolve = module("mlflow.tracking.context.registry", resolve_tags=lambda tags: tags)
    context = module("mlflow.tracking.context", registry=resolve)
    fakes = {
        "mlflow": module("mlflow", set_tracking_uri=lambda uri: None),
        "mlflow.tracking": module("mlflow.tracking", MlflowClient=Client, context=context),
        "mlflow.tracking.context": context,
        "mlflow.tracking.context.registry": resolve,
        "mlflow.entities": module(
            "mlflow.entities",
            Metric=lambda key, value, timestamp, step: (key, value, timestamp, step),
            Param=lambda key, value: (key, value),
        ),
        "mlflow.utils": module("mlflow.utils"),
        "mlflow.utils.mlflow_tags": module("mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName"),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    return service


def config_with(make_config, *names):
    config = make_config(epochs=2)
    config.run.loggers = list(names)
    config.trainer["log_every_n_steps"] = 1
    return config


def test_images_rates_and_metrics_reach_all_loggers_also_after_resuming(make_config, tmp_path, wandb, mlflow):
    config = config_with(make_config, "wandb", "mlflow", "csv", "tensorboard")
    config.trainer["max_epochs"] = 1
    train(config)
    config.trainer["max_epochs"] = 2
    config.optimizer.niter_decay = 5  # MLflow raises an error if a parameter changes
    train(config, resume=True)
    for service in (wandb, mlflow):
        ((key, run),) = service.runs.items()
        assert run["started"] == 2
        assert [step for step, _ in run["images"]] == [2, 3, 4, 6]
        assert all(
            isinstance(image, Image.Image) and image.size == (3 * 34 + 2, 2 * 26 + 2) for _, image in run["images"]
        )
        logged = set().union(*run["metrics"])
        assert {"G_total", "D_real", "lr-G", "lr-D"} <= logged
        assert not any("Adam" in name for name in logged)
        assert key in json.loads((tmp_path / "run" / "loggers.json").read_text()).values()
    assert mlflow.folder == (tmp_path / "run" / "mlflow").as_uri()  # not in the current folder
    assert next(iter(wandb.runs.values()))["config"]["optimizer"]["niter_decay"] == 5
    with (tmp_path / "run" / "logs" / "run_1" / "metrics.csv").open() as file:
        assert {"lr-G", "lr-D"} <= set(next(csv.reader(file)))


def test_a_new_run_creates_new_logger_runs(make_config, wandb, mlflow):
    config = config_with(make_config, "wandb", "mlflow")
    config.trainer["max_epochs"] = 1
    train(config)
    config.run.output += "_2"
    train(config)
    assert len(wandb.runs) == len(mlflow.runs) == 2


def test_another_mlflow_server_gets_a_new_run(make_config, mlflow, monkeypatch):
    config = config_with(make_config, "mlflow")
    config.trainer["max_epochs"] = 1
    train(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    config.trainer["max_epochs"] = 2
    train(config, resume=True)
    assert len(mlflow.runs) == 2


def test_a_damaged_loggers_json_is_reported(make_config, tmp_path, wandb):
    config = config_with(make_config, "wandb")
    config.trainer["max_epochs"] = 1
    train(config)
    (tmp_path / "run" / "loggers.json").write_text("[")
    with pytest.raises(InputError, match=r"loggers\.json: .*cannot be read .*delete the file"):
        train(config, resume=True)


def test_a_run_without_loggers_trains(make_config, tmp_path):
    config = config_with(make_config)
    config.trainer["max_epochs"] = 1
    train(config)
    train(config_with(make_config), resume=True)
    assert not (tmp_path / "run" / "logs").exists()
    assert not (tmp_path / "run" / "loggers.json").exists()
    assert "step_000006.png" in files(tmp_path / "run" / "samples")


def test_tensorboard_receives_the_sample_sheets(make_config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.utils.tensorboard.SummaryWriter,
        "add_image",
        lambda self, name, image, step, dataformats: seen.append((name, image.shape, step, dataformats)),
    )
    train(config_with(make_config, "tensorboard"))
    assert seen[0] == (loggers.SAMPLES, (2 * 26 + 2, 3 * 34 + 2, 3), 2, "HWC")


def test_a_logger_that_fails_to_accept_images_does_not_stop_the_run(make_config, tmp_path, mlflow, monkeypatch):
    class MlflowException(Exception):
        pass

    monkeypatch.setitem(sys.modules, "mlflow.exceptions", module("mlflow.exceptions", MlflowException=MlflowException))
    failures = itertools.cycle([MlflowException("the server is down"), ConnectionError("no route")])

    def fail(*arguments, **options):
        raise next(failures)

    monkeypatch.setattr(sys.modules["mlflow.tracking"].MlflowClient, "log_image", fail)
    config = make_config(epochs=3)
    config.run.loggers, config.run.display_freq = ["mlflow"], 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config)
    assert len([x for x in caught if "did not accept the sample images: the server is down" in str(x.message)]) == 1
    assert len(list((tmp_path / "run" / "samples").iterdir())) > 2


def test_only_the_samples_on_the_sheet_are_loaded(tmp_path):
    read = []

    class Dataset(list):
        def plain(self):
            return self

        def __getitem__(self, i):
            read.append(i)
            return {"image": torch.zeros(3, 2, 2)}

    sheets = SampleSheets(Dataset(range(7)), tmp_path, every=1, count=4)
    assert read == [0, 1, 2, 3]
    assert len(sheets.samples) == 4


def test_only_the_configured_loggers_are_used_and_missing_ones_are_reported(make_config, tmp_path, monkeypatch):
    config = make_config()
    config.run.loggers = ["csv"]
    train(config)
    assert files(tmp_path / "run" / "logs" / "run_0") == ["metrics.csv"] or "hparams.yaml" in files(
        tmp_path / "run" / "logs" / "run_0"
    )
    assert not list((tmp_path / "run" / "logs").glob("**/events.*"))
    for name, kind in (("mlflow", "TolerantMLFlow"), ("wandb", "TolerantWandb")):

        def missing(*args, name=name, **kwargs):
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(loggers, kind, missing)
        other = make_config(name)
        other.run.loggers = [name]
        with pytest.raises(InputError, match=rf"run\.loggers: {name} is not installed .*pip install {name}"):
            train(other)


def test_an_unreachable_logger_is_reported_before_training(make_config, monkeypatch):
    class Unreachable:
        def __init__(self, *args, **kwargs):
            pass

        @property
        def experiment(self):
            raise RuntimeError("the server does not answer\nat all")

    for name, kind in (("mlflow", "TolerantMLFlow"), ("wandb", "TolerantWandb")):
        monkeypatch.setattr(loggers, kind, Unreachable)
        config = make_config(name)
        config.run.loggers = [name]
        with pytest.raises(InputError, match=rf"run\.loggers: {name} cannot be used \(the server does not answer\)"):
            train(config)
