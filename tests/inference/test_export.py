"""Exported generators produce the same images in other programs."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.cli.main import main
from pix2pixhd.data import encode_input


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def last(make_checkpoint):
    return make_checkpoint()


def test_onnx_model_generates_the_same_images(last, tmp_path, capsys):
    path = tmp_path / "city.onnx"
    assert run("export", "--checkpoint", last, "--output", path, "--size", "32x16") == 0
    assert "inputs label, instance of 32x16; largest difference" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    label = rng.integers(0, 4, (1, 16, 32)).astype(np.int32)
    instance = rng.integers(40000, 40004, (1, 16, 32)).astype(np.int32)
    (found,) = session.run(["generated"], {"label": label, "instance": instance})
    with torch.no_grad():
        condition = encode_input(torch.from_numpy(label), torch.from_numpy(instance), 4)
        expected = load_generator(last).network(condition)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_program_runs_without_this_package(make_config, make_checkpoint, tmp_path):
    model = dataclasses.replace(make_config().model, instance_feat=True, feat_num=2, nef=4, n_downsample_E=2)
    last, path = make_checkpoint(model=model), tmp_path / "city.pt2"
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


@pytest.mark.parametrize("existing", [False, True])
def test_folders_may_have_a_dot_in_their_name(last, tmp_path, existing):
    folder = tmp_path / ("my.city" if existing else "city_v1.5")
    if existing:
        folder.mkdir()
    assert run("export", "--checkpoint", last, "--output", folder) == 0
    assert (folder / "latest_net_G.pth").is_file()


def test_nvidias_files_can_be_exported(last, tmp_path, capsys):
    folder, path = tmp_path / "city", tmp_path / "city.pt2"
    assert run("export", "--checkpoint", last, "--output", folder) == 0
    assert run("export", "--checkpoint", folder / "latest_net_G.pth", "--output", tmp_path / "again") == 2
    assert "is already in NVIDIA's format" in capsys.readouterr().err
    (folder / "opt.txt").unlink()
    command = ["export", "--checkpoint", folder / "latest_net_G.pth", "--output", path, "--size", "16x24"]
    assert run(*command) == 2
    assert "give the options it was trained with" in capsys.readouterr().err
    options = {"label_nc": 4, "ngf": 4, "n_downsample_global": 2, "n_blocks_global": 1}
    assert run(*command, *(f"--{name}={value}" for name, value in options.items())) == 0
    ids = torch.ones(1, 24, 16, dtype=torch.int32)
    with torch.no_grad():
        found = torch.export.load(path).module()(ids, ids)
        expected = load_generator(last).network(encode_input(ids, ids, 4))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_export_with_different_output_is_an_error_and_writes_no_file(last, tmp_path, monkeypatch, capsys):
    from pix2pixhd.inference import export

    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    path = tmp_path / "city.pt2"
    for old in ([], [b"the one before"]):
        for content in old:
            path.write_bytes(content)
        assert run("export", "--checkpoint", last, "--output", path, "--size", "16x16", "--force") == 2
        assert "images of the exported generator differ" in capsys.readouterr().err
        assert [file.read_bytes() for file in tmp_path.glob("*.pt2")] == old
        assert not list(tmp_path.glob(".pix2pixhd*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "city.pt2", "--size", "18x16"], "--size: width and height must be multiples of 4"),
        (["--output", "city.tflite"], "must end with .onnx or .pt2, or be a folder"),
        (
            ["--output", "city", "--size", "16x16"],
            "--size: networks in NVIDIA's format are not limited to one",
        ),
        (["--output", "city.pt2", "--ngf", "8"], "--ngf: "),
    ],
)
def test_unsupported_exports_are_rejected(last, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("export", "--checkpoint", last, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["big", "0x16", "16", "99999x16"])
def test_unusable_sizes_are_rejected(last, tmp_path, capsys, size):
    with pytest.raises(SystemExit) as caught:
        run("export", "--checkpoint", last, "--output", tmp_path / "city.pt2", "--size", size)
    assert caught.value.code == 2
    assert "--size: must be " in capsys.readouterr().err


def test_missing_onnx_packages_are_named(last, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("export", "--checkpoint", last, "--output", tmp_path / "a.onnx", "--size", "16x16") == 2
    assert "ONNX needs onnxruntime: pip install '" in capsys.readouterr().err
