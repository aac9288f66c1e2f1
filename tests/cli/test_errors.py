"""User errors end before training, with one message and exit code 2."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.exc import TorchDynamoException

from pix2pixhd.cli import main as cli
from pix2pixhd.cli.main import main
from pix2pixhd.cli.train_help import MOST_USED
from pix2pixhd.config.parser import SECTIONS, build_parser
from pix2pixhd.config.schema.trainer import TrainerOptions
from pix2pixhd.training import run
from tests.helpers import fails


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--model.ngff=8", ["there is no option model.ngff", "did you mean model.ngf?"]),
        ("--optimizer.niter=many", ["optimizer.niter", "many"]),
        ("--data.resize_or_crop=stretch", ["resize_or_crop", "stretch", "scale_width"]),
        ("--trainer.max_epoch=3", ["there is no option trainer.max_epoch", "did you mean trainer.max_epochs?"]),
        ("--loss.lambda_feat=-1", ["loss.lambda_feat must be at least 0, got -1", "; set null (the default), or a"]),
        ("--loss.vgg_memory_limit=0", ["vgg_memory_limit must be at least 1, got 0; set null (the default), or a"]),
        ("--optimizer.beta1=1.5", ["beta1"]),
        ("--model.num_D=0", ["model.num_D must be at least 1 and at most 10, got 0; set 2 (the default), or a value"]),
        ("--config=nowhere.yaml", ["nowhere.yaml does not exist", "cityscapes_1024p, cityscapes_512p, pairs"]),
        ("--config=cityscape", ["cityscape does not exist", "cityscapes_1024p, cityscapes_512p, pairs"]),
        ("--optimizer.lr=.nan", ["optimizer.lr must be finite and above 0, got nan"]),
        ("--optimizer.lr=nan", ["optimizer.lr: Expected a finite number. Got value: nan"]),
        ("--optimizer.ema_decay=-inf", ["optimizer.ema_decay: Expected a finite number. Got value: -inf"]),
        ("--optimizer.lr=0", ["optimizer.lr must be above 0, got 0"]),
        ("--optimizer.ema_decay=.inf", ["optimizer.ema_decay must be finite and at least 0 and below 1, got inf"]),
        ("--loss.lambda_gan=.inf", ["loss.lambda_gan must be finite and at least 0, got inf"]),
        ("--run.seed=99999999999", ["run.seed must be at least 0 and at most 4294967295, got 99999999999"]),
        ("--model.n_local_enhancers=0", ["model.n_local_enhancers must be at least 1", "got 0"]),
        ("--model.n_downsample_global=64", ["model.n_downsample_global must be at least 0 and at most 10, got 64"]),
        ("--run.loggers=csvv", ["run.loggers", "csvv"]),
        ("--trainer.devices=abc", ["trainer.devices must be auto, a number of devices", "got 'abc'"]),
        ("--trainer.devices=0", ["trainer.devices must be", "got 0"]),
        ("--trainer.devices=0,0", ["trainer.devices must be", "got '0,0'"]),
        ("--trainer.devices=0,1", ["trainer.devices must be a number of processes with trainer.accelerator: cpu"]),
        ("--trainer.max_epochs=0", ["trainer.max_epochs must be at least 1, got 0"]),
        ("--trainer.max_steps=-2", ["trainer.max_steps must be at least 1, got -2"]),
        ("--trainer.max_time=soon", ["trainer.max_time must be a positive duration DD:HH:MM:SS", "soon"]),
        ("--trainer.limit_train_batches=0", ["trainer.limit_train_batches must be", "got 0"]),
        ("--trainer.limit_train_batches=1.5", ["trainer.limit_train_batches must be", "got 1.5"]),
        ("--trainer.limit_val_batches=.nan", ["trainer.limit_val_batches must be", "got nan"]),
        ("--trainer.fast_dev_run=-1", ["trainer.fast_dev_run must be at least 0, got -1"]),
        ("--trainer.precision=transformer-engine", ["trainer.precision", "bf16-mixed", "transformer-engine"]),
        ("--trainer.strategy=fsdp", ["trainer.strategy must be auto or ddp, got 'fsdp'"]),
        ("--trainer.barebones=true", ["trainer.barebones is not supported: ", "trainer.profiler"]),
        ("--trainer.val_check_interval=100", ["trainer.val_check_interval is not", "trainer.check_val_every_n_epoch"]),
        ("--trainer.accumulate_grad_batches=2", ["trainer.accumulate_grad_batches is not", "optimizer.accumulate"]),
        ("--trainer.gradient_clip_val=1", ["trainer.gradient_clip_val is not", "optimizer.gradient_clip_val"]),
        ("--lr=0.1", ["there is no option lr; did you mean optimizer.lr?"]),
        ("--no_flip", ["there is no option no_flip; did you mean data.no_flip?"]),
        ("--name=city", ["there is no option name; NVIDIA's --name is run.output here"]),
        ("--gpu_ids=0,1", ["there is no option gpu_ids; NVIDIA's --gpu_ids is trainer.devices here"]),
        (
            "--continue_train",
            ["no option continue_train; NVIDIA's --continue_train: `pix2pixhd train --resume`"],
        ),
        ("--no_lsgan", ["NVIDIA's --no_lsgan is loss.gan_mode=vanilla here"]),
    ],
)
def test_invalid_options_are_rejected(capsys, command_line, argument, parts):
    error = fails(capsys, command_line(argument), "pix2pixhd train: error: ", *parts)
    assert error.count("\n") == 1


def test_a_typo_in_a_config_file_is_reported(capsys, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  dataroot: somewhere\nmodel:\n  n_layer_D: 3\n")
    error = fails(capsys, ["train", "--config", path], "no option model.n_layer_D", "did you mean model.n_layers_D?")
    assert error.count("\n") == 1
    path.write_text("losses:\n  lambda_gan: 3\n")
    fails(capsys, ["train", "--config", path], "no option losses", "did you mean loss")
    path.write_text("data: [\n")
    fails(capsys, ["train", "--config", path], "config.yaml is not valid YAML")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "is empty; expected a YAML file with some of the sections data, model, loss"),
        (b"- loss", "holds ['loss']; expected a YAML file"),
        (b"loss:\n", "section loss must hold options, got nothing; remove it, or write its options indented below it"),
        (b"loss: [vgg]\n", "section loss must hold options, got ['vgg']; remove it"),
        (b"loss: lpips\n", "loss is a section, expected options indented below it, got 'lpips'"),
        (b"loss:\n  perceptual_network: ''\n", "Expected one of ['vgg19', "),
        (b"loss:\n  perceptual_layers: relu1_2\n", "Expected a list of str, as [a, b], null. Got value: relu1_2"),
    ],
)
def test_a_config_file_without_options_in_a_section_is_reported(capsys, tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert fails(capsys, ["train", "--config", path], message).count("\n") == 1


def test_data_errors_stop_the_run_before_it_starts(capsys, command_line, data_root, tmp_path):
    path = data_root / "train_label" / "b.png"
    label = np.asarray(Image.open(path)).copy()
    label[0, 0] = 9
    Image.fromarray(label).save(path)
    fails(capsys, command_line(), str(path), "label id 9", "data.label_nc=4")
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    fails(capsys, command_line(), str(path), "cannot be read")
    Image.fromarray(label[:20] % 4).save(path)
    fails(capsys, command_line(), "32x20", "32x24")
    path.unlink()
    fails(capsys, command_line(), "has no partner b.*", "train_label")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "logs").exists()


def test_validation_data_are_checked_too(capsys, command_line, data_root):
    (data_root / "test_img" / "x.png").unlink()
    fails(capsys, command_line("--data.val_phase=test"), "test_label/x.png", "no partner")


def test_an_unwritable_output_is_reported(capsys, command_line, tmp_path):
    (tmp_path / "file").write_text("")
    fails(capsys, command_line(output="file/run"), "run.output: cannot write to", "choose another folder")


def test_unavailable_vgg_weights_are_reported(capsys, command_line, tmp_path):
    fails(
        capsys, command_line("--loss.lambda_vgg=10", "--loss.vgg=/nowhere/vgg19.pth"), "loss.vgg", "/nowhere/vgg19.pth"
    )
    for path, found in ((tmp_path, "is not a file"), ("x" * 300, "does not exist")):
        fails(capsys, command_line("--loss.lambda_vgg=10", f"--loss.vgg={path}"), f"{path} {found}; pass")
    fails(
        capsys, command_line("--loss.lambda_vgg=10", "--loss.vgg="), "loss.vgg must be imagenet or the path of a file"
    )
    assert not (tmp_path / "run").exists()
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    fails(capsys, command_line("--loss.lambda_vgg=10", f"--loss.vgg={tmp_path}/vgg.pth"), "is not a VGG19 state dict")


def test_advice_names_options_instead_of_python(capsys, command_line, monkeypatch):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    error = fails(capsys, command_line("--loss.lambda_vgg=10"), "loss.vgg: /path/to/", "loss.vgg: random")
    assert "VGGLoss" not in error
    assert "vgg=" not in error


def test_a_missing_dataroot_is_reported(capsys):
    fails(capsys, ["train", "--data.dataroot=/nowhere/at/all"], "there is no folder /nowhere/at/all")


def test_generate_rejects_unusable_checkpoints(capsys, tmp_path, data_root):
    out, good = tmp_path / "out", data_root / "test_label"
    missing = ["generate", "--checkpoint", tmp_path / "no.ckpt", "--input", good, "--output", out]
    fails(capsys, missing, "no such checkpoint; name a checkpoint file")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 nothing")
    arguments = ["generate", "--checkpoint", broken, "--input", good, "--output", out]
    fails(capsys, arguments, "broken.ckpt", "cannot be read")
    torch.save({"state_dict": {}}, broken)
    fails(capsys, arguments, "not a checkpoint of pix2pixhd")
    torch.save({"state_dict": {}, "hyper_parameters": {"format": 99}}, broken)
    fails(capsys, arguments, "format 99", "upgrade")
    torch.save({"callback": pathlib.PurePath("code, not weights")}, broken)
    fails(capsys, arguments, "more than weights")


def test_the_traceback_is_shown_on_request(command_line, monkeypatch):
    monkeypatch.setenv("PIX2PIXHD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no option"):
        main(command_line("--model.ngff=8"))


def test_usage_and_version_are_printed(capsys):
    import pix2pixhd

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pix2pixhd {pix2pixhd.__version__}\n"
    with pytest.raises(SystemExit) as caught:
        main(["tarin"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "train, generate" in error
    assert "there is no command 'tarin'; did you mean train?" in error
    with pytest.raises(SystemExit):
        main(["paint"])
    assert "train, generate" in capsys.readouterr().err.replace("'", "")


def test_short_help_names_options_that_exist(capsys):
    for argument in ("--help", "-h"):
        assert main(["train", argument]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--config", "pairs", "--help"]) == 0
    assert capsys.readouterr().out * 2 == short
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert set(MOST_USED) <= known
    assert "--help-all" in short
    shipped = pathlib.Path(cli.__file__).parents[1] / "config" / "shipped"
    assert all(path.stem in MOST_USED["--config"] for path in shipped.glob("*.yaml"))


def test_full_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help-all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for section, kind in (SECTIONS | {"trainer": TrainerOptions}).items():
        for field in dataclasses.fields(kind):
            assert f"--{section}.{field.name} " in text


def test_data_help_names_the_check_command(capsys):
    for arguments in (["data", "--help"], ["data", "check", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert "check" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_training_on_a_missing_gpu_is_rejected(capsys, command_line):
    for devices in ("1", "0,1", "-1"):
        arguments = [*command_line(), "--trainer.accelerator=gpu", f"--trainer.devices={devices}"]
        fails(capsys, arguments, "pix2pixhd train: error: trainer: ", "gpu")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "lower data.batchSize"),
        (TorchDynamoException("No working C++ compiler found"), "compute.compile: false"),
    ],
)
def test_errors_during_training_come_with_advice(capsys, command_line, monkeypatch, error, advice):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(run, "train", fail)
    fails(capsys, command_line(), str(error), advice)


def test_a_too_low_memory_limit_of_the_perceptual_loss_is_rejected(capsys, command_line):
    options = ("--loss.lambda_vgg=1", "--loss.vgg=random", "--loss.vgg_memory_limit=1")
    size = ("--data.resize_or_crop=scale_width", "--data.loadSize=128")
    message = "error: loss.vgg_memory_limit is 1 MiB, but images of 96x128 need at least "
    fails(
        capsys,
        command_line(*options, *size),
        message,
        "increase loss.vgg_memory_limit, or set loss.perceptual_dtype: bfloat16",
    )


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_commands_start_without_lightning_and_name_missing_extras():
    """One process checks everything, because importing PyTorch takes seconds."""
    done = run_python("""
import sys
import pix2pixhd.models
from pix2pixhd.cli.main import main

print({"lightning", "jsonargparse", "tensorboard", "torchmetrics", "skimage"} & set(sys.modules))
assert main(["train", "--lr=1"]) == 2
print("lightning" in sys.modules)
sys.modules["lightning"] = None
assert main(["train"]) == 2
del sys.modules["lightning"]
sys.modules["skimage"] = None
sys.exit(main(["demo"]))
""")
    assert done.stdout == "set()\nFalse\n", done.stdout + done.stderr
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "there is no option lr" in lines[0]
    assert re.search(r"this command needs lightning: pip install '\S+\[train\]'", lines[1])
    assert re.search(r"this command needs scikit-image: pip install '\S+\[train,demo\]'", lines[2])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["['train', '--help']", "['train', '--config', 'pairs', '-h']", "['--help']"])
def test_help_imports_neither_torch_nor_lightning(arguments):
    heavy = "{'lightning', 'jsonargparse', 'torch', 'yaml'}"
    code = f"import sys\nfrom pix2pixhd.cli.main import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
    done = run_python(f"{code}print({heavy} & set(sys.modules))")
    assert done.stdout.endswith("\nset()\n"), done.stdout + done.stderr
