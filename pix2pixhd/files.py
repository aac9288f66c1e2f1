"""Atomic file output, used by all commands.

A file appears under its final name only when it is complete. Files that this package did not write are not replaced,
unless the user asks for it with ``--force``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping

from pix2pixhd.errors import InputError

__all__ = [
    "MARK",
    "Record",
    "check_apart",
    "check_inside",
    "check_replaceable",
    "check_writable",
    "is_own",
    "is_temporary",
    "replacing",
    "replacing_all",
    "write_text",
]

# Images, pages and other files that can store a comment contain this text near their beginning, so that later runs may
# replace them without ``--force``.
MARK = "Written by pix2pixhd"
_HEAD = 4096

_REMEDY = "free some space or choose another place"


def is_own(path: pathlib.Path) -> bool:
    """Returns whether a file contains ``MARK``, which means that this package wrote it.

    Example:
        >>> is_own(pathlib.Path("no such file"))
        False
    """
    try:
        with path.open("rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and MARK.encode() in file.read(_HEAD)
    except OSError:
        return False


def check_writable(folder: pathlib.Path, name: str) -> None:
    """Creates a folder and checks that files can be written to it. Commands call this before other work.

    Args:
        folder: The folder.
        name: The option that specifies the folder, for the message.

    Raises:
        InputError: If the folder cannot be written to. The message names the option, the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name}: cannot write to {folder} ({error.strerror}); choose another folder") from None


def _is_device(path: pathlib.Path) -> bool:
    """Returns whether a path is a terminal, a pipe or ``/dev/null``, which are written to and never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_foreign(path: pathlib.Path) -> bool:
    return os.path.exists(path) and not _is_device(path) and not is_own(path)


def check_replaceable(
    paths: Iterable[pathlib.Path],
    force: bool = False,
    option: str = "--output",
    remedy: str = "choose another place, or replace existing files with --force",
) -> None:
    """Checks that a command would not replace files that this package did not write. Commands call this first.

    Args:
        paths: The files that the command will write.
        force: Whether the user allowed replacing such files.
        option: The option that specifies the files, for the message.
        remedy: The remedy, for the message.

    Raises:
        InputError: If one of the paths is a folder or, without ``force``, an existing file without ``MARK``.
    """
    foreign = []
    for path in paths:
        if os.path.isdir(path):
            raise InputError(
                f"{option}: {path} is a folder, but a file of this name would be written; choose another name"
            )
        if not force and _is_foreign(path):
            foreign.append(path)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(f"{option}: {foreign[0]}{more} would be replaced; {remedy}")


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_apart(
    outputs: Iterable[pathlib.Path], inputs: Mapping[str, Iterable[pathlib.Path | None]], option: str = "--output"
) -> None:
    """Checks that no output is an input or lies inside a folder of inputs. Commands call this before they write.

    Files are compared by device and inode. This handles symbolic links, hard links, relative paths, bind mounts and
    case-insensitive file systems.

    Args:
        outputs: Files and folders that the command will write.
        inputs: Files and folders that the command reads, by the option that specifies them. None is skipped.
        option: The option that specifies the outputs, for the message.

    Raises:
        InputError: If an output is an input or lies inside one.
    """
    read: dict[tuple[int, int], tuple[str, pathlib.Path]] = {}
    for name, paths in inputs.items():
        for path in paths:
            identity = None if path is None else _identity(path)
            if path is not None and identity is not None:
                read[identity] = (name, path)
    apart: set[pathlib.Path] = set()  # folders that are known not to lie inside an input
    for output in outputs:
        resolved = output.resolve()
        for place in (resolved, *resolved.parents):
            if place in apart:
                break
            found = read.get(_identity(place) or (-1, -1))
            if found is not None:
                name, path = found
                where = "is" if place == resolved else "lies inside"
                raise InputError(
                    f"{option}: {output} {where} {path}, which is read ({name}); choose a folder outside the input"
                )
        apart.update(resolved.parents)


def check_inside(paths: Iterable[pathlib.Path], folder: pathlib.Path, option: str = "--output") -> None:
    """Checks that files whose names come from other files are written to a folder, not outside of it.

    A symbolic link in the folder could redirect them; the folder itself may be one.

    Args:
        paths: The files that will be written.
        folder: The folder.
        option: The option that specifies the folder, for the message.

    Raises:
        InputError: If one of the files would be outside.
    """
    # Not `Path.resolve`, which raises different errors for circular links in different versions of Python.
    root = os.path.realpath(folder)
    for path in paths:
        found = os.path.realpath(path)
        if os.path.commonpath([root, found]) != root:
            raise InputError(
                f"{option}: {path} would be written to {found}, outside of {folder}; remove the symbolic link, or "
                "choose another folder"
            )


def _check_one(path: pathlib.Path, force: bool) -> None:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder, but a file of this name would be written; choose another name")
    if not force and _is_foreign(path):
        raise InputError(
            f"{path}: exists and was not written by pix2pixhd, so it is kept; move it away or choose another place"
        )


def _temporary(target: pathlib.Path) -> pathlib.Path:
    """Returns a hidden name beside ``target``, with the same suffix, from which some writers infer the format."""
    return target.with_name(f".pix2pixhd-{secrets.token_hex(6)}{target.suffix}")


def is_temporary(path: pathlib.Path) -> bool:
    """Returns whether a file has a name under which ``replacing_all`` writes; a killed process leaves such files.

    Example:
        >>> is_temporary(pathlib.Path("checkpoints/.pix2pixhd-0123456789ab.ckpt"))
        True
    """
    return re.fullmatch(r"\.pix2pixhd-[0-9a-f]{12}(\.\w+)?", path.name) is not None


def _sync(path: pathlib.Path, access: int = os.O_RDWR) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    # Windows and some network file systems only flush files that are open for writing.
    handle = os.open(path, access)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: pathlib.Path) -> None:
    # Some file systems cannot flush folders. The files themselves are flushed already.
    with contextlib.suppress(OSError):
        _sync(folder, os.O_RDONLY)


@contextlib.contextmanager
def replacing_all(
    paths: Iterable[pathlib.Path], *, force: bool = False, remedy: str = _REMEDY
) -> Iterator[list[pathlib.Path]]:
    """Writes several files, either all of them or none.

    The files are written under temporary names in the same folders and are renamed when the block ends without an
    exception. On an exception or an interrupt, the temporary files are removed and existing files are left unchanged.
    Existing terminals, pipes and devices are written to directly. Symbolic links are followed.

    Args:
        paths: The files to write. Missing folders are created.
        force: Whether files without ``MARK`` may be replaced.
        remedy: The remedy if the files cannot be written, for the message.

    Yields:
        The temporary path of every file.

    Raises:
        InputError: If a file cannot be written, or if it exists and may not be replaced.

    Example:
        >>> with replacing_all([pathlib.Path("a.txt"), pathlib.Path("b.txt")]) as (a, b):  # doctest: +SKIP
        ...     a.write_text("1")
        ...     b.write_text("2")
    """
    named = [path.resolve() if os.path.islink(path) and not _is_device(path) else path for path in paths]
    parts: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        current = named[0] if named else pathlib.Path()
        for current in named:
            if _is_device(current):
                parts.append((current, current))
                continue
            current.parent.mkdir(parents=True, exist_ok=True)
            parts.append((_temporary(current), current))
            # Create the file exclusively, with the permissions of the umask, which tempfile ignores.
            os.close(os.open(parts[-1][0], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield [part for part, _ in parts]
        for part, current in parts:
            if part != current:
                _sync(part)
        # Commands also check before they start to work, but files may have appeared since then.
        for _, current in parts:
            _check_one(current, force)
        for part, current in parts:
            if part != current:
                part.replace(current)
        for folder in {current.parent for part, current in parts if part != current}:
            _sync_folder(folder)
    except OSError as error:
        raise InputError(f"{current}: cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        for part, current in parts:
            if part != current:
                with contextlib.suppress(OSError):
                    part.unlink()


@contextlib.contextmanager
def replacing(path: pathlib.Path, *, force: bool = False, remedy: str = _REMEDY) -> Iterator[pathlib.Path]:
    """Writes one file atomically; see ``replacing_all``.

    Example:
        >>> with replacing(pathlib.Path("city.onnx")) as part:  # doctest: +SKIP
        ...     program.save(part)
    """
    with replacing_all([path], force=force, remedy=remedy) as (part,):
        yield part


def write_text(path: pathlib.Path, text: str, *, force: bool = False) -> None:
    """Writes a UTF-8 text file atomically; see ``replacing_all``.

    Raises:
        InputError: If the file cannot be written, or if it exists and may not be replaced.
    """
    with replacing(path, force=force) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)


class Record:
    """Record of the files that a command wrote to a folder, so that a later run removes only these files.

    A file is considered the command's own while its size and modification time match the record.

    Args:
        folder: The folder.
        parts: Files and subfolders that the command writes.

    Example:
        >>> Record(pathlib.Path("runs/demo"), ["data", "run", "demo.yaml"]).clear("--out")  # doctest: +SKIP
    """

    def __init__(self, folder: pathlib.Path, parts: Iterable[str]) -> None:
        self.folder = folder
        self.parts = list(parts)
        self.path = folder / ".pix2pixhd-files.json"

    def _present(self) -> dict[str, list[int]]:
        places = [self.folder / part for part in self.parts]
        found = [path for place in places for path in (place, *place.rglob("*")) if os.path.lexists(path)]
        files = [path for path in found if path.is_symlink() or not path.is_dir()]
        status = {path.relative_to(self.folder).as_posix(): path.lstat() for path in files}
        return {name: [entry.st_size, entry.st_mtime_ns] for name, entry in status.items()}

    def _recorded(self) -> dict[str, list[int]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        files = content.get("files") if isinstance(content, dict) else None
        return files if isinstance(files, dict) else {}

    def save(self) -> None:
        """Records the files that currently exist."""
        text = json.dumps({"comment": MARK, "files": self._present()}, indent=1)
        write_text(self.path, text + "\n")

    def clear(self, option: str) -> None:
        """Removes the recorded files.

        Args:
            option: The option that specifies the folder, for the message.

        Raises:
            InputError: If there are other files, or if a file has changed. Nothing is removed in this case.
        """
        recorded, present = self._recorded(), self._present()
        foreign = sorted(name for name, status in present.items() if recorded.get(name) != status)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise InputError(
                f"{option}: {self.folder / foreign[0]}{more} would be replaced, but was not written by an earlier run "
                "of this command, or has changed since; move or delete it, or choose another folder"
            )
        for name in present:
            (self.folder / name).unlink()
        for part in self.parts:
            folders = [path for path in (self.folder / part).rglob("*") if path.is_dir()]
            for folder in (*sorted(folders, reverse=True), self.folder / part):
                with contextlib.suppress(OSError):  # not empty: a file or folder has appeared in it
                    folder.rmdir()
