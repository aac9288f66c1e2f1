"""The ``data`` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pix2pixhd.errors import InputError

__all__ = ["DataOptions", "ResizeOrCrop"]

ResizeOrCrop = Literal["scale_width", "scale_width_and_crop", "crop", "resize_and_crop", "none"]


@dataclasses.dataclass
class DataOptions:
    """Where the pictures are and how they are prepared. Names are those of NVIDIA's options.

    Attributes:
        dataroot: Folder that holds ``{phase}_label/``, ``{phase}_inst/`` and ``{phase}_img/``, or ``{phase}_A/`` and
            ``{phase}_B/`` when ``label_nc`` is 0.
        phase: Prefix of the folders to train on.
        val_phase: Prefix of the folders to validate on; nothing is validated when None.
        label_nc: Number of label classes, one-hot encoded; 0 when the input are pictures.
        input_nc: Channels of the input pictures (``label_nc`` 0): 3 for colour, 1 for gray, any number from ``.npy``
            files.
        output_nc: Channels of the pictures to generate: likewise.
        no_instance: Whether to do without instance maps and their edge channel.
        resize_or_crop: ``scale_width`` scales to width ``loadSize``; ``scale_width_and_crop`` then crops
            ``fineSize``×``fineSize``; ``resize_and_crop`` scales to ``loadSize``×``loadSize`` and crops; ``crop`` crops
            only; ``none`` scales to the nearest multiple that the generator needs.
        loadSize: Size to scale to, in pixels.
        fineSize: Size of the crop, in pixels.
        no_flip: Whether to leave out random horizontal flips.
        serial_batches: Whether to train on the pictures in alphabetical order instead of a new one per epoch.
        max_dataset_size: Takes only the first so many pictures; None for all.
        batchSize: Pictures per step and process.
        nThreads: Worker processes that load pictures; 0 loads in the training process.
        check: Whether to decode all files before training and report every problem at once. Unchanged files are
            decoded at the first start only. Without, a problem ends the run when its file is read.

    Raises:
        InputError: For numbers out of range.

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
            raise InputError(f"data.label_nc must be 0 (pictures) or the number of classes, got {self.label_nc}")
        for name in ("input_nc", "output_nc"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name} must be at least 1: 1 for gray, 3 for colour, got {getattr(self, name)}")
        for name, least in (("loadSize", 1), ("fineSize", 1), ("batchSize", 1), ("nThreads", 0)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
        if self.max_dataset_size is not None and self.max_dataset_size < 1:
            raise InputError(f"data.max_dataset_size must be at least 1 (or null for all), got {self.max_dataset_size}")

    @property
    def input_channels(self) -> int:
        """Channels that go into the generator: labels or picture, and the edge map."""
        return (self.label_nc or self.input_nc) + (0 if self.no_instance else 1)

    @property
    def input_folder(self) -> str:
        """Suffix of the input's folder."""
        return "label" if self.label_nc else "A"

    @property
    def image_folder(self) -> str:
        """Suffix of the real pictures' folder."""
        return "img" if self.label_nc else "B"
