"""Fixtures of all tests that train or use a checkpoint; the conftest.py of each folder imports them."""

import contextlib
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from pix2pixhd.training.module import Pix2PixHD


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_images(root):
    """Write three training and two validation images of 24x32."""
    rng = np.random.default_rng(0)
    for phase, names in (("train", "abc"), ("test", "xy")):
        for name in names:
            _save(root / f"{phase}_label" / f"{name}.png", rng.integers(0, 4, (24, 32), dtype=np.uint8))
            _save(root / f"{phase}_inst" / f"{name}.png", rng.integers(40000, 40009, (24, 32)).astype(np.uint16))
            _save(root / f"{phase}_img" / f"{name}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))


@pytest.fixture
def data_root(tmp_path):
    """Three training and two validation images of 24x32."""
    root = tmp_path / "data"
    write_images(root)
    return root


@pytest.fixture
def make_config(data_root, tmp_path):
    def make(output="run", epochs=1, **data):
        return TrainConfig(
            data=DataOptions(
                **{"dataroot": str(data_root), "label_nc": 4, "resize_or_crop": "crop", "fineSize": 16, "nThreads": 0}
                | data
            ),
            model=ModelOptions(ngf=4, n_downsample_global=2, n_blocks_global=1, ndf=4, n_layers_D=2),
            loss=LossOptions(lambda_vgg=0.0),
            optimizer=OptimizerOptions(niter=epochs, niter_decay=0),
            run=RunOptions(output=str(tmp_path / output), display_freq=2, sample_count=2),
            trainer={"accelerator": "cpu", "enable_progress_bar": False},
        )

    return make


def train_arguments(dataroot, output, *more):
    """Arguments of ``pix2pixhd train`` for a small run; later ones override earlier ones."""
    options = {
        "data.dataroot": dataroot,
        "data.label_nc": 4,
        "data.resize_or_crop": "crop",
        "data.fineSize": 16,
        "data.nThreads": 0,
        "model.ngf": 4,
        "model.n_downsample_global": 2,
        "model.n_blocks_global": 1,
        "model.ndf": 4,
        "model.n_layers_D": 2,
        "loss.lambda_vgg": 0,
        "optimizer.niter": 1,
        "optimizer.niter_decay": 0,
        "run.output": output,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return ["train", *(f"--{name}={value}" for name, value in options.items()), *map(str, more)]


@pytest.fixture
def command_line(data_root, tmp_path):
    """Makes the arguments of ``pix2pixhd train`` for the same small run."""

    def make(*more, output="run"):
        return train_arguments(data_root, tmp_path / output, *more)

    return make


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Gives every test an empty cache folder in place of the user's, for the cache of the data check."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_checkpoint(make_config, tmp_path):
    """Writes the checkpoint of an untrained run."""

    def make(name="last.ckpt", model=None, **data):
        config = make_config(**data)
        torch.manual_seed(0)
        module = Pix2PixHD(model or config.model, config.data, config.loss, config.optimizer)
        path = tmp_path / name
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
        return path

    return make


@pytest.fixture
def full_disk():
    """A context manager that limits the size of files, so that writing fails like on a full disk."""

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
