"""The dataset of paired images and the sampler that determines their order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from typing_extensions import NotRequired

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.folders import Pair
from pix2pixhd.data.images import LoadedImage, image_to_tensor, read_image, read_index_map
from pix2pixhd.data.problems import DataError, Problem
from pix2pixhd.data.rules import area_problem, geometry_problem, label_problem, size_problem
from pix2pixhd.data.transforms import Geometry, Size, draw_geometry, scaled_size

__all__ = ["EpochSampler", "PairedDataset", "Sample"]


class Sample(TypedDict):
    """One sample, or a batch with a leading batch dimension.

    Attributes:
        input: Label ids ``[H, W]`` int32, or an image ``[C, H, W]`` float32 in [−1, 1].
        instance: Instance ids ``[H, W]`` int32.
        image: The real image ``[C, H, W]`` float32 in [−1, 1].
        name: The sample's name.
    """

    input: Tensor
    instance: NotRequired[Tensor]
    image: NotRequired[Tensor]
    name: str


def _ids(image: LoadedImage) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.int32))


def _raise(problem: Problem | None) -> None:
    if problem is not None:
        raise DataError([problem])


class PairedDataset(Dataset[Sample]):
    """Label maps or input images with their instance maps and real images.

    The augmentation of item ``k`` only depends on ``seed`` and ``k``, not on worker processes or earlier items. Indices
    may exceed the number of samples: item ``epoch · len + i`` is sample ``i`` as augmented in that epoch.

    Args:
        pairs: The files, from ``find_pairs`` or ``find_inputs``.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator. Used by the mode ``none``.
        augment: Whether to crop and flip at random, for training. Otherwise, images are scaled according to
            ``resize_or_crop``, but not cropped or flipped.
        seed: Seed of the augmentation.

    Example:
        >>> dataset = PairedDataset(find_pairs(options, "train"), options, multiple=16, augment=True)  # doctest: +SKIP
    """

    def __init__(
        self, pairs: Sequence[Pair], options: DataOptions, multiple: int, augment: bool, seed: int = 0
    ) -> None:
        self.pairs = list(pairs)
        self.options = options
        self.multiple = multiple
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def plain(self) -> PairedDataset:
        """Returns the dataset without augmentation: images are neither cropped nor flipped."""
        return PairedDataset(self.pairs, self.options, self.multiple, augment=False)

    def _geometry(self, pair: Pair, size: Size, key: int) -> Geometry:
        _raise(area_problem(pair.input, size, self.options, self.multiple))
        if self.augment:
            _raise(geometry_problem(pair.input, size, self.options, self.multiple))
            # A string seed is hashed as a whole. With the sum of two integers, (seed, key + 1) and (seed + 1, key)
            # would have the same augmentation.
            return draw_geometry(size, self.options, self.multiple, random.Random(f"{self.seed}:{key}"))  # nosec B311 # crops and flips
        return Geometry(scaled_size(size, self.options, self.multiple))

    def __getitem__(self, key: int) -> Sample:
        """Returns sample ``key % len(self)`` as augmented in epoch ``key // len(self)``.

        Raises:
            InputError: If a file is invalid. The check before training reports the same problems, unless it was
                disabled or the file has changed since.
        """
        pair = self.pairs[key % len(self.pairs)]
        source: LoadedImage
        if self.options.label_nc:
            source = read_index_map(pair.input)
            geometry = self._geometry(pair, source.size, key)
            ids = _ids(geometry.apply(source, smooth=False))
            # One-hot encoding would silently encode ids outside the classes as zeros.
            _raise(label_problem(pair.input, int(ids.min()), int(ids.max()), self.options.label_nc))
            sample = Sample(input=ids, name=pair.name)
        else:
            source = read_image(pair.input, self.options.input_nc)
            geometry = self._geometry(pair, source.size, key)
            sample = Sample(input=image_to_tensor(geometry.apply(source, smooth=True)), name=pair.name)
        if pair.instance is not None:
            instance = read_index_map(pair.instance, "instance map")
            _raise(size_problem(pair.instance, instance.size, pair.input, source.size))
            sample["instance"] = _ids(geometry.apply(instance, smooth=False))
        if pair.image is not None:
            real = read_image(pair.image, self.options.output_nc)
            _raise(size_problem(pair.image, real.size, pair.input, source.size))
            sample["image"] = image_to_tensor(geometry.apply(real, smooth=True))
        return sample


class EpochSampler(Sampler[int]):
    """Sampler whose order only depends on the seed and the epoch. Its indices encode the epoch for the dataset.

    Args:
        length: Number of samples.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: Rank of this process.
        processes: Number of processes that share the samples. All of them get the same number of samples, so some
            samples are repeated if the numbers are not divisible.

    Attributes:
        skip: Number of samples to skip at the start of the next iteration only.

    Example:
        >>> sampler = EpochSampler(4, shuffle=False)
        >>> sampler.set_epoch(2)
        >>> list(sampler)
        [8, 9, 10, 11]
    """

    def __init__(self, length: int, shuffle: bool, seed: int = 0, rank: int = 0, processes: int = 1) -> None:
        self.length = length
        self.rank = rank
        self.processes = processes
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of this epoch."""
        order = list(range(self.length))
        if self.shuffle:
            random.Random(f"{self.seed}:{self.epoch}").shuffle(order)  # nosec B311 # the order of images
        share = [order[k % self.length] for k in range(self.rank, len(self) * self.processes, self.processes)]
        skip, self.skip = self.skip, 0
        return iter([self.epoch * self.length + i for i in share[skip:]])
