"""The ``data`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.errors import InputError

__all__ = ["DataOptions", "ResizeOrCrop"]

ResizeOrCrop = Literal["scale_width", "scale_width_and_crop", "crop", "resize_and_crop", "none"]


@dataclasses.dataclass
class DataOptions:
    """Location and preprocessing of the images. The option names are NVIDIA's.

    Attributes:
        dataroot: Folder that contains ``{phase}_label/``, ``{phase}_inst/`` and ``{phase}_img/``, or ``{phase}_A/`` and
            ``{phase}_B/`` if ``label_nc`` is 0.
        phase: Prefix of the folders to train on.
        val_phase: Prefix of the folders to validate on. None disables validation.
        label_nc: Number of label classes, which are one-hot encoded. 0 if the inputs are images.
        input_nc: Number of channels of the input images (with ``label_nc`` 0): 3 for RGB, 1 for grayscale. Other
            numbers require ``.npy`` files.
        output_nc: Number of channels of the generated images: 3 for RGB, 1 for grayscale. Other numbers require
            ``.npy`` files.
        no_instance: Whether to train without instance maps and their edge channel.
        resize_or_crop: ``scale_width`` scales to width ``loadSize``. ``scale_width_and_crop`` does the same, then crops
            to ``fineSize``×``fineSize``. ``resize_and_crop`` scales to ``loadSize``×``loadSize``, then crops. ``crop``
            only crops. ``none`` scales to the nearest size that the generator accepts.
        loadSize: Size to scale to, in pixels.
        fineSize: Size of the crop, in pixels.
        no_flip: Whether to disable random horizontal flips.
        serial_batches: Whether to read the images in alphabetical order instead of shuffling them in every epoch.
        max_dataset_size: Maximum number of images to use, in alphabetical order. None uses all of them.
        batchSize: Batch size per process.
        nThreads: Number of worker processes that load images. 0 loads them in the training process.
        check: Whether to decode all files before training and report all problems at once. The result is cached, so
            unchanged files are decoded only once. If disabled, the run stops when it reads an invalid file.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> DataOptions(dataroot="datasets/cityscapes", label_nc=35).input_channels
        36
    """

    dataroot: str = ""
    phase: str = "train"
    val_phase: str | None = None
    label_nc: int = 35
    input_nc: int = 3
    output_nc: int = 3
    no_instance: bool = False
    resize_or_crop: ResizeOrCrop = "scale_width"
    loadSize: int = 1024
    fineSize: int = 512
    no_flip: bool = False
    serial_batches: bool = False
    max_dataset_size: int | None = None
    batchSize: int = 1
    nThreads: int = 2
    check: bool = True

    def __post_init__(self) -> None:
        if self.label_nc < 0:
            raise InputError(f"data.label_nc must be 0 (images) or the number of classes, got {self.label_nc}")
        for name in ("input_nc", "output_nc"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name} must be at least 1 (1: grayscale, 3: RGB), got {getattr(self, name)}")
        for name, least in (("loadSize", 1), ("fineSize", 1), ("batchSize", 1), ("nThreads", 0)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        if self.max_dataset_size is not None and self.max_dataset_size < 1:
            raise InputError(f"data.max_dataset_size must be at least 1 (or null for all), got {self.max_dataset_size}")

    @property
    def input_channels(self) -> int:
        """Number of the generator's input channels: label classes or image channels, plus the edge map."""
        return (self.label_nc or self.input_nc) + (0 if self.no_instance else 1)

    @property
    def input_folder(self) -> str:
        """Suffix of the folder of inputs."""
        return "label" if self.label_nc else "A"

    @property
    def image_folder(self) -> str:
        """Suffix of the folder of real images."""
        return "img" if self.label_nc else "B"
