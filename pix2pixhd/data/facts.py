"""Facts about files that the data check needs, with a cache, so that unchanged files are decoded only once."""

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

Role = Literal["label map", "instance map"] | int  # an integer is the number of channels of an image

# For files with more distinct ids, only the smallest and the largest id are stored.
_MAX_IDS = 1024

# On file systems with coarse time stamps, a file that changed this recently may change again with an equal one.
_SETTLED_NS = 2_000_000_000

# Increase this whenever a change to the readers changes the facts of a file.
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """Facts about a valid file. They only depend on the file and its role, not on options.

    Attributes:
        size: Width and height, after applying the EXIF orientation.
        low: The smallest id of a label or instance map; 0 for images.
        high: The largest id; 0 for images.
        count: The number of distinct ids; 0 for images.
        ids: The distinct ids; None for images, and if there are more than 1024.
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
            InputError: If the file is not valid in this role.
        """
        if isinstance(role, int):
            return cls(read_image(path, role).size)
        image = read_index_map(path, role)
        ids = _distinct(np.asarray(image))
        stored = tuple(ids.tolist()) if len(ids) <= _MAX_IDS else None
        return cls(image.size, int(ids[0]), int(ids[-1]), len(ids), stored)

    def as_json(self) -> list[Any]:
        """Returns a list for JSON that ``from_json`` accepts."""
        return list(dataclasses.astuple(self))

    @classmethod
    def from_json(cls, stored: Any) -> FileFacts:
        """Converts the result of ``as_json`` back to facts.

        Raises:
            ValueError: If ``stored`` is not such a list.
        """
        match stored:
            case [[int(width), int(height)], int(low), int(high), int(count), None | list()]:
                ids = stored[4]
                if ids is None or all(isinstance(value, int) for value in ids):
                    return cls((width, height), low, high, count, None if ids is None else tuple(ids))
        raise ValueError(f"not the facts of a file: {stored!r}")


def _distinct(ids: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Returns the distinct ids in ascending order. Counting is many times faster than sorting in ``np.unique``."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 2**17:
        return np.flatnonzero(np.bincount((ids - low).ravel())) + low
    return np.unique(ids)


def _cache_folder() -> pathlib.Path | None:
    """Returns the cache folder of the XDG base directory specification; None if there is no home folder."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return pathlib.Path(named) / "pix2pixhd"
    with contextlib.suppress(RuntimeError):
        return pathlib.Path.home() / ".cache" / "pix2pixhd"
    return None


def _signature(status: os.stat_result) -> list[int]:
    # Programs cannot set the change time, so it detects files that were replaced with the same size and modification
    # time.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class FactsCache:
    """Cache of the facts of the files in one folder with one role, stored in the user's cache folder.

    An entry is valid while the size, modification time, change time and inode of its file are unchanged. Invalid files
    are not cached, so that their messages are always current. A cache that is damaged, unreadable or from another
    version is treated as empty. Failure to write the cache is not an error. Concurrent runs replace the cache file
    atomically.

    Args:
        role: The role of the files.
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
        """Returns the facts of a file, from the cache or by decoding it.

        Raises:
            InputError: If the file is not valid in its role.
        """
        name, now = self.names[path], time.time_ns()
        try:
            before = _signature(os.stat(name))
        except OSError:
            return FileFacts.read(path, self.role)  # raises an error with the reason
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
        """Writes the cache if files were decoded, and removes the entries of files that no longer exist."""
        if self.file is None or not self._new:
            return
        current = set(self.names.values())
        kept = {name: entry for name, entry in self._load().items() if name in current or os.path.lexists(name)}
        content = {"header": self._header(), "files": kept | self._new}
        text = json.dumps(content, separators=(",", ":"))
        with contextlib.suppress(InputError):  # a cache that cannot be written is not an error
            write_text(self.file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", force=True)
