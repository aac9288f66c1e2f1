"""The results page: label | generated | real with figures per picture, as one HTML file beside its pictures."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import Sample, save_image
from pix2pixhd.files import MARK, check_replaceable, write_text
from pix2pixhd.reporting.image_grid import colorize

__all__ = ["image_metrics", "page_files", "sample_images", "shown_input", "viewable", "write_page"]

_FIGURES = ("L1", "PSNR", "SSIM")


@dataclasses.dataclass
class _Row:
    name: str
    pictures: dict[str, str]
    figures: dict[str, str]


def shown_input(sample: Sample, options: DataOptions) -> Tensor:
    """The input of one sample as a picture ``[1 or 3, H, W]`` in [−1, 1]: classes in colours, or the picture."""
    if options.label_nc:
        return colorize(sample["input"], options.label_nc, sample.get("instance"))
    return viewable(sample["input"])


def viewable(picture: Tensor) -> Tensor:
    """A picture of any number of channels as one of 1 or 3: the first ones."""
    return picture if picture.shape[0] in (1, 3) else picture[: 3 if picture.shape[0] > 3 else 1]


def image_metrics(generated: Tensor, real: Tensor) -> dict[str, float]:
    """L1, PSNR and SSIM between two pictures ``[C, H, W]`` in [−1, 1]; SSIM where the picture holds its window.

    Example:
        >>> image_metrics(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))["L1"]
        0.0
    """
    generated, real = generated[None].float().clamp(-1, 1), real[None].float()
    found = {"L1": float((generated - real).abs().mean())}
    found["PSNR"] = float(peak_signal_noise_ratio(generated, real, data_range=(-1.0, 1.0)))
    if min(real.shape[-2:]) >= 11:
        similarity: Any = structural_similarity_index_measure(generated, real, data_range=(-1.0, 1.0))
        found["SSIM"] = float(similarity)
    return found


def _image(name: str, column: str) -> pathlib.Path:
    return pathlib.Path("images") / column / f"{name}.png"


def page_files(folder: pathlib.Path, names: Iterable[str], columns: Iterable[str]) -> list[pathlib.Path]:
    """All files of a results page with these rows and columns."""
    return [folder / "index.html", *(folder / _image(name, column) for name in names for column in columns)]


def write_page(
    folder: pathlib.Path,
    title: str,
    rows: Iterable[tuple[str, Mapping[str, Tensor], Mapping[str, float]]],
    *,
    force: bool = False,
) -> pathlib.Path:
    """Writes the pictures and the page that shows them.

    Args:
        folder: Where ``index.html`` and ``images/`` go.
        title: The page's heading.
        rows: Per picture its name, its pictures ``[C, H, W]`` in [−1, 1] by column, and its figures.
        force: Whether files that this package did not write may be replaced.

    Returns:
        The page.

    Raises:
        InputError: If a file cannot be written, or if it exists and may not be replaced.

    Example:
        >>> write_page(pathlib.Path("results"), "test", [])  # doctest: +SKIP
    """
    check_replaceable([folder / "index.html"], force, str(folder))
    written, columns = [], []
    for name, pictures, figures in rows:
        paths = {}
        for column, picture in pictures.items():
            path = _image(name, column)
            save_image(viewable(picture), folder / path, force=force)
            paths[column] = path.as_posix()
        columns = list(pictures)
        written.append(_Row(name, paths, {key: f"{value:.4g}" for key, value in figures.items()}))
    shared = [key for key in _FIGURES if written and all(key in row.figures for row in written)]
    means = {key: f"{statistics.fmean(float(row.figures[key]) for row in written):.4g}" for key in shared}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates")), autoescape=True
    )
    html = environment.get_template("results.html").render(
        title=title, rows=written, columns=columns, figures=shared, means=means, mark=MARK
    )
    page = folder / "index.html"
    write_text(page, html, force=force)
    return page


def sample_images(module: Any, sample: Sample) -> list[Tensor]:
    """Input, generated and real picture of one sample, each ``[C, H, W]`` in [−1, 1] on the CPU.

    Args:
        module: A ``Pix2PixHD``.
        sample: An item of ``PairedDataset``.
    """
    batch: Any = {
        key: value[None].to(module.device) if isinstance(value, Tensor) else value for key, value in sample.items()
    }
    training = module.training
    module.eval()
    with torch.no_grad():
        generated = module.generate(batch)[0].float().clamp(-1, 1).cpu()
    module.train(training)
    return [shown_input(sample, module.data_options), generated, sample["image"]]
