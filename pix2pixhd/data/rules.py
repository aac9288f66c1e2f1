"""Requirements on the files of a dataset, which are checked before training and whenever a sample is read."""

from __future__ import annotations

import pathlib

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.arrays import pixel_limit
from pix2pixhd.data.problems import Problem, display
from pix2pixhd.data.transforms import Size, output_size, scaled_size
from pix2pixhd.errors import InputError

__all__ = ["area_problem", "batch_problem", "geometry_problem", "label_problem", "size_problem"]

_DIFFERENT_SIZES = "files that differ in size within a sample"
_UNUSABLE_SIZES = "sizes that cannot be trained on"


def label_problem(path: pathlib.Path, low: int, high: int, label_nc: int, trained: bool = False) -> Problem | None:
    """Checks for ids outside ``label_nc``, which one-hot encoding would drop.

    Args:
        path: The label map.
        low: Its smallest id.
        high: Its largest id.
        label_nc: Number of classes.
        trained: Whether the classes are those of a trained generator and cannot be changed.

    Returns:
        The problem, or None.
    """
    if low >= 0 and high < label_nc:
        return None
    worst = high if high >= label_nc else low
    remedy = f"set data.label_nc to at least {worst + 1} or " if worst > 0 else ""
    remedy += "change the id in the file"
    if trained:
        remedy = "the generator was trained with these classes: change the id in the file to one of them"
    elif worst == 255:
        remedy = (
            f"255 often marks pixels to ignore, which need a class here: change them to {label_nc} and set "
            f"data.label_nc to {label_nc + 1}, or {remedy}"
        )
    return Problem(
        "label ids outside data.label_nc",
        f"{display(path)}: label id {worst} is outside data.label_nc={label_nc}, which allows 0 to {label_nc - 1}; "
        f"{remedy}",
        display(path),
    )


def size_problem(path: pathlib.Path, size: Size, input_path: pathlib.Path, input_size: Size) -> Problem | None:
    """Checks that a file has the size of its input."""
    if size == input_size:
        return None
    return Problem(
        _DIFFERENT_SIZES,
        f"{display(path)} is {size[0]}x{size[1]} (width x height), but {display(input_path)} is "
        f"{input_size[0]}x{input_size[1]}; the files of a sample must have equal sizes: resize or replace one of them",
        display(path),
    )


def area_problem(path: pathlib.Path, size: Size, options: DataOptions, multiple: int) -> Problem | None:
    """Checks that an image is not scaled to more pixels than an image file may have.

    A file of a few bytes can have one column of a hundred thousand pixels, which ``scale_width`` would make a thousand
    times as wide and as high.
    """
    width, height = scaled_size(size, options, multiple)
    if width * height <= max(pixel_limit(), size[0] * size[1]):
        return None
    return Problem(
        _UNUSABLE_SIZES,
        f"{display(path)} is {size[0]}x{size[1]} (width x height) and would be scaled to {width}x{height}, which is "
        f"more than the limit of {pixel_limit()} pixels; replace it, or change data.loadSize or data.resize_or_crop",
        display(path),
    )


def geometry_problem(path: pathlib.Path, size: Size, options: DataOptions, multiple: int) -> Problem | None:
    """Checks that the generator can be trained at an image's size after scaling and cropping."""
    try:
        width, height = output_size(size, options, multiple)
    except InputError as error:
        return Problem(_UNUSABLE_SIZES, f"{display(path)}: {error}", display(path))
    if width % multiple == 0 and height % multiple == 0 and min(width, height) >= 2 * multiple:
        return None
    return Problem(
        _UNUSABLE_SIZES,
        f"{display(path)}: would be trained at {width}x{height} (width x height), but this generator needs "
        f"multiples of {multiple} that are at least {2 * multiple}; change data.loadSize or data.fineSize, or use "
        "data.resize_or_crop: none, which rounds sizes",
        display(path),
    )


def batch_problem(examples: dict[Size, str], batch: int) -> Problem | None:
    """Checks that images of different sizes would not share a batch.

    Args:
        examples: An example file or sample for every size after scaling and cropping.
        batch: Batch size.

    Returns:
        The problem, or None.
    """
    if batch == 1 or len(examples) < 2:
        return None
    found = ", ".join(f"{name} at {width}x{height}" for (width, height), name in list(examples.items())[:2])
    return Problem(
        _UNUSABLE_SIZES,
        f"data.batchSize={batch} needs images of equal size, got {found}; set data.batchSize to 1, or use a "
        "data.resize_or_crop that crops",
    )
