"""The data check before training: every file is decoded once, and all problems are reported together."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.facts import FactsCache, FileFacts, Role
from pix2pixhd.data.folders import Pair
from pix2pixhd.data.problems import DataError, Problem, display, raise_problems
from pix2pixhd.data.rules import area_problem, batch_problem, geometry_problem, label_problem, size_problem
from pix2pixhd.data.transforms import Size, output_size

__all__ = ["Survey", "check_pairs", "survey"]


@dataclasses.dataclass
class Survey:
    """Result of the data check of a phase.

    Attributes:
        count: Number of samples.
        problems: All problems that prevent training.
        sizes: Number of inputs with each width and height.
        label_ids: Number of label maps that contain each id. For label maps with more than 1024 ids, only the smallest
            and the largest id are counted.
        instance_ids: Smallest and largest instance id; None without instance maps.
        most_instances: The largest number of distinct ids in one instance map.
    """

    count: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    sizes: collections.Counter[Size] = dataclasses.field(default_factory=collections.Counter)
    label_ids: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    instance_ids: tuple[int, int] | None = None
    most_instances: int = 0

    def hints(self, options: DataOptions) -> list[str]:
        """Returns hints about options that are valid but probably not intended."""
        if not options.label_nc or not self.label_ids:
            return []
        used = max(self.label_ids) + 1
        if used > options.label_nc // 2:
            return []
        return [
            f"the largest label id is {used - 1}, but data.label_nc is {options.label_nc}: if the dataset has {used} "
            f"classes, set data.label_nc to {used}; unused classes cost memory and time"
        ]


@dataclasses.dataclass
class _Sample:
    """Facts and problems of the files of one sample."""

    problems: list[Problem]
    source: FileFacts | None = None
    instance: FileFacts | None = None


class _Reader:
    """Reads the facts of the files of samples, with one cache per kind of file."""

    def __init__(self, pairs: Sequence[Pair], options: DataOptions) -> None:
        source: Role = "label map" if options.label_nc else options.input_nc
        self.source = FactsCache(source, [pair.input for pair in pairs])
        self.instance = FactsCache("instance map", [pair.instance for pair in pairs if pair.instance is not None])
        self.image = FactsCache(options.output_nc, [pair.image for pair in pairs if pair.image is not None])

    def read(self, pair: Pair) -> _Sample:
        """Reads the files of one sample. Unreadable files become problems."""
        sample = _Sample([])

        def read(cache: FactsCache, path: pathlib.Path) -> FileFacts | None:
            try:
                return cache.facts(path)
            except DataError as error:
                sample.problems += error.problems
                return None

        sample.source = read(self.source, pair.input)
        for path, cache in ((pair.instance, self.instance), (pair.image, self.image)):
            facts = None if path is None else read(cache, path)
            if path is None or facts is None:
                continue
            if path == pair.instance:
                sample.instance = facts
            if sample.source is not None:
                wrong = size_problem(path, facts.size, pair.input, sample.source.size)
                sample.problems += [wrong] if wrong else []
        return sample

    def save(self) -> None:
        """Saves the caches for later runs."""
        for cache in (self.source, self.instance, self.image):
            cache.save()


def _input_problems(
    pair: Pair, facts: FileFacts, options: DataOptions, multiple: int, crops: bool, trained: bool
) -> list[Problem]:
    found = [
        label_problem(pair.input, facts.low, facts.high, options.label_nc, trained) if options.label_nc else None,
        area_problem(pair.input, facts.size, options, multiple),
        geometry_problem(pair.input, facts.size, options, multiple) if crops else None,
    ]
    return [problem for problem in found if problem is not None]


def _batch_problem(
    pairs: Sequence[Pair], samples: Sequence[_Sample], options: DataOptions, multiple: int
) -> list[Problem]:
    examples: dict[Size, str] = {}
    for pair, sample in zip(pairs, samples, strict=True):
        if sample.source is not None:
            examples.setdefault(output_size(sample.source.size, options, multiple), display(pair.input))
    problem = batch_problem(examples, options.batchSize)
    return [] if problem is None else [problem]


def _summary(samples: Sequence[_Sample], options: DataOptions) -> Survey:
    found = Survey(len(samples), [problem for sample in samples for problem in sample.problems])
    for sample in samples:
        if sample.source is not None:
            facts = sample.source
            found.sizes[facts.size] += 1
            if options.label_nc:
                found.label_ids.update(facts.ids if facts.ids is not None else {facts.low, facts.high})
        if sample.instance is not None:
            low, high = found.instance_ids or (sample.instance.low, sample.instance.high)
            found.instance_ids = min(low, sample.instance.low), max(high, sample.instance.high)
            found.most_instances = max(found.most_instances, sample.instance.count)
    return found


def survey(
    pairs: Sequence[Pair],
    options: DataOptions,
    multiple: int,
    training: bool = True,
    on_checked: Callable[[], object] = lambda: None,
    trained: bool = False,
) -> Survey:
    """Reads every file once, in parallel threads, and collects the contents and all problems.

    Unchanged files that an earlier call read are not decoded again; see ``FactsCache``.

    Args:
        pairs: The files, from ``find_pairs``.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator.
        training: Whether to check the sizes after scaling and cropping, too. Validation and generation pad images.
        on_checked: Function to call after each sample, from several threads.
        trained: Whether the generator is already trained, so that ``data.label_nc`` cannot be changed.

    Returns:
        The contents and problems.

    Example:
        >>> survey(find_pairs(options, "train"), options, multiple=16).problems  # doctest: +SKIP
        []
    """
    reader = _Reader(pairs, options)

    def check(pair: Pair) -> _Sample:
        sample = reader.read(pair)
        if sample.source is not None:
            sample.problems += _input_problems(pair, sample.source, options, multiple, training, trained)
        on_checked()
        return sample

    # Pillow releases the GIL while it decodes, so threads run in parallel.
    with concurrent.futures.ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 1)) as pool:
        samples = list(pool.map(check, pairs))
    reader.save()
    found = _summary(samples, options)
    if training and not found.problems:
        found.problems += _batch_problem(pairs, samples, options, multiple)
    return found


def check_pairs(
    pairs: Sequence[Pair],
    options: DataOptions,
    multiple: int,
    training: bool = True,
    on_checked: Callable[[], object] = lambda: None,
    everything: str = "",
    trained: bool = False,
) -> Survey:
    """Checks files like ``survey``, and raises one error for all problems.

    Args:
        pairs: The files, from ``find_pairs``.
        options: The ``data`` section.
        multiple: Number of which width and height must be multiples for the generator.
        training: Whether to check the sizes after scaling and cropping, too.
        on_checked: Function to call after each sample, from several threads.
        everything: Hint on how to list all problems, for the message.
        trained: Whether the generator is already trained, so that ``data.label_nc`` cannot be changed.

    Returns:
        The contents of the files.

    Raises:
        InputError: For unreadable files, label ids outside ``label_nc``, label maps saved as JPEG, sizes that differ
            within a sample, and sizes that the generator or the batch does not support.

    Example:
        >>> check_pairs(find_pairs(options, "train"), options, multiple=16)  # doctest: +SKIP
    """
    found = survey(pairs, options, multiple, training, on_checked, trained)
    raise_problems(found.problems, everything)
    return found
