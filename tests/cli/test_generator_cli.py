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
    return make_checkpoint("features.ckpt", dataclasses.replace(make_config().model, instance_feat=True, **FEATURES))


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
    assert f"{option.split('=')[0]}: {checkpoint} contains the options of its networks; remove it" in error


@pytest.mark.parametrize("command", ["generate", "features", "export"])
def test_there_is_no_average_in_nvidias_files(refused, nvidia, data_root, tmp_path, command):
    arguments = {
        "generate": generate(nvidia, data_root, tmp_path / "out"),
        "features": ["features", "--checkpoint", nvidia, "--dataroot", data_root, "--output", tmp_path / "a.npz"],
        "export": ["export", "--checkpoint", nvidia, "--output", tmp_path / "a.pt2", "--size", "16x16"],
    }[command]
    options = [*flags(NETWORK | FEATURES), "--instance_feat"]
    assert f"--no-ema: {nvidia} contains no moving average" in refused(*arguments, *options, "--no-ema")


@pytest.mark.parametrize(
    ("command", "advice"), [("generate", "--batch"), ("features", "--loadSize"), ("bench", "--dt")]
)
def test_running_out_of_gpu_memory_is_reported_with_advice(refused, monkeypatch, command, advice):
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
        (["--fineSize=16"], "--fineSize: has no effect, since this command never crops images"),
        (["--loadSize=16"], "--loadSize: has no effect with resize_or_crop 'crop'"),
        (["--loadSize=0", "--resize_or_crop=scale_width"], "loadSize must be at least 1, got 0"),
        (["--keep-size", "--resize_or_crop=none"], "--keep-size and the scaling options are mutually exclusive"),
        (["--features=a.npz"], "--features: {checkpoint} was trained without an encoder"),
        (["--encode={data}/test_img"], "--encode: {checkpoint} was trained without an encoder"),
        (["--style-seed=0"], "--style-seed only affects --features"),
        (["--real={data}/test_img"], "--real only affects the results page; add --html"),
        (["--html", "--real={data}", "--encode={data}"], "--real and --encode are mutually exclusive"),
        (["--device=foo"], "--device: foo cannot be used"),
        (["--device=meta"], "--device: meta cannot be used"),
        (["--how_many=0"], "--how_many must be at least 1"),
    ],
)
def test_generate_rejects_options_without_effect(refused, checkpoint, data_root, tmp_path, options, message):
    options = [option.format(data=data_root) for option in options]
    error = refused(*generate(checkpoint, data_root, tmp_path / "out"), *options)
    assert message.format(checkpoint=checkpoint) in error


@pytest.mark.parametrize("command", ["generate", "features", "export"])
def test_a_folder_without_a_checkpoint_is_rejected(refused, data_root, tmp_path, command):
    more = ["--input", data_root / "test_label"] if command == "generate" else []
    output = tmp_path / {"generate": "out", "features": "out.npz", "export": "out.onnx"}[command]
    error = refused(command, *more, "--checkpoint", data_root, "--output", output)
    assert f"{data_root}: is a folder without checkpoints/last.ckpt" in error


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(make_checkpoint, data_root, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    make_checkpoint("run/checkpoints/last.ckpt")
    assert main([str(x) for x in generate(tmp_path / "run", data_root, tmp_path / "out")]) == 0


def test_generate_prints_the_folder_that_it_read(checkpoint, data_root, tmp_path, capsys):
    for source in (data_root, data_root / "test_label"):
        assert main([str(x) for x in generate(checkpoint, source, tmp_path / "out")]) == 0
        assert f"wrote 2 images from {data_root / 'test_label'} to {tmp_path / 'out'}\n" in capsys.readouterr().out


def test_label_ids_unknown_to_the_generator_are_rejected(refused, checkpoint, data_root, tmp_path):
    path = data_root / "test_label" / "x.png"
    Image.fromarray(np.full((24, 32), 255, dtype=np.uint8)).save(path)
    (tmp_path / "out").mkdir()
    error = refused(*generate(checkpoint, data_root, tmp_path / "out"))
    assert "label id 255 is outside data.label_nc=4, which allows 0 to 3; the generator was trained with" in error
    assert "set data.label_nc" not in error
    assert f"--input: {path} is a file; give the folder that contains it" in refused(
        *generate(checkpoint, path, tmp_path / "out")
    )


def test_scaling_applies_to_a_ckpt(checkpoint, data_root, tmp_path):
    arguments = generate(checkpoint, data_root, tmp_path / "out")
    assert main([str(x) for x in [*arguments, "--resize_or_crop=scale_width", "--loadSize=16"]]) == 0
    assert Image.open(tmp_path / "out" / "x.png").size == (16, 12)


def test_nvidias_files_cluster_and_generate(nvidia, with_features, data_root, tmp_path):
    """The same styles and images from a .ckpt as from NVIDIA files with options."""
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


def test_nvidias_files_without_an_encoder_are_rejected(nvidia, data_root, tmp_path, refused):
    (nvidia.parent / "latest_net_E.pth").unlink()
    options = [*flags(NETWORK | FEATURES), "--instance_feat"]
    error = refused("features", "--checkpoint", nvidia, "--output", tmp_path / "a.npz", *options)
    assert "has no encoder" in error
    assert "latest_net_E.pth" in error
    error = refused(*generate(nvidia, data_root, tmp_path / "out"), *options, "--encode", data_root / "test_img")
    assert "--encode" in error
    assert "latest_net_E.pth" in error


@pytest.mark.parametrize("count", [0, -3])
def test_an_invalid_number_of_clusters_is_rejected(refused, with_features, tmp_path, count):
    error = refused("features", "--checkpoint", with_features, "--output", tmp_path / "a.npz", "--n_clusters", count)
    assert f"--n_clusters must be at least 1, got {count}" in error


@pytest.mark.parametrize("command", ["features", "generate"])
def test_a_missing_device_is_rejected(refused, with_features, data_root, tmp_path, command):
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
        ({}, "it contains no classes"),
        ({"class_0": np.zeros((2, 3))}, "contains styles with 3 features, but this generator takes 2"),
        ({"class_0": np.zeros((1, 2)), "class_1": np.zeros((1, 3))}, "classes with [2, 3] features"),
        ({"class_0": np.zeros(2)}, "class_0 must be [styles, features]"),
        ({"class_0": np.zeros((0, 2))}, "got [0, 2]"),
        ({"class_0": np.zeros((1, 2), dtype=np.int64)}, "of int64"),
        ({"class_0": np.array([[np.nan, 0.0]])}, "finite"),
        ({"class_0": np.array([["a", "b"]])}, "class_0 must be"),
        ({"class_0": np.array([[{}, {}]])}, "it contains data other than arrays of numbers"),
        ({"class_x": np.zeros((1, 2))}, "an array named 'class_x' instead of class_N"),
        ({"label": np.zeros((1, 2))}, "an array named 'label'"),
        ({"class_4": np.zeros((1, 2))}, "contains styles of class 4, but this generator has the classes 0 to 3"),
    ],
)
def test_styles_of_another_generator_are_refused(refused, with_features, data_root, tmp_path, arrays, message):
    np.savez(tmp_path / "styles.npz", **arrays)
    arguments = generate(with_features, data_root, tmp_path / "out")
    error = refused(*arguments, "--features", tmp_path / "styles.npz")
    assert message in error
    assert "create it" in error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_files_without_styles_are_refused(refused, with_features, data_root, tmp_path, content):
    (tmp_path / "styles.npz").write_bytes(content)
    arguments = generate(with_features, data_root, tmp_path / "out")
    assert "is not a file of `pix2pixhd features`" in refused(*arguments, "--features", tmp_path / "styles.npz")
    assert "is not a file of `pix2pixhd features`" in refused(*arguments, "--features", tmp_path / "missing.npz")
    np.save(tmp_path / "styles.npy", np.zeros((2, 2)))
    assert "is not a file of `pix2pixhd features`" in refused(*arguments, "--features", tmp_path / "styles.npy")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_appear_only_on_a_terminal(with_features, data_root, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    styles = tmp_path / "styles.npz"
    assert main(["features", "--checkpoint", str(with_features), "--output", str(styles)]) == 0
    error = capsys.readouterr().err
    assert ("encoding" in error) == terminal
    arguments = generate(with_features, data_root, tmp_path / "out")
    assert main([str(x) for x in [*arguments, "--features", styles]]) == 0
    error = capsys.readouterr().err
    assert ("generating" in error) == terminal
    if not terminal:
        assert error == ""


@pytest.mark.parametrize(("delay", "appears"), [(0.0, True), (1e-9, True), (1000.0, False)])
def test_a_progress_bar_appears_after_its_delay(capsys, monkeypatch, delay, appears):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("checking", 2, shown=True, delay=delay) as advance:
        advance()
    assert ("checking" in capsys.readouterr().err) == appears


def test_a_state_dict_named_ckpt_is_rejected(refused, data_root, tmp_path):
    torch.save({"model.1.weight": torch.zeros(3)}, tmp_path / "net.ckpt")
    error = refused(*generate(tmp_path / "net.ckpt", data_root, tmp_path / "out"))
    assert "not a checkpoint of pix2pixhd" in error
    assert "NVIDIA's weights are recognized by the extension .pth" in error
