"""The results page: an HTML file that shows label, generated and real images with their metrics."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import torch
from torch import Tensor

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import Sample, save_image
from pix2pixhd.files import MARK, check_inside, check_replaceable, write_text
from pix2pixhd.reporting.image_grid import colorize
from pix2pixhd.reporting.metrics import IMAGE_METRICS

__all__ = ["page_files", "sample_images", "shown_input", "viewable", "write_page"]


@dataclasses.dataclass
class _Row:
    name: str
    images: dict[str, str]
    metrics: dict[str, str]


def shown_input(sample: Sample, options: DataOptions) -> Tensor:
    """Returns the input of one sample as an image ``[1 or 3, H, W]`` in [−1, 1]. Label maps are colour-coded."""
    if options.label_nc:
        return colorize(sample["input"], options.label_nc, sample.get("instance"))
    return viewable(sample["input"])


def viewable(image: Tensor) -> Tensor:
    """Reduces an image with any number of channels to its first 1 or 3 channels, so that it can be displayed."""
    return image if image.shape[0] in (1, 3) else image[: 3 if image.shape[0] > 3 else 1]


def _image_file(name: str, column: str) -> pathlib.Path:
    return pathlib.Path("images") / column / f"{name}.png"


def page_files(folder: pathlib.Path, names: Iterable[str], columns: Iterable[str]) -> list[pathlib.Path]:
    """Returns the paths of all files of a results page with the given rows and columns."""
    return [folder / "index.html", *(folder / _image_file(name, column) for name in names for column in columns)]


def write_page(
    folder: pathlib.Path,
    title: str,
    rows: Iterable[tuple[str, Mapping[str, Tensor], Mapping[str, float]]],
    *,
    force: bool = False,
) -> pathlib.Path:
    """Writes a results page and its images.

    Args:
        folder: Folder for ``index.html`` and ``images/``.
        title: The page's heading.
        rows: The name, the images ``[C, H, W]`` in [−1, 1] by column, and the metrics of each sample.
        force: Whether files that this package did not write may be replaced.

    Returns:
        The path of the page.

    Raises:
        InputError: If a file cannot be written, if it exists and may not be replaced, or if a name leads out of the
            folder.

    Example:
        >>> write_page(pathlib.Path("results"), "test", [])  # doctest: +SKIP
    """
    check_replaceable([folder / "index.html"], force, str(folder))
    written, columns = [], []
    for name, images, metrics in rows:
        paths = {}
        for column, image in images.items():
            path = _image_file(name, column)
            check_inside([folder / path], folder, str(folder))
            save_image(viewable(image), folder / path, force=force)
            paths[column] = path.as_posix()
        columns = list(images)
        written.append(_Row(name, paths, {key: f"{value:.4g}" for key, value in metrics.items()}))
    shared = [key for key in IMAGE_METRICS if written and all(key in row.metrics for row in written)]
    means = {key: f"{statistics.fmean(float(row.metrics[key]) for row in written):.4g}" for key in shared}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates")), autoescape=True
    )
    html = environment.get_template("results.html").render(
        title=title, rows=written, columns=columns, metrics=shared, means=means, mark=MARK
    )
    page = folder / "index.html"
    write_text(page, html, force=force)
    return page


def sample_images(module: Any, sample: Sample) -> list[Tensor]:
    """Generates the image of one sample.

    Args:
        module: A ``Pix2PixHD``.
        sample: An item of ``PairedDataset``.

    Returns:
        The input, the generated and the real image, each ``[C, H, W]`` in [−1, 1] on the CPU.
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
