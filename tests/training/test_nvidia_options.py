"""NVIDIA's opt.txt as a configuration."""

import pathlib
import re

import pytest
import yaml

from pix2pixhd.cli import main
from pix2pixhd.data import InputError
from pix2pixhd.training.config import parse_train
from pix2pixhd.training.nvidia_options import to_config

# What --name city writes, of the original's base_options.py and train_options.py, in its form.
OPTIONS = {
    "batchSize": 1, "beta1": 0.5, "checkpoints_dir": "./checkpoints", "continue_train": False, "data_type": 32,
    "dataroot": "./datasets/cityscapes/", "debug": False, "display_freq": 100, "display_winsize": 512,
    "feat_num": 3, "fineSize": 512, "fp16": False, "gpu_ids": [0], "input_nc": 3, "instance_feat": False,
    "isTrain": True, "label_feat": False, "label_nc": 35, "lambda_feat": 10.0, "loadSize": 1024,
    "load_features": False, "load_pretrain": "", "local_rank": 0, "lr": 0.0002, "max_dataset_size": "inf",
    "model": "pix2pixHD", "nThreads": 2, "n_blocks_global": 9, "n_blocks_local": 3, "n_clusters": 10,
    "n_downsample_E": 4, "n_downsample_global": 4, "n_layers_D": 3, "n_local_enhancers": 1, "name": "city",
    "ndf": 64, "nef": 16, "netG": "global", "ngf": 64, "niter": 100, "niter_decay": 100, "niter_fix_global": 0,
    "no_flip": False, "no_ganFeat_loss": False, "no_html": False, "no_instance": False, "no_lsgan": False,
    "no_vgg_loss": False, "norm": "instance", "num_D": 2, "output_nc": 3, "phase": "train", "pool_size": 0,
    "print_freq": 100, "resize_or_crop": "scale_width", "save_epoch_freq": 10, "save_latest_freq": 1000,
    "serial_batches": False, "tf_log": False, "use_dropout": False, "verbose": False, "which_epoch": "latest",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "opt.txt"
        lines = "\n".join(f"{name}: {value}" for name, value in sorted((OPTIONS | changes).items()))
        path.write_text(f"------------ Options -------------\n{lines}\n-------------- End ----------------\n")
        return path

    return write


def test_the_defaults(write):
    config, left_out = to_config(write())
    assert left_out == {}
    assert config.model.ngf == 64
    assert config.data.label_nc == 35
    assert config.data.max_dataset_size is None
    assert config.loss.preset == "nvidia"
    assert (config.loss.lambda_feat, config.loss.lambda_vgg, config.loss.gan_mode) == (10.0, 10.0, None)
    assert config.optimizer.niter_decay == 100
    assert config.run.output == "checkpoints/city"
    assert config.run.load_pretrain is None
    assert config.trainer == {}


def test_everything_else(write):
    config, left_out = to_config(
        write(
            no_lsgan=True, no_vgg_loss=True, lambda_feat=5.0, fp16=True, gpu_ids=[0, 1], netG="local", num_D=3,
            load_pretrain="checkpoints/half", niter_fix_global=20, instance_feat=True, max_dataset_size=8,
            load_features=True, use_dropout=True, resize_or_crop="crop", no_flip=True, pool_size=50,
        )
    )  # fmt: skip
    assert config.loss.gan_mode == "vanilla"
    assert (config.loss.lambda_feat, config.loss.lambda_vgg, config.loss.pool_size) == (5.0, 0.0, 50)
    assert config.trainer == {"precision": "16-mixed", "devices": 2}
    assert (config.model.netG, config.model.num_D, config.model.instance_feat) == ("local", 3, True)
    assert (config.run.load_pretrain, config.optimizer.niter_fix_global) == ("checkpoints/half", 20)
    assert (config.data.max_dataset_size, config.data.no_flip) == (8, True)
    assert sorted(left_out) == ["load_features", "use_dropout"]
    config, _ = to_config(write(gpu_ids="-1"))
    assert config.trainer == {"accelerator": "cpu"}


def test_the_command_prints_what_train_reads(write, tmp_path, capsys):
    assert main(["migrate", str(write(load_features=True))]) == 0
    text = capsys.readouterr().out
    assert "# load_features: " in text
    (tmp_path / "city.yaml").write_text(text)
    config, _ = parse_train(["--config", str(tmp_path / "city.yaml")])
    expected, _ = to_config(write())
    for section in ("data", "model", "loss", "optimizer", "compute", "run"):
        assert getattr(config, section) == getattr(expected, section)
    assert yaml.safe_load(text)["model"]["ngf"] == 64


def test_every_option_of_the_original_is_in_the_guide():
    guide = (pathlib.Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
    named = set(re.findall(r"`--(\w+)", guide))
    tests = {"ntest", "results_dir", "aspect_ratio", "how_many", "cluster_path", "use_encoded_image", "export_onnx"}
    assert (set(OPTIONS) - {"isTrain"} | tests | {"engine", "onnx"}) <= named


@pytest.mark.parametrize("content", ["", "hello: world\n", b"\xff\xfe"])
def test_other_files(tmp_path, content):
    path = tmp_path / "opt.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"opt\.txt: (not an opt\.txt of NVIDIA's code|cannot be read)"):
        to_config(path)
    with pytest.raises(InputError, match="cannot be read"):
        to_config(tmp_path / "missing.txt")


def test_a_number_that_is_none(write):
    with pytest.raises(InputError, match="ngf should be a number, got 'many'"):
        to_config(write(ngf="many"))
