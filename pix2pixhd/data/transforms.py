"""Scaling, cropping and flipping, with the same parameters for all files of a sample."""

from __future__ import annotations

import dataclasses
import random

from PIL import Image

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.images import LoadedImage
from pix2pixhd.errors import InputError

__all__ = ["Geometry", "Size", "draw_geometry", "output_size", "scaled_size"]

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Parameters of the transform of one sample's files: scaling, then cropping, then flipping.

    Attributes:
        size: Width and height to scale to.
        crop: Left, upper, right and lower edge of the crop. None disables cropping.
        flip: Whether to flip horizontally.
    """

    size: Size
    crop: tuple[int, int, int, int] | None = None
    flip: bool = False

    def apply(self, image: LoadedImage, smooth: bool) -> LoadedImage:
        """Returns the scaled, cropped and flipped image.

        Args:
            image: The image.
            smooth: Whether to use bicubic interpolation, for images, instead of nearest-neighbour, for ids.
        """
        if image.size != self.size:
            resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
            image = image.resize(self.size, resampling)
        if self.crop is not None:
            image = image.crop(self.crop)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def scaled_size(size: Size, options: DataOptions, multiple: int) -> Size:
    """Returns the width and height after scaling and before cropping, according to ``resize_or_crop``.

    Args:
        size: Width and height of the stored image.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator. Used by the mode ``none``.

    Example:
        >>> scaled_size((2048, 1024), DataOptions(resize_or_crop="scale_width", loadSize=512), 16)
        (512, 256)
    """
    width, height = size
    if options.resize_or_crop.startswith("scale_width"):
        return options.loadSize, max(options.loadSize * height // width, 1)
    if options.resize_or_crop == "resize_and_crop":
        return options.loadSize, options.loadSize
    if options.resize_or_crop == "none":
        return _nearest_multiple(width, multiple), _nearest_multiple(height, multiple)
    return size


def _nearest_multiple(length: int, multiple: int) -> int:
    return max(round(length / multiple), 2) * multiple


def output_size(size: Size, options: DataOptions, multiple: int) -> Size:
    """Returns the width and height of the networks' inputs in training.

    Args:
        size: Width and height of the stored image.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator. Used by the mode ``none``.

    Raises:
        InputError: If the scaled image is smaller than the crop.

    Example:
        >>> output_size((2048, 1024), DataOptions(resize_or_crop="crop", fineSize=256), 16)
        (256, 256)
    """
    width, height = scaled_size(size, options, multiple)
    if "crop" not in options.resize_or_crop:
        return width, height
    fine = options.fineSize
    if width < fine or height < fine:
        raise InputError(
            f"{width}x{height} after scaling, smaller than the crop data.fineSize={fine}; lower fineSize or "
            "raise loadSize"
        )
    return fine, fine


def draw_geometry(size: Size, options: DataOptions, multiple: int, rng: random.Random) -> Geometry:
    """Selects a random crop and flip for training.

    Args:
        size: Width and height of the stored image.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator. Used by the mode ``none``.
        rng: Random number generator.

    Example:
        >>> draw_geometry((64, 64), DataOptions(resize_or_crop="crop", fineSize=64), 4, random.Random(0)).crop
        (0, 0, 64, 64)
    """
    width, height = scaled_size(size, options, multiple)
    fine_width, fine_height = output_size(size, options, multiple)
    left, upper = rng.randint(0, width - fine_width), rng.randint(0, height - fine_height)
    flip = rng.random() < 0.5 and not options.no_flip
    crop = (left, upper, left + fine_width, upper + fine_height) if "crop" in options.resize_or_crop else None
    return Geometry((width, height), crop, flip)
