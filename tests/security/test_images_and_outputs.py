"""Datasets from others: files start no program, sizes are bounded, and names lead nowhere else."""

import html.parser

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import DataError, PairedDataset, find_inputs, read_image
from pix2pixhd.data.problems import display
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.results_page import write_page
from tests.helpers import fails

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 moveto
"""


def test_ghostscript_is_not_started_for_a_program_named_png(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: started.append(arguments))
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(not a PNG, JPEG, BMP, PPM, TIFF or WebP image\)"):
        read_image(path)
    assert started == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "tif", "webp"])
def test_every_supported_format_is_read_whatever_its_extension(tmp_path, suffix):
    image = Image.new("RGB", (4, 3), (200, 0, 0))
    image.save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").size == (4, 3)


def test_a_small_file_is_not_scaled_to_a_huge_image(capsys, data_root, make_checkpoint, tmp_path, monkeypatch):
    """With a lower limit than Pillow's 89 million, to which 1x60000 pixels would be scaled by a width of 1024."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    for kind, dtype in (("label", np.uint8), ("inst", np.uint16)):
        Image.fromarray(np.zeros((3000, 1), dtype)).save(data_root / f"test_{kind}" / "x.png")
    size = {"resize_or_crop": "scale_width", "loadSize": 32}
    inputs = ["--input", data_root / "test_label", "--output", tmp_path / "out"]
    message = (
        "x.png is 1x3000 (width x height) and would be scaled to 32x96000, which is more than the limit of 1000000"
    )
    fails(capsys, ["generate", "--checkpoint", make_checkpoint(**size), *inputs], message, "data.loadSize")
    # Without the check before, too.
    options = DataOptions(label_nc=4, **size)
    dataset = PairedDataset(find_inputs(data_root / "test_label", options), options, 8, augment=False)
    with pytest.raises(DataError, match="would be scaled to 32x96000"):
        dataset[0]
    assert dataset[1]["input"].shape == (24, 32)


@pytest.mark.parametrize("link", ["out/x.png", "out/images", "out/index.html"])
def test_generated_images_are_not_written_through_links(capsys, data_root, make_checkpoint, tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    # A link that points to nothing is not an existing file, which would be kept anyway.
    (tmp_path / link).symlink_to(elsewhere if link == "out/images" else elsewhere / "new")
    inputs = ["--input", data_root / "test_label", "--output", tmp_path / "out", "--html", "--force"]
    fails(capsys, ["generate", "--checkpoint", make_checkpoint(), *inputs], "outside of", "remove the symbolic link")
    assert list(elsewhere.iterdir()) == []


def test_the_output_folder_may_be_a_link(data_root, make_checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    inputs = ["--input", data_root / "test_label", "--output", tmp_path / "out"]
    assert main(["generate", "--checkpoint", str(make_checkpoint()), *map(str, inputs)]) == 0
    assert (tmp_path / "elsewhere" / "x.png").is_file()


@pytest.mark.parametrize("name", ["../../../a", "/tmp/a", "a/../../../../b"])
def test_a_name_does_not_lead_out_of_the_results_page(tmp_path, name):
    with pytest.raises(InputError, match="outside of"):
        write_page(tmp_path / "results" / "page", "title", [(name, {"generated": torch.zeros(3, 4, 4)}, {})])
    assert not list(tmp_path.rglob("*.png"))


def test_names_of_files_and_folders_add_no_markup_to_the_results_page(data_root, make_checkpoint, tmp_path):
    """The slash of an end tag can only come from a folder."""
    names = ["<script>alert(1)<", "script>", '"><img src=x onerror=alert(1)>']
    for kind in ("label", "inst", "img"):
        folder = data_root / f"test_{kind}"
        (folder / names[0]).mkdir()
        for old, new in (("x", f"{names[0]}/{names[1]}"), ("y", names[2])):
            (folder / f"{old}.png").rename(folder / f"{new}.png")
    inputs = ["--input", data_root / "test_label", "--real", data_root / "test_img", "--output", tmp_path / "out"]
    assert main(["generate", "--checkpoint", str(make_checkpoint()), *map(str, inputs), "--html"]) == 0
    scripts, handlers, images = [], [], []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            scripts.extend([tag] * (tag == "script"))
            handlers.extend(name for name, _ in attributes if name.startswith("on"))
            images.extend(dict(attributes)["src"] for _ in range(tag == "img"))

    Tags().feed((tmp_path / "out" / "index.html").read_text())
    assert scripts == ["script"]
    assert handlers == []
    assert len(images) == 6
    assert all(image.startswith("images/") for image in images)


def test_control_characters_in_names_are_not_printed(capsys, data_root, make_checkpoint, tmp_path):
    assert display("a\x1b[2J\n\x9bb ü.png") == "a\\x1b[2J\\x0a\\x9bb ü.png"
    (data_root / "test_label" / "\x1b[2Jz.png").write_text("hello")
    arguments = ["generate", "--checkpoint", make_checkpoint(no_instance=True), "--input", data_root / "test_label"]
    error = fails(capsys, [*arguments, "--output", tmp_path / "out"], "\\x1b[2Jz.png: cannot be read")
    assert "\x1b" not in error
