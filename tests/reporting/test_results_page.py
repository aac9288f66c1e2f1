"""The results page: every image exists, metrics are correct, names are escaped."""

import html.parser
import pathlib
import urllib.parse

import pytest
import torch

from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.metrics import image_metrics
from pix2pixhd.reporting.results_page import write_page
from pix2pixhd.training.callbacks import results_page
from pix2pixhd.training.run import train


class Page(html.parser.HTMLParser):
    """The images, headings and numbers of a page."""

    def __init__(self, path):
        super().__init__()
        self.folder = path.parent
        self.images, self.numbers, self.rows, self._cell = [], [], [], None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        if tag == "tr" and "data-name" in attributes:
            self.rows.append(attributes["data-name"])
        self._cell = attributes.get("class") if tag == "td" else None

    def handle_endtag(self, tag):
        self._cell = None

    def handle_data(self, data):
        if self._cell == "number":
            self.numbers.append(float(data))

    def check_images(self):
        for image in self.images:
            assert (self.folder / urllib.parse.unquote(image["src"])).is_file(), image


def test_a_run_leaves_a_page(make_config, tmp_path):
    train(make_config(val_phase="test"))
    page = Page(tmp_path / "run" / "results" / "index.html")
    page.check_images()
    assert page.rows == ["x", "y"]
    assert [image["data-column"] for image in page.images] == ["label", "generated", "real"] * 2
    assert len(page.numbers) == 2 * 3


def test_no_page_is_written_if_it_is_disabled(make_config, tmp_path):
    config = make_config()
    config.run.results_count = 0
    train(config)
    assert not (tmp_path / "run" / "results").exists()


def test_generate_writes_a_page_with_metrics_against_real_images(make_config, tmp_path, data_root):
    train(make_config())
    last, out = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out"
    common = ["generate", "--checkpoint", f"{last}", "--input", f"{data_root}", "--html", "--output", f"{out}"]
    assert main([*common]) == 0
    page = Page(out / "index.html")
    assert [image["data-column"] for image in page.images] == ["input", "generated"] * 2
    assert not page.numbers
    assert main([*common, "--real", f"{data_root / 'test_img'}", "--how_many", "1"]) == 0
    page = Page(out / "index.html")
    page.check_images()
    assert page.rows == ["x"]
    assert len(page.numbers) == 3
    assert (out / "x.png").read_bytes() == (out / "images" / "generated" / "x.png").read_bytes()


def test_metrics_match_their_formulas():
    torch.manual_seed(0)
    a, b = torch.rand(3, 16, 16) * 2 - 1, torch.rand(3, 16, 16) * 2 - 1
    found = image_metrics(a, b)
    assert found["L1"] == pytest.approx(float((a - b).abs().mean()))
    assert found["PSNR"] == pytest.approx(float(10 * torch.log10(4 / (a - b).square().mean())), rel=1e-5)
    assert image_metrics(a, a)["SSIM"] == pytest.approx(1.0)
    assert "SSIM" not in image_metrics(a[:, :8], b[:, :8])  # smaller than its window


def test_names_that_look_like_markup_are_escaped(tmp_path):
    name = "a <b>&\"'#%20 ü"
    path = write_page(tmp_path, "<script>alert(1)</script>", [(name, {"generated": torch.zeros(3, 4, 4)}, {})])
    page = Page(path)
    page.check_images()
    assert page.rows == [name]
    assert "<script>alert" not in path.read_text()


def test_a_results_page_that_cannot_be_written_does_not_fail_the_run(make_config, tmp_path, monkeypatch):
    def full_disk(*args):
        raise InputError("cannot be written (No space left on device)")

    monkeypatch.setattr(results_page, "write_page", full_disk)
    with pytest.warns(UserWarning, match="the results page was not written: .*No space left"):
        train(make_config())
    assert pathlib.Path(tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
