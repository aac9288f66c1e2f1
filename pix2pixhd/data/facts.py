"""What a check needs to know of a file, and a cache of it, so that unchanged files are decoded once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import PIL

import pix2pixhd
from pix2pixhd.data.images import read_image, read_index_map
from pix2pixhd.errors import InputError
from pix2pixhd.files import write_text

__all__ = ["FactsCache", "FileFacts", "Role"]

Role = Literal["label map", "instance map"] | int  # an int is an image of so many channels

# Files with more different ids than this are summarised by smallest and largest.
_MOST_IDS = 1024

# A file changed within this time could be changed again without a new time stamp, on file systems with coarse ones.
_SETTLED_NS = 2_000_000_000

# Increase whenever reading changes what is found in a file.
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What a check needs to know of a readable file. It depends on the file and its role alone, not on options.

    Attributes:
        size: Width and height, after the EXIF orientation.
        low: The smallest id of a label or instance map; 0 for images.
        high: The largest.
        count: The number of different ids; 0 for images.
        ids: The ids; None for images and where there are more than 1024.
    """

    size: tuple[int, int]
    low: int = 0
    high: int = 0
    count: int = 0
    ids: tuple[int, ...] | None = None

    @classmethod
    def read(cls, path: pathlib.Path, role: Role) -> FileFacts:
        """Decodes a file.

        Raises:
            InputError: If the file cannot be used in this role.
        """
        if isinstance(role, int):
            return cls(read_image(path, role).size)
        image = read_index_map(path, role)
        ids = _distinct(np.asarray(image))
        kept = tuple(ids.tolist()) if len(ids) <= _MOST_IDS else None
        return cls(image.size, int(ids[0]), int(ids[-1]), len(ids), kept)

    def as_json(self) -> list[Any]:
        """A list that ``from_json`` takes."""
        return list(dataclasses.astuple(self))

    @classmethod
    def from_json(cls, stored: Any) -> FileFacts:
        """The facts that ``as_json`` wrote.

        Raises:
            ValueError: If it is something else.
        """
        match stored:
            case [[int(width), int(height)], int(low), int(high), int(count), None | list()]:
                ids = stored[4]
                if ids is None or all(isinstance(value, int) for value in ids):
                    return cls((width, height), low, high, count, None if ids is None else tuple(ids))
        raise ValueError(f"not the facts of a file: {stored!r}")


def _distinct(ids: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """The different ids in ascending order; counting is many times faster than the sort of ``np.unique``."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 2**17:
        return np.flatnonzero(np.bincount((ids - low).ravel())) + low
    return np.unique(ids)


def _cache_folder() -> pathlib.Path | None:
    """The user's cache folder, by the XDG base directory specification; None when there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return pathlib.Path(named) / "pix2pixhd"
    with contextlib.suppress(RuntimeError):
        return pathlib.Path.home() / ".cache" / "pix2pixhd"
    return None


def _signature(status: os.stat_result) -> list[int]:
    # The change time cannot be set by programs: it tells a file apart that was replaced with size and time preserved.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class FactsCache:
    """The facts of the files of one folder and role, kept in the user's cache folder between runs.

    An entry counts while size, modification time, change time and inode of its file stay the same. Files that cannot be
    used are never kept, so that their message is always current. A cache that is damaged, of another version or not
    readable counts as empty; one that cannot be written is not an error. Concurrent runs replace the file as a whole.

    Args:
        role: What the files are.
        paths: The files.

    Example:
        >>> cache = FactsCache(3, [pathlib.Path("train_img/a.png")])  # doctest: +SKIP
        >>> cache.facts(pathlib.Path("train_img/a.png")).size  # doctest: +SKIP
        (2048, 1024)
    """

    def __init__(self, role: Role, paths: Iterable[pathlib.Path]) -> None:
        self.role = role
        self.names = {path: os.path.abspath(path) for path in paths}
        self.folder = os.path.commonpath({os.path.dirname(name) for name in self.names.values()} or {"/"})
        place = _cache_folder()
        digest = hashlib.sha256(repr((role, self.folder)).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.file = None if place is None else place / f"files-{digest}.json"
        self._known = self._load()
        self._new: dict[str, list[Any]] = {}

    def _header(self) -> dict[str, Any]:
        versions = {"pix2pixhd": pix2pixhd.__version__, "pillow": PIL.__version__, "numpy": np.__version__}
        return {"format": _FORMAT, "role": self.role, "folder": self.folder, **versions}

    def _load(self) -> dict[str, list[Any]]:
        if self.file is None:
            return {}
        try:
            digest, _, text = self.file.read_text(encoding="ascii").partition("\n")
            stored = json.loads(text) if hashlib.sha256(text.encode()).hexdigest() == digest else {}
            files = stored.get("files", {}) if stored.get("header") == self._header() else {}
            return files if isinstance(files, dict) else {}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def facts(self, path: pathlib.Path) -> FileFacts:
        """The facts of a file, from the cache or by decoding it.

        Raises:
            InputError: If the file cannot be used in its role.
        """
        name, now = self.names[path], time.time_ns()
        try:
            before = _signature(os.stat(name))
        except OSError:
            return FileFacts.read(path, self.role)  # which reports why
        with contextlib.suppress(KeyError, ValueError, TypeError):
            signature, stored = self._known[name]
            if signature == before:
                return FileFacts.from_json(stored)
        facts = FileFacts.read(path, self.role)
        with contextlib.suppress(OSError):
            if _signature(os.stat(name)) == before and max(before[1], before[2]) < now - _SETTLED_NS:
                self._new[name] = [before, facts.as_json()]
        return facts

    def save(self) -> None:
        """Writes the cache when something new was decoded; forgets files that no longer exist."""
        if self.file is None or not self._new:
            return
        current = set(self.names.values())
        kept = {name: entry for name, entry in self._load().items() if name in current or os.path.lexists(name)}
        content = {"header": self._header(), "files": kept | self._new}
        text = json.dumps(content, separators=(",", ":"))
        with contextlib.suppress(InputError):  # a cache that cannot be written is not an error
            write_text(self.file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", force=True)
