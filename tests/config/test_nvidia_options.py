"""NVIDIA's opt.txt as a configuration."""

import dataclasses
import pathlib
import re

import pytest
import torch
import yaml

from pix2pixhd.cli.main import main
from pix2pixhd.config.nvidia import to_config
from pix2pixhd.config.nvidia_names import ELSEWHERE, FLAGS, RENAMED, hint
from pix2pixhd.config.parser import build_parser, parse_train
from pix2pixhd.errors import InputError
from pix2pixhd.losses.presets import PRESETS

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


def test_defaults_of_nvidias_options_are_converted(write):
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
    assert config.trainer == {"log_every_n_steps": 100}


def test_changed_options_are_converted(write):
    config, left_out = to_config(
        write(
            no_lsgan=True, no_vgg_loss=True, lambda_feat=5.0, fp16=True, gpu_ids=[2], netG="local", num_D=3,
            load_pretrain="checkpoints/half", niter_fix_global=20, instance_feat=True, max_dataset_size=8,
            load_features=True, use_dropout=True, resize_or_crop="crop", no_flip=True, pool_size=50, no_html=True,
        )
    )  # fmt: skip
    assert config.loss.gan_mode == "vanilla"
    assert (config.loss.lambda_feat, config.loss.lambda_vgg, config.loss.pool_size) == (5.0, 0.0, 50)
    assert config.trainer == {"precision": "16-mixed", "devices": [2], "log_every_n_steps": 100}
    assert config.run.results_count == 0
    assert (config.model.netG, config.model.num_D, config.model.instance_feat) == ("local", 3, True)
    assert (config.run.load_pretrain, config.optimizer.niter_fix_global) == ("checkpoints/half", 20)
    assert (config.data.max_dataset_size, config.data.no_flip) == (8, True)
    assert sorted(left_out) == ["load_features", "use_dropout"]
    for ids in ("-1", []):  # NVIDIA's code drops -1 before it writes the file
        config, _ = to_config(write(gpu_ids=ids))
        assert config.trainer == {"accelerator": "cpu", "log_every_n_steps": 100}


@pytest.mark.parametrize(
    ("batch", "gpus", "devices", "per_process"),
    [
        (8, list(range(8)), 8, 1),
        (8, [0, 1], 2, 4),
        (8, [1, 3], [1, 3], 4),
        (4, [0], None, 4),
        (4, [5], [5], 4),
        (1, [0, 1, 2, 3], None, 1),  # DataParallel uses one of them
        (6, [0, 1, 2, 3], 3, 2),  # chunks of two: the fourth GPU is idle
    ],
)
def test_the_batch_is_divided_over_the_gpus(write, batch, gpus, devices, per_process):
    config, notes = to_config(write(batchSize=batch, gpu_ids=gpus))
    assert config.data.batchSize == per_process
    assert config.trainer.get("devices") == devices
    assert "batchSize" not in notes
    # The parts that DataParallel hands out: as many as there are devices, each as large as a process's batch.
    assert [len(part) for part in torch.arange(batch).chunk(len(gpus))] == [per_process] * (batch // per_process)
    assert ("gpu_ids" in notes) == (batch // per_process < len(gpus))


def test_an_indivisible_batch_is_rounded_up_with_a_note(write, capsys):
    config, notes = to_config(write(batchSize=7, gpu_ids=[0, 1]))
    assert (config.data.batchSize, config.trainer["devices"]) == (4, 2)
    assert (
        "7 images are not divisible by 2 GPUs; data.batchSize: 4 per GPU gives 8 images per step" in notes["batchSize"]
    )
    assert main(["migrate", str(write(batchSize=7, gpu_ids=[0, 1]))]) == 0
    assert "# batchSize: 7 images are not divisible" in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 3, 8, 100, 200])
def test_frequencies_in_images_become_steps(write, batch):
    """Compared with NVIDIA's loop, which acts when the number of images seen is a multiple of the frequency."""
    config, _ = to_config(write(batchSize=batch, gpu_ids=[0, 1], display_freq=50, save_latest_freq=1000))
    images = range(batch, 2500 * batch, batch)
    for frequency, steps in (
        (50, config.run.display_freq),
        (100, config.trainer["log_every_n_steps"]),
        (1000, config.run.save_latest_freq),
    ):
        assert next(step for step, seen in enumerate(images, start=1) if seen % frequency == 0) == steps


# NVIDIA's scripts, each with the names of its options.
SCRIPTS = {
    "cityscapes_512p": {"name": "label2city_512p"},
    "cityscapes_1024p": {
        "name": "label2city_1024p_feat", "netG": "local", "ngf": 32, "num_D": 3,
        "load_pretrain": "checkpoints/label2city_512p_feat/", "niter": 50, "niter_decay": 50, "niter_fix_global": 10,
        "resize_or_crop": "none", "instance_feat": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_shipped_configurations_are_those_of_nvidias_scripts(write, name):
    expected, _ = to_config(write(**SCRIPTS[name]))
    config, _ = parse_train(["--config", name])
    for section in ("data", "model", "optimizer", "compute"):
        assert getattr(config, section) == dataclasses.replace(
            getattr(expected, section), **({"dataroot": config.data.dataroot} if section == "data" else {})
        )
    preset = PRESETS[config.loss.preset]
    assert config.loss.preset == expected.loss.preset
    assert (config.loss.lambda_gan, config.loss.gan_mode) == (preset.lambda_gan, expected.loss.gan_mode)
    for option in ("lambda_feat", "lambda_vgg", "pool_size"):
        assert getattr(config.loss, option) == getattr(expected.loss, option)
    for option in ("display_freq", "save_latest_freq", "save_epoch_freq"):
        assert getattr(config.run, option) == getattr(expected.run, option)
    assert pathlib.Path(config.run.output).name == SCRIPTS[name]["name"]
    # NVIDIA's scripts name one GPU; auto also takes as many as torchrun starts.
    assert config.trainer == {name: value for name, value in expected.trainer.items() if name != "devices"}
    if expected.run.load_pretrain:
        assert pathlib.Path(config.run.load_pretrain).name == pathlib.Path(expected.run.load_pretrain).name


def test_hints_agree_with_the_guide_and_name_options_that_exist():
    guide = (pathlib.Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `--")]
    known = {option for action in build_parser()._actions for option in action.option_strings}
    targets = {**RENAMED, **{name: option for name, (option, _) in FLAGS.items()}}
    for name, option in targets.items():
        assert f"--{option}" in known
        assert hint(name).startswith(f"NVIDIA's --{name} is {option}")
        assert any(f"`--{name}`" in row and option in row for row in rows), (name, option)
    for name in ELSEWHERE:
        assert any(f"`--{name}`" in row for row in rows), name
    # Every option of NVIDIA's parser has the same name in a section, or a hint.
    fields = {option.split(".")[1] for option in known if "." in option}
    assert set(OPTIONS) - {"isTrain"} - fields - {name for name in OPTIONS if hint(name)} == {"display_winsize"}


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
    guide = (pathlib.Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
    named = set(re.findall(r"`--(\w+)", guide))
    tests = {"ntest", "results_dir", "aspect_ratio", "how_many", "cluster_path", "use_encoded_image", "export_onnx"}
    assert (set(OPTIONS) - {"isTrain"} | tests | {"engine", "onnx"}) <= named


@pytest.mark.parametrize("content", ["", "hello: world\n", b"\xff\xfe"])
def test_files_that_are_not_opt_txt_are_rejected(tmp_path, content):
    path = tmp_path / "opt.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"opt\.txt: (not an opt\.txt of NVIDIA's code|cannot be read)"):
        to_config(path)
    with pytest.raises(InputError, match="cannot be read"):
        to_config(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ngf", "many", "a number"),
        ("ngf", 1.5, "an integer"),
        ("pool_size", "x", "a number"),
        ("print_freq", "x", "a number"),
        ("max_dataset_size", "x", "a number"),
        ("lambda_feat", "x", "a number"),
        ("gpu_ids", "a,b", "a list of GPU ids"),
        ("no_flip", "maybe", "True or False"),
    ],
)
def test_values_of_the_wrong_type_are_rejected(write, name, value, expected):
    with pytest.raises(InputError, match=rf"opt\.txt: {name} should be {expected}.*, got '{value}'"):
        to_config(write(**{name: value}))
