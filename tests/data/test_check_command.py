"""``pix2pixhd data check`` reports all problems of a dataset, and no others."""

import json

import numpy as np
import pytest
from PIL import Image

from pix2pixhd.cli.main import main


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        for kind, array in (
            ("label", rng.integers(0, 4, (32, 48), dtype=np.uint8)),
            ("inst", rng.integers(0, 50000, (32, 48)).astype(np.uint16)),
            ("img", rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)),
        ):
            path = tmp_path / f"train_{kind}" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path


def check(capsys, dataset, *more):
    code = main(["data", "check", str(dataset), "--label-nc", "4", *more])
    return code, capsys.readouterr().out


def test_a_valid_dataset_has_no_problems(capsys, dataset):
    code, out = check(capsys, dataset)
    assert code == 0
    assert out.startswith("train: 8 images, no problems\n")


def test_all_problems_are_listed_with_file_and_value(capsys, dataset):
    label = np.zeros((32, 48), dtype=np.uint8)
    for k, name in enumerate("abcdef"):
        label[0, 0] = 10 + k
        Image.fromarray(label).save(dataset / "train_label" / f"{name}.png")
    whole = (dataset / "train_img" / "g.png").read_bytes()
    (dataset / "train_img" / "g.png").write_bytes(whole[:80])
    Image.new("RGB", (48, 30)).save(dataset / "train_img" / "h.png")
    code, out = check(capsys, dataset)
    assert code == 1
    for k, name in enumerate("abcdef"):
        assert f"{name}.png: label id {10 + k} is outside data.label_nc=4" in out
    assert "g.png: cannot be read" in out
    assert "h.png is 48x30 (width x height), but" in out
    assert out.startswith("train: 8 images, 8 problems\n")
    found = json.loads(check(capsys, dataset, "--json", "-")[1])["train"]
    assert found["images"] == 8
    assert len(found["problems"]) == 8
    folders = ["label"] * 6 + ["img"] * 2
    files = [str(dataset / f"train_{kind}" / f"{name}.png") for kind, name in zip(folders, "abcdefgh", strict=True)]
    assert [problem["file"] for problem in found["problems"]] == files


def test_jpeg_label_maps_are_reported(capsys, dataset):
    path = dataset / "train_label" / "a.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    code, out = check(capsys, dataset)
    assert code == 1
    assert "a.jpg: a label map must not be a JPEG file" in out


def test_missing_partners_and_folders_are_reported(capsys, dataset, tmp_path):
    (dataset / "train_inst" / "c.png").unlink()
    code, out = check(capsys, dataset)
    assert code == 1
    assert "c.png has no partner c.* in" in out
    assert check(capsys, dataset, "--no-instance")[0] == 0
    code, out = check(capsys, dataset, "--phase", "val")
    assert code == 1
    assert f"there is no folder {dataset}/val_label" in out


def test_sizes_are_checked_for_the_configured_generator(capsys, dataset, tmp_path):
    """The required multiple of sizes is that of the configured generator, unless ``--multiple`` is given."""
    config = tmp_path / "config.yaml"
    sections = "data: {{resize_or_crop: crop, fineSize: 16}}\nmodel: {{n_downsample_global: {}}}\n"
    for downsampling_layers, code in ((3, 0), (4, 1)):
        config.write_text(sections.format(downsampling_layers))
        found, out = check(capsys, dataset, "--config", str(config))
        assert found == code, out
    assert (
        "would be trained at 16x16 (width x height), but this generator needs multiples of 16 that are at least 32"
        in out
    )
    assert check(capsys, dataset, "--config", str(config), "--multiple", "8")[0] == 0


def test_invalid_arguments_are_rejected(capsys, dataset):
    for multiple in ("0", "-8"):
        assert main(["data", "check", str(dataset), "--multiple", multiple]) == 2
        assert f"--multiple must be at least 1, got {multiple}" in capsys.readouterr().err
    assert main(["data"]) == 2
    assert "pix2pixhd data check DIR" in capsys.readouterr().err
