"""The data set of paired pictures and the order it is read in."""

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
from pix2pixhd.data.rules import geometry_problem, label_problem, size_problem
from pix2pixhd.data.transforms import Geometry, Size, draw_geometry, scaled_size

__all__ = ["EpochSampler", "PairedDataset", "Sample"]


class Sample(TypedDict):
    """One picture, or a batch of them with a leading dimension.

    Attributes:
        input: Label ids ``[H, W]`` int32, or a picture ``[C, H, W]`` float32 in [−1, 1].
        instance: Instance ids ``[H, W]`` int32.
        image: The real picture ``[C, H, W]`` float32 in [−1, 1].
        name: The picture's name.
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
    """Label maps or input pictures with their instance maps and real pictures.

    Augmentation of item ``k`` depends on ``seed`` and ``k`` alone, not on worker processes or on what was read before.
    Indices go beyond the number of pictures: item ``epoch · len + i`` is picture ``i`` as augmented in that epoch.

    Args:
        pairs: The files, from ``find_pairs`` or ``find_inputs``.
        options: The ``data`` section.
        multiple: What the generator needs; used by the mode ``none``.
        augment: Whether to crop and flip at random, for training. Without, pictures are scaled as ``resize_or_crop``
            says and neither cropped nor flipped.
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
        """The same pictures, neither cropped nor flipped."""
        return PairedDataset(self.pairs, self.options, self.multiple, augment=False)

    def _geometry(self, pair: Pair, size: Size, key: int) -> Geometry:
        if self.augment:
            _raise(geometry_problem(pair.input, size, self.options, self.multiple))
            # A string seed is hashed whole; the sum of two integers would give neighbours the same draws.
            return draw_geometry(size, self.options, self.multiple, random.Random(f"{self.seed}:{key}"))
        return Geometry(scaled_size(size, self.options, self.multiple))

    def __getitem__(self, key: int) -> Sample:
        """Sample ``key % len(self)`` as augmented in epoch ``key // len(self)``.

        Raises:
            InputError: If a file cannot be used. The check before training reports the same, unless it was turned off
                or the file changed since.
        """
        pair = self.pairs[key % len(self.pairs)]
        source: LoadedImage
        if self.options.label_nc:
            source = read_index_map(pair.input)
            geometry = self._geometry(pair, source.size, key)
            ids = _ids(geometry.apply(source, smooth=False))
            # One-hot encoding would give ids outside the classes zeros without a word.
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
    """A new order per epoch that depends on seed and epoch alone; tells the data set the epoch through the index.

    Args:
        length: Number of pictures.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: Which of the processes this is.
        processes: Number of processes that share the pictures; each gets as many, some twice where it does not divide.

    Attributes:
        skip: How many pictures the next reading leaves out at its beginning, once.

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
        """Chooses the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of this epoch."""
        order = list(range(self.length))
        if self.shuffle:
            random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        share = [order[k % self.length] for k in range(self.rank, len(self) * self.processes, self.processes)]
        skip, self.skip = self.skip, 0
        return iter([self.epoch * self.length + i for i in share[skip:]])
