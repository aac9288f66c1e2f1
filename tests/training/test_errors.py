"""Every mistake a user can make ends before training, with one message and exit code 2."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.cli import main


def fails(capsys, arguments, *parts):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in parts:
        assert part in error
    return error


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--model.ngff=8", ["there is no option model.ngff", "did you mean model.ngf?"]),
        ("--optimizer.niter=many", ["optimizer.niter", "many"]),
        ("--data.resize_or_crop=stretch", ["resize_or_crop", "stretch", "scale_width"]),
        ("--trainer.max_epoch=3", ["there is no option trainer.max_epoch", "did you mean trainer.max_epochs?"]),
        ("--loss.lambda_feat=-1", ["loss.lambda_feat must be at least 0, got -1"]),
        ("--optimizer.beta1=1.5", ["beta1"]),
        ("--model.num_D=0", ["model.num_D must be at least 1, got 0"]),
        ("--config=nowhere.yaml", ["nowhere.yaml"]),
    ],
)
def test_bad_options(capsys, command_line, argument, parts):
    error = fails(capsys, command_line(argument), "pix2pixhd train: error: ", *parts)
    assert error.count("\n") == 1


def test_config_typo_in_a_file(capsys, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  dataroot: somewhere\nmodel:\n  n_layer_D: 3\n")
    error = fails(capsys, ["train", "--config", path], "no option model.n_layer_D", "did you mean model.n_layers_D?")
    assert error.count("\n") == 1
    path.write_text("losses:\n  lambda_gan: 3\n")
    fails(capsys, ["train", "--config", path], "no option losses", "did you mean loss")
    path.write_text("data: [\n")
    fails(capsys, ["train", "--config", path], "config.yaml is not valid YAML")


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


def test_output_that_cannot_be_written(capsys, command_line, tmp_path):
    (tmp_path / "file").write_text("")
    fails(capsys, command_line(output="file/run"), "run.output: cannot write into", "choose another folder")


def test_vgg_weights_that_cannot_be_had(capsys, command_line, tmp_path):
    fails(
        capsys, command_line("--loss.lambda_vgg=10", "--loss.vgg=/nowhere/vgg19.pth"), "loss.vgg", "/nowhere/vgg19.pth"
    )
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    fails(capsys, command_line("--loss.lambda_vgg=10", f"--loss.vgg={tmp_path}/vgg.pth"), "no VGG19 state dict")


def test_missing_dataroot(capsys):
    fails(capsys, ["train", "--data.dataroot=/nowhere/at/all"], "there is no folder /nowhere/at/all")


def test_generate(capsys, tmp_path, data_root):
    out, good = tmp_path / "out", data_root / "test_label"
    missing = ["generate", "--checkpoint", tmp_path / "no.ckpt", "--input", good, "--output", out]
    fails(capsys, missing, "no such checkpoint")
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


def test_traceback_on_request(command_line, monkeypatch):
    monkeypatch.setenv("PIX2PIXHD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no option"):
        main(command_line("--model.ngff=8"))


def test_usage_and_version(capsys):
    import pix2pixhd

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pix2pixhd {pix2pixhd.__version__}\n"
    with pytest.raises(SystemExit) as caught:
        main(["tarin"])
    assert caught.value.code == 2
    assert "train, generate" in capsys.readouterr().err.replace("'", "")


def test_train_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--data.label_nc", "--loss.lambda_gan", "--trainer.max_epochs"):
        assert option in text


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_missing_extras_name_the_command_to_install():
    hide = "import sys; sys.modules['{}'] = None\nfrom pix2pixhd.cli import main\nsys.exit(main({}))"
    done = run_python(hide.format("lightning", ["train"]))
    assert done.returncode == 2
    assert "pip install 'pix2pixhd-fused[train]'" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_python(hide.format("skimage", ["demo"]))
    assert done.returncode == 2
    assert "pip install 'pix2pixhd-fused[train,demo]'" in done.stderr


def test_the_command_starts_without_lightning():
    heavy = "{'lightning', 'jsonargparse', 'tensorboard', 'torchmetrics', 'skimage'}"
    done = run_python(f"import sys, pix2pixhd.cli, pix2pixhd.models; print({heavy} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stdout + done.stderr
