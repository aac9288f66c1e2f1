"""Options of generate, features and export: each has its effect or is refused, for .ckpt and .pth alike."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.cli import main as cli
from pix2pixhd.cli.main import main
from pix2pixhd.inference.instance_features import FeatureClusters
from pix2pixhd.reporting.progress import progress_bar

NETWORK = {"label_nc": 4, "ngf": 4, "n_downsample_global": 2, "n_blocks_global": 1}
FEATURES = {"feat_num": 2, "nef": 4, "n_downsample_E": 2}


def flags(options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command and returns its message; it must write nothing."""

    def refused(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main([str(argument) for argument in arguments]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1 or "problems in the data:" in error
        return error

    return refused


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture
def with_features(make_checkpoint, make_config):
    return make_checkpoint("looks.ckpt", dataclasses.replace(make_config().model, instance_feat=True, **FEATURES))


@pytest.fixture
def nvidia(with_features, tmp_path):
    """A folder as NVIDIA's code writes it, with an encoder and without opt.txt."""
    folder = tmp_path / "nvidia"
    assert main(["export", "--checkpoint", str(with_features), "--output", str(folder)]) == 0
    (folder / "opt.txt").unlink()
    return folder / "latest_net_G.pth"


def generate(checkpoint, data_root, output):
    return ["generate", "--checkpoint", checkpoint, "--input", data_root, "--output", output]


@pytest.mark.parametrize("command", ["generate", "features", "export"])
@pytest.mark.parametrize(
    "option", ["--label_nc=99", "--ngf=4", "--netG=local", "--no_instance", "--instance_feat", "--norm=batch"]
)
def test_networks_of_a_ckpt_are_not_overridden(refused, checkpoint, data_root, tmp_path, command, option):
    arguments = {
        "generate": generate(checkpoint, data_root, tmp_path / "out"),
        "features": ["features", "--checkpoint", checkpoint, "--output", tmp_path / "a.npz"],
        "export": ["export", "--checkpoint", checkpoint, "--output", tmp_path / "a.pt2"],
    }[command]
    error = refused(*arguments, option)
    assert f"{option.split('=')[0]}: {checkpoint} knows its networks; leave it out" in error


@pytest.mark.parametrize("command", ["generate", "features", "export"])
def test_there_is_no_average_in_nvidias_files(refused, nvidia, data_root, tmp_path, command):
    arguments = {
        "generate": generate(nvidia, data_root, tmp_path / "out"),
        "features": ["features", "--checkpoint", nvidia, "--dataroot", data_root, "--output", tmp_path / "a.npz"],
        "export": ["export", "--checkpoint", nvidia, "--output", tmp_path / "a.pt2", "--size", "16x16"],
    }[command]
    options = [*flags(NETWORK | FEATURES), "--instance_feat"]
    assert f"--no-ema: {nvidia} holds no moving average" in refused(*arguments, *options, "--no-ema")


@pytest.mark.parametrize(
    ("command", "advice"), [("generate", "--batch"), ("features", "--loadSize"), ("bench", "--dt")]
)
def test_out_of_gpu_memory(refused, monkeypatch, command, advice):
    def fail(argv):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setitem(cli._RUN, command, fail)
    error = refused(command)
    assert error.startswith(f"pix2pixhd {command}: error: out of GPU memory (CUDA out of memory. Tried to allocate")
    assert advice in error


@pytest.mark.parametrize(("more", "count"), [([], 1), (["--dataroot"], 3), (["--phase", "test"], 2)])
def test_the_limit_of_the_training_data_is_not_that_of_other_data(
    make_checkpoint, make_config, data_root, tmp_path, monkeypatch, more, count
):
    model = dataclasses.replace(make_config().model, instance_feat=True, **FEATURES)
    checkpoint = make_checkpoint(model=model, max_dataset_size=1)
    found = []

    def cluster(generator, dataset, *_):
        found.append(len(dataset))
        return FeatureClusters({0: np.zeros((1, 2), np.float32)})

    monkeypatch.setattr("pix2pixhd.cli.features.cluster_features", cluster)
    more = [*more, data_root] if more == ["--dataroot"] else more
    assert main([str(x) for x in ["features", "--checkpoint", checkpoint, "--output", tmp_path / "a.npz", *more]]) == 0
    assert found == [count]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fineSize=16"], "--fineSize: images are never cropped here, so it has no effect"),
        (["--loadSize=16"], "--loadSize: has no effect with resize_or_crop 'crop'"),
        (["--loadSize=0", "--resize_or_crop=scale_width"], "loadSize must be at least 1, got 0"),
        (["--keep-size", "--resize_or_crop=none"], "--keep-size and the options of scaling exclude each other"),
        (["--features=a.npz"], "--features: {checkpoint} was trained without an encoder"),
        (["--encode={data}/test_img"], "--encode: {checkpoint} was trained without an encoder"),
        (["--style-seed=0"], "--style-seed is the seed of the draw from --features"),
        (["--real={data}/test_img"], "--real is for the results page; add --html"),
        (["--html", "--real={data}", "--encode={data}"], "--real and --encode exclude each other"),
        (["--device=foo"], "--device: foo cannot be used"),
        (["--device=meta"], "--device: meta cannot be used"),
        (["--how_many=0"], "--how_many must be at least 1"),
    ],
)
def test_options_of_generate_without_effect(refused, checkpoint, data_root, tmp_path, options, message):
    options = [option.format(data=data_root) for option in options]
    error = refused(*generate(checkpoint, data_root, tmp_path / "out"), *options)
    assert message.format(checkpoint=checkpoint) in error


def test_scaling_applies_to_a_ckpt(checkpoint, data_root, tmp_path):
    arguments = generate(checkpoint, data_root, tmp_path / "out")
    assert main([str(x) for x in [*arguments, "--resize_or_crop=scale_width", "--loadSize=16"]]) == 0
    assert Image.open(tmp_path / "out" / "x.png").size == (16, 12)


def test_nvidias_files_cluster_and_generate(nvidia, with_features, data_root, tmp_path):
    """The same looks and images from a .ckpt as from NVIDIA files with options."""
    options = [*flags(NETWORK | FEATURES), "--instance_feat", "--resize_or_crop=crop"]
    common = ["features", "--dataroot", data_root, "--n_clusters", 2, "--output"]
    theirs, ours = tmp_path / "theirs.npz", tmp_path / "ours.npz"
    assert main([str(x) for x in [*common, theirs, "--checkpoint", nvidia, *options, "--device", "cpu"]]) == 0
    assert main([str(x) for x in [*common, ours, "--checkpoint", with_features]]) == 0
    a, b = FeatureClusters.load(theirs).centers, FeatureClusters.load(ours).centers
    assert a.keys() == b.keys()
    for label in a:
        np.testing.assert_array_equal(a[label], b[label])
    for name, more in (("theirs", [nvidia, *options]), ("ours", [with_features])):
        arguments = generate(more[0], data_root, tmp_path / name)
        assert main([str(x) for x in [*arguments, *more[1:], "--features", theirs]]) == 0
    assert (tmp_path / "theirs" / "x.png").read_bytes() == (tmp_path / "ours" / "x.png").read_bytes()


def test_nvidias_files_without_an_encoder(nvidia, data_root, tmp_path, refused):
    (nvidia.parent / "latest_net_E.pth").unlink()
    options = [*flags(NETWORK | FEATURES), "--instance_feat"]
    error = refused("features", "--checkpoint", nvidia, "--output", tmp_path / "a.npz", *options)
    assert "has no encoder" in error
    assert "latest_net_E.pth" in error
    error = refused(*generate(nvidia, data_root, tmp_path / "out"), *options, "--encode", data_root / "test_img")
    assert "--encode" in error
    assert "latest_net_E.pth" in error


@pytest.mark.parametrize("count", [0, -3])
def test_no_clusters(refused, with_features, tmp_path, count):
    error = refused("features", "--checkpoint", with_features, "--output", tmp_path / "a.npz", "--n_clusters", count)
    assert f"--n_clusters must be at least 1, got {count}" in error


@pytest.mark.parametrize("command", ["features", "generate"])
def test_a_device_that_there_is_not(refused, with_features, data_root, tmp_path, command):
    arguments = [*generate(with_features, data_root, tmp_path / "out"), "--encode", data_root / "test_img"]
    if command == "features":
        arguments = ["features", "--checkpoint", with_features, "--output", tmp_path / "a.npz"]
    assert "--device: cuda:99 cannot be used" in refused(*arguments, "--device", "cuda:99")


@pytest.mark.parametrize("option", ["--real", "--encode"])
def test_all_missing_images_are_listed_at_once(refused, checkpoint, with_features, data_root, tmp_path, option):
    (tmp_path / "images").mkdir()
    shutil.copy(data_root / "test_img" / "x.png", tmp_path / "images" / "unrelated.png")
    network, more = (checkpoint, ["--html"]) if option == "--real" else (with_features, [])
    error = refused(*generate(network, data_root, tmp_path / "out"), *more, option, tmp_path / "images")
    assert [name for name in "xy" if f"{name}.png has no image {name}.*" in error] == ["x", "y"], error


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "it holds no classes"),
        ({"class_0": np.zeros((2, 3))}, "holds looks of 3 features, this generator takes 2"),
        ({"class_0": np.zeros((1, 2)), "class_1": np.zeros((1, 3))}, "classes of [2, 3] features"),
        ({"class_0": np.zeros(2)}, "class_0 must be [looks, features]"),
        ({"class_0": np.zeros((0, 2))}, "got [0, 2]"),
        ({"class_0": np.zeros((1, 2), dtype=np.int64)}, "of int64"),
        ({"class_0": np.array([[np.nan, 0.0]])}, "finite"),
        ({"class_0": np.array([["a", "b"]])}, "class_0 must be"),
        ({"class_0": np.array([[{}, {}]])}, "Object arrays cannot be loaded"),
        ({"class_x": np.zeros((1, 2))}, "an array named 'class_x' instead of class_N"),
        ({"label": np.zeros((1, 2))}, "an array named 'label'"),
        ({"class_4": np.zeros((1, 2))}, "looks of class 4, this generator has the classes 0 to 3"),
    ],
)
def test_looks_of_another_kind(refused, with_features, data_root, tmp_path, arrays, message):
    np.savez(tmp_path / "looks.npz", **arrays)
    arguments = generate(with_features, data_root, tmp_path / "out")
    error = refused(*arguments, "--features", tmp_path / "looks.npz")
    assert message in error
    assert "create it" in error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_files_that_hold_no_looks(refused, with_features, data_root, tmp_path, content):
    (tmp_path / "looks.npz").write_bytes(content)
    arguments = generate(with_features, data_root, tmp_path / "out")
    assert "is not what `pix2pixhd features` writes" in refused(*arguments, "--features", tmp_path / "looks.npz")
    assert "is not what `pix2pixhd features` writes" in refused(*arguments, "--features", tmp_path / "missing.npz")
    np.save(tmp_path / "looks.npy", np.zeros((2, 2)))
    assert "is not what `pix2pixhd features` writes" in refused(*arguments, "--features", tmp_path / "looks.npy")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_only_on_a_terminal(with_features, data_root, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    looks = tmp_path / "looks.npz"
    assert main(["features", "--checkpoint", str(with_features), "--output", str(looks)]) == 0
    error = capsys.readouterr().err
    assert ("encoding" in error) == terminal
    arguments = generate(with_features, data_root, tmp_path / "out")
    assert main([str(x) for x in [*arguments, "--features", looks]]) == 0
    error = capsys.readouterr().err
    assert ("generating" in error) == terminal
    if not terminal:
        assert error == ""


@pytest.mark.parametrize(("patience", "appears"), [(0.0, True), (1e-9, True), (1000.0, False)])
def test_a_progress_bar_appears_when_its_patience_ends(capsys, monkeypatch, patience, appears):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("checking", 2, shown=True, patience=patience) as advance:
        advance()
    assert ("checking" in capsys.readouterr().err) == appears


def test_weights_of_another_kind_under_a_ckpt_name(refused, data_root, tmp_path):
    torch.save({"model.1.weight": torch.zeros(3)}, tmp_path / "net.ckpt")
    error = refused(*generate(tmp_path / "net.ckpt", data_root, tmp_path / "out"))
    assert "not a checkpoint of pix2pixhd" in error
    assert "NVIDIA's weights are recognised by the ending .pth" in error
