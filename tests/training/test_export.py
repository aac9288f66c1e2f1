"""Trained generators for other programs: the pictures are the same there."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from pix2pixhd.cli import main
from pix2pixhd.data import encode_input
from pix2pixhd.training.checkpoint import load_generator
from pix2pixhd.training.run import train


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def last(make_config, tmp_path):
    train(make_config())
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def test_onnx_gives_the_generators_pictures(last, tmp_path, capsys):
    path = tmp_path / "city.onnx"
    assert run("export", "--checkpoint", last, "--output", path, "--size", "32x16") == 0
    assert "takes label, instance of 32x16; largest difference" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    label = rng.integers(0, 4, (1, 16, 32)).astype(np.int32)
    instance = rng.integers(40000, 40004, (1, 16, 32)).astype(np.int32)
    (found,) = session.run(["generated"], {"label": label, "instance": instance})
    with torch.no_grad():
        condition = encode_input(torch.from_numpy(label), torch.from_numpy(instance), 4)
        expected = load_generator(last).network(condition)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_program_runs_without_this_package(make_config, tmp_path):
    config = make_config()
    config.model = dataclasses.replace(config.model, instance_feat=True, feat_num=2, nef=4, n_downsample_E=2)
    train(config)
    last, path = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "city.pt2"
    assert run("export", "--checkpoint", last, "--output", path, "--size", "16x24") == 0
    ids, features = torch.ones(1, 24, 16, dtype=torch.int32), torch.rand(1, 2, 24, 16)
    with torch.no_grad():
        found = torch.export.load(path).module()(ids, ids, features)
        condition = torch.cat([encode_input(ids, ids, 4), features], dim=1)
        torch.testing.assert_close(found, load_generator(last).network(condition), atol=1e-5, rtol=1e-5)


def test_nvidias_files_load_again_without_options(last, tmp_path, data_root):
    folder = tmp_path / "checkpoints" / "city"
    assert run("export", "--checkpoint", last, "--output", folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["latest_net_D.pth", "latest_net_G.pth", "opt.txt"]
    common = ["generate", "--input", data_root, "--output"]
    assert run(*common, tmp_path / "theirs", "--checkpoint", folder / "latest_net_G.pth") == 0
    assert run(*common, tmp_path / "ours", "--checkpoint", last) == 0
    for name in ("x.png", "y.png"):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_another_picture_is_an_error_and_no_file(last, tmp_path, monkeypatch, capsys):
    from pix2pixhd.training import export

    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    path = tmp_path / "city.pt2"
    assert run("export", "--checkpoint", last, "--output", path, "--size", "16x16") == 2
    assert "pictures differ from the original's" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "city.pt2", "--size", "18x16"], "--size: this generator needs multiples of 4"),
        (["--output", "city.pt2", "--size", "big"], "--size must be WIDTHxHEIGHT"),
        (["--output", "city.tflite"], "must end with .onnx or .pt2, or be a folder"),
    ],
)
def test_what_cannot_be_exported(last, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("export", "--checkpoint", last, *arguments) == 2
    assert message in capsys.readouterr().err


def test_what_onnx_needs_is_named(last, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("export", "--checkpoint", last, "--output", tmp_path / "a.onnx", "--size", "16x16") == 2
    assert "pip install 'pix2pixhd-fused[export]'" in capsys.readouterr().err
