"""The check before training: every file is read once, and all that is wrong is told in one message."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pix2pixhd.data.folders import Pair, raise_problems
from pix2pixhd.data.images import Picture, read_index_map, read_picture
from pix2pixhd.data.options import DataOptions
from pix2pixhd.data.transforms import output_size
from pix2pixhd.errors import InputError

__all__ = ["check_pairs", "checking", "find_problems"]


@dataclasses.dataclass(frozen=True)
class _Finding:
    problems: list[str]
    size: tuple[int, int] | None = None  # what the networks would see


def _check_label_ids(pair: Pair, ids: np.ndarray, label_nc: int) -> list[str]:
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < label_nc:
        return []
    worst = high if high >= label_nc else low
    return [
        f"{pair.input}: label id {worst} is outside data.label_nc={label_nc}, which allows 0 to {label_nc - 1}; "
        f"{f'set data.label_nc to at least {worst + 1} or ' if worst > 0 else ''}change the id in the file"
    ]


def _check_pair(pair: Pair, options: DataOptions, multiple: int, crops: bool) -> _Finding:
    problems: list[str] = []
    source: Picture
    try:
        if options.label_nc:
            source = read_index_map(pair.input)
            problems += _check_label_ids(pair, np.asarray(source), options.label_nc)
        else:
            source = read_picture(pair.input, options.input_nc)
    except InputError as error:
        return _Finding([str(error)])
    readers: list[tuple[pathlib.Path | None, Callable[[pathlib.Path], Picture]]] = [
        (pair.instance, functools.partial(read_index_map, kind="instance map")),
        (pair.image, functools.partial(read_picture, channels=options.output_nc)),
    ]
    for path, read in readers:
        if path is None:
            continue
        try:
            size = read(path).size
        except InputError as error:
            problems.append(str(error))
            continue
        if size != source.size:
            problems.append(
                f"{path} is {size[0]}x{size[1]} (width x height), but {pair.input} is "
                f"{source.size[0]}x{source.size[1]}; "
                "the files of one picture must have one size: resize or replace one of them"
            )
    if not crops:
        return _Finding(problems)
    try:
        seen = output_size(source.size, options, multiple)
    except InputError as error:
        return _Finding([*problems, f"{pair.input}: {error}"])
    if seen[0] % multiple or seen[1] % multiple or min(seen) < 2 * multiple:
        problems.append(
            f"{pair.input}: would be trained at {seen[0]}x{seen[1]} (width x height), but this generator needs "
            f"multiples of {multiple}, at least {2 * multiple}; change data.loadSize or data.fineSize, or take "
            "data.resize_or_crop: none, which rounds sizes"
        )
    return _Finding(problems, seen)


def _check_batches(pairs: Sequence[Pair], findings: Iterable[_Finding], options: DataOptions) -> list[str]:
    sizes: dict[tuple[int, int], Pair] = {}
    for pair, finding in zip(pairs, findings, strict=True):
        if finding.size is not None:
            sizes.setdefault(finding.size, pair)
    if options.batchSize == 1 or len(sizes) < 2:
        return []
    told = ", ".join(f"{pair.input} at {w}x{h}" for (w, h), pair in list(sizes.items())[:2])
    return [
        f"data.batchSize={options.batchSize} needs pictures of one size, got {told}; set batchSize to 1 or take a "
        "resize_or_crop with a crop"
    ]


def find_problems(
    pairs: Sequence[Pair],
    options: DataOptions,
    multiple: int,
    training: bool = True,
    on_checked: Callable[[], object] = lambda: None,
) -> list[str]:
    """Reads every file once, in parallel threads, and tells all that is wrong, each with file, value and remedy.

    Args:
        pairs: The files, from ``find_pairs``.
        options: The ``data`` section.
        multiple: What the generator needs of height and width.
        training: Whether sizes after scaling and cropping are checked too; validation and generation pad them.
        on_checked: Called after each pair, from several threads.

    Returns:
        One text per problem; nothing when all is well. Sizes that no batch can take are told once the files are right.

    Example:
        >>> find_problems(find_pairs(options, "train"), options, multiple=16)  # doctest: +SKIP
        []
    """

    def check(pair: Pair) -> _Finding:
        finding = _check_pair(pair, options, multiple, training)
        on_checked()
        return finding

    # Decoding happens outside Python's global lock, so threads do.
    with concurrent.futures.ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 1)) as pool:
        findings = list(pool.map(check, pairs))
    problems = [problem for finding in findings for problem in finding.problems]
    return problems or _check_batches(pairs, findings, options)


def check_pairs(
    pairs: Sequence[Pair],
    options: DataOptions,
    multiple: int,
    training: bool = True,
    on_checked: Callable[[], object] = lambda: None,
) -> None:
    """Raises one error that tells all that ``find_problems`` finds; the arguments are the same.

    Raises:
        InputError: For unreadable files, label ids outside ``label_nc``, label maps saved as JPEG, sizes that differ
            within a pair, sizes that the generator or the batch cannot take.

    Example:
        >>> check_pairs(find_pairs(options, "train"), options, multiple=16)  # doctest: +SKIP
    """
    raise_problems(find_problems(pairs, options, multiple, training, on_checked))


@contextlib.contextmanager
def checking(what: str, count: int, quiet: bool = False) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr; yields what is called after each pair.

    Args:
        what: What is checked, for the bar.
        count: How many pairs.
        quiet: Whether to show nothing.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"checking {what}: {count} pictures", total=count)
        yield lambda: progress.advance(task)
