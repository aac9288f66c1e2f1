"""Image grids of samples: label, generated and real image side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

__all__ = ["colorize", "image_grid", "with_titles"]


def _palette(count: int) -> Tensor:
    """Returns ``[count, 3]`` colours in [−1, 1]. The hue advances by the golden ratio, so neighbours differ."""
    colors = [
        colorsys.hsv_to_rgb(k * 0.61803398875 % 1.0, 0.55 + 0.35 * (k % 2), 0.95 - 0.2 * (k % 3)) for k in range(count)
    ]
    return torch.tensor(colors) * 2 - 1


def colorize(label: Tensor, label_nc: int, instance: Tensor | None = None) -> Tensor:
    """Converts a label map to an RGB image with one colour per class and white lines between instances.

    Args:
        label: Class ids ``[H, W]``.
        label_nc: Number of classes.
        instance: Instance ids ``[H, W]``. None draws no lines.

    Returns:
        The image ``[3, H, W]`` in [−1, 1].

    Example:
        >>> colorize(torch.zeros(4, 6, dtype=torch.int32), label_nc=3).shape
        torch.Size([3, 4, 6])
    """
    image = _palette(label_nc)[label.long().clamp(0, label_nc - 1).cpu()].permute(2, 0, 1)
    if instance is not None:
        instance = instance.cpu()
        border = torch.zeros_like(instance, dtype=torch.bool)
        border[:, 1:] |= instance[:, 1:] != instance[:, :-1]
        border[1:, :] |= instance[1:, :] != instance[:-1, :]
        image = torch.where(border, image * 0.5 + 0.5, image)
    return image


def image_grid(columns: list[list[Tensor]], rows_across: int = 1) -> Tensor:
    """Arranges images in a grid with one row per sample.

    Args:
        columns: The images ``[1 or 3, H, W]`` in [−1, 1] of each sample, which are placed side by side. All images have
            the same size.
        rows_across: Number of samples per row of the grid.

    Returns:
        The grid ``[3, H', W']`` in [−1, 1].

    Example:
        >>> image_grid([[torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]]).shape
        torch.Size([3, 12, 22])
    """
    images = [image.expand(3, -1, -1).cpu().float() for sample in columns for image in sample]
    grid: Tensor = make_grid(images, nrow=len(columns[0]) * rows_across, padding=2, pad_value=1.0)
    return grid


def with_titles(grid: Image.Image, titles: Sequence[str], height: int = 20) -> Image.Image:
    """Adds a title above every column of an image grid.

    Args:
        grid: The grid, whose columns have equal widths.
        titles: One title per column.
        height: Height of the title bar, in pixels.

    Returns:
        The grid with the title bar on top.

    Example:
        >>> with_titles(Image.new("RGB", (60, 20)), ["label", "generated", "real"]).size
        (60, 40)
    """
    titled = Image.new("RGB", (grid.width, grid.height + height), "white")
    titled.paste(grid, (0, height))
    draw = ImageDraw.Draw(titled)
    width = grid.width / len(titles)
    for column, title in enumerate(titles):
        draw.text(((column + 0.5) * width, height / 2), title, fill="black", anchor="mm")
    return titled
