"""NVIDIA's folder layout, and matching of the files of each sample."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Literal

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.images import UNREADABLE
from pix2pixhd.data.problems import Problem, display, raise_problems
from pix2pixhd.errors import InputError

__all__ = [
    "WITHOUT_PARTNER",
    "Pair",
    "check_command",
    "find_inputs",
    "find_pairs",
    "input_folders",
    "list_images",
    "match_files",
]

WITHOUT_PARTNER = "files without a partner"

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp", ".npy"}

# Suffixes of the three files of a sample in Cityscapes, the example dataset of NVIDIA's code.
_SUFFIXES = (
    "_gtFine_labelIds",
    "_gtFine_instanceIds",
    "_gtCoarse_labelIds",
    "_gtCoarse_instanceIds",
    "_leftImg8bit",
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one sample.

    Attributes:
        name: Common name of the files, without extension and known suffixes.
        input: The label map, or the input image.
        instance: The instance map; None without instance maps.
        image: The real image; None if only the input is needed.
    """

    name: str
    input: pathlib.Path
    instance: pathlib.Path | None = None
    image: pathlib.Path | None = None


def _key(path: pathlib.Path, folder: pathlib.Path) -> str:
    stem = path.relative_to(folder).with_suffix("").as_posix()
    for suffix in _SUFFIXES:
        if stem.endswith(suffix):
            return stem[: -len(suffix)]
    return stem


def _folder_problem(folder: pathlib.Path) -> str | None:
    """Explains why a path is not a folder that can be searched. Returns None if it is one."""
    try:
        found = "" if stat.S_ISDIR(folder.stat().st_mode) else "there is a file instead of the folder"
    except PermissionError:
        found = "permission is denied (chmod u+rx makes a folder readable):"
    except OSError:
        found = "there is no folder"
    return f"{found} {display(folder)}" if found else None


def _is(entry: os.DirEntry[str], kind: Literal["dir", "file"]) -> bool:
    """Like ``is_dir`` and ``is_file``, but returns False for broken and circular links."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def _walk(folder: pathlib.Path, problems: list[Problem]) -> Iterator[os.DirEntry[str]]:
    """Yields all entries below a folder except hidden ones, in alphabetical order. Follows links to folders once."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as listing:
                entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            text = f"{display(current)}: the folder cannot be read ({error.strerror}); make it readable (chmod u+rx)"
            problems.append(Problem(UNREADABLE, text, display(current)))
            continue
        waiting += [current / entry.name for entry in reversed(entries) if _is(entry, "dir")]
        yield from entries


def _entry_problem(path: pathlib.Path, folder: pathlib.Path, entry: os.DirEntry[str]) -> str | None:
    """Explains why an entry with an image's extension cannot be an image. Returns None if it can be one."""
    if _is(entry, "dir"):
        return "is a folder, not an image; rename it or move it elsewhere"
    if not _is(entry, "file"):
        if entry.is_symlink():
            return (
                f"the symbolic link points to {display(os.readlink(path))}, which does not exist; restore or remove it"
            )
        return "is not a regular file (a pipe, socket or device); remove it"
    try:
        path.relative_to(folder).as_posix().encode()
    except UnicodeEncodeError:
        # Outputs and results pages contain the names of their inputs and are in UTF-8.
        return "the file name is not valid UTF-8; rename it"
    return None


def _scan(folder: pathlib.Path, purpose: str) -> tuple[dict[str, pathlib.Path], list[Problem]]:
    """Returns the images below a folder by key, and all problems with the folder's entries."""
    missing = _folder_problem(folder)
    if missing is not None:
        return {}, [Problem("missing folders", f"{missing}; {purpose} are expected there", display(folder))]
    problems: list[Problem] = []
    images: dict[str, pathlib.Path] = {}
    for entry in _walk(folder, problems):
        path = pathlib.Path(entry.path)
        if path.suffix.lower() not in _EXTENSIONS:
            continue
        wrong = _entry_problem(path, folder, entry)
        if wrong is not None:
            problems.append(Problem(UNREADABLE, f"{display(path)}: {wrong}", display(path)))
            continue
        key = _key(path, folder)
        if key in images:
            text = (
                f"{display(path)} and {display(images[key])} have the same name {key!r}; rename or remove one of them"
            )
            problems.append(Problem("files of the same name", text, display(path)))
            continue
        images[key] = path
    if not images and not problems:
        kinds = ", ".join(sorted(_EXTENSIONS))
        text = f"{display(folder)}: the folder contains no images ({kinds}); {purpose} are expected there"
        problems.append(Problem("empty folders", text, display(folder)))
    return dict(sorted(images.items(), key=lambda item: item[1])), problems


def list_images(folder: pathlib.Path, purpose: str) -> dict[str, pathlib.Path]:
    """Lists all images below a folder, by the common name of the files of a sample.

    Args:
        folder: The folder. Its subfolders are searched too, except hidden ones.
        purpose: Kind of images, for messages.

    Returns:
        Files by name, in alphabetical order. The name is the path below ``folder`` without extension and without the
        suffixes that Cityscapes uses (``_gtFine_labelIds``, ``_leftImg8bit``, …).

    Raises:
        InputError: If the folder is missing or empty, if two files have the same name, if an entry with an image's name
            is a folder, a broken link or not a regular file, or if its name is not UTF-8.

    Example:
        >>> import pathlib
        >>> images = list_images(pathlib.Path("datasets/cityscapes/train_img"), "images")  # doctest: +SKIP
    """
    images, problems = _scan(folder, purpose)
    raise_problems(problems)
    return images


def _root(options: DataOptions, phase: str) -> pathlib.Path:
    if not options.dataroot:
        raise InputError("data.dataroot is not set; give the folder that contains the images, or try `pix2pixhd demo`")
    root = pathlib.Path(options.dataroot)
    missing = _folder_problem(root)
    if missing is not None:
        raise InputError(f"data.dataroot: {missing}; give the folder that contains {phase}_img or {phase}_B")
    return root


def match_files(options: DataOptions, phase: str, images_optional: bool = False) -> tuple[list[Pair], list[Problem]]:
    """Matches the files of a phase by name and collects the problems of its folders.

    Args:
        options: The ``data`` section.
        phase: Prefix of the folders, for example ``"train"``.
        images_optional: Whether the folder of real images may be missing. ``Pair.image`` is None in this case.

    Returns:
        One entry per complete sample, in alphabetical order, and the problems: missing or empty folders, files that
        cannot be images, and files without a partner.

    Raises:
        InputError: If ``dataroot`` is not set or does not exist.

    Example:
        >>> pairs, problems = match_files(DataOptions(dataroot="datasets/cityscapes"), "train")  # doctest: +SKIP
    """
    root = _root(options, phase)
    labels = "label maps"
    if options.label_nc and (root / f"{phase}_A").is_dir():
        labels += f" (set data.label_nc: 0 for the images in {phase}_A)"
    what = {
        options.input_folder: labels if options.label_nc else "input images",
        options.image_folder: "real images",
    }
    if images_optional and not (root / f"{phase}_{options.image_folder}").exists():
        del what[options.image_folder]
    if not options.no_instance:
        what["inst"] = "instance maps (or set data.no_instance: true)"
    scanned = {kind: _scan(root / f"{phase}_{kind}", purpose) for kind, purpose in what.items()}
    problems = [problem for _, wrong in scanned.values() for problem in wrong]
    found = {kind: images for kind, (images, _) in scanned.items()}
    complete = set.intersection(*(set(files) for files in found.values()))
    pairs = [
        Pair(
            name,
            path,
            found["inst"][name] if "inst" in found else None,
            found[options.image_folder][name] if options.image_folder in found else None,
        )
        for name, path in found[options.input_folder].items()
        if name in complete
    ]
    # With an empty or missing folder, every file of the other folders would be reported.
    if all(found.values()):
        problems += _without_partner(root, phase, found)
    return pairs[: options.max_dataset_size], problems


def _without_partner(root: pathlib.Path, phase: str, found: dict[str, dict[str, pathlib.Path]]) -> list[Problem]:
    names = {name: files[name] for files in reversed(found.values()) for name in files}
    return [
        Problem(
            WITHOUT_PARTNER,
            f"{display(path)} has no partner {name}.* in {display(root / f'{phase}_{kind}')}; "
            "add it, or remove the file",
            display(path),
        )
        for name, path in sorted(names.items())
        for kind, files in found.items()
        if name not in files
    ]


def find_pairs(options: DataOptions, phase: str) -> list[Pair]:
    """Finds the samples of a phase. Files are matched by name, not by position.

    Args:
        options: The ``data`` section.
        phase: Prefix of the folders, for example ``"train"``.

    Returns:
        One entry per sample, in alphabetical order.

    Raises:
        InputError: If a folder is missing or empty, or if a file has no partner in another folder.

    Example:
        >>> pairs = find_pairs(DataOptions(dataroot="datasets/cityscapes"), "train")  # doctest: +SKIP
    """
    pairs, problems = match_files(options, phase)
    raise_problems(problems, check_command(options))
    return pairs


def check_command(options: DataOptions) -> str:
    """Returns the hint for messages that do not list all problems of a dataset."""
    return f"all of them: pix2pixhd data check {display(options.dataroot)} --json FILE"


def input_folders(
    folder: pathlib.Path, options: DataOptions, instances: pathlib.Path | None = None
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns the folders that ``find_inputs`` reads: inputs and, if the generator needs them, instance maps.

    Args:
        folder: As for ``find_inputs``.
        options: As for ``find_inputs``.
        instances: As for ``find_inputs``.

    Example:
        >>> input_folders(pathlib.Path("test_label"), DataOptions(label_nc=35))
        (PosixPath('test_label'), PosixPath('test_inst'))
    """
    inside = folder / f"test_{options.input_folder}"
    if inside.is_dir():
        folder = inside
    if options.no_instance:
        return folder, None
    stem = folder.name.removesuffix(f"_{options.input_folder}")
    return folder, instances or folder.with_name(f"{stem}_inst")


def find_inputs(folder: pathlib.Path, options: DataOptions, instances: pathlib.Path | None = None) -> list[Pair]:
    """Finds the inputs for generation, with their instance maps if the generator was trained with them.

    Args:
        folder: Folder of label maps or input images, or the root of a dataset with ``test_label`` or ``test_A``.
        options: The ``data`` section with which the generator was trained.
        instances: Folder of instance maps. None uses the one beside ``folder``: ``test_inst`` for ``test_label``.

    Returns:
        One entry per input, in alphabetical order.

    Raises:
        InputError: If a folder is missing or empty, or if an instance map is missing.

    Example:
        >>> inputs = find_inputs(pathlib.Path("test_label"), DataOptions(label_nc=35))  # doctest: +SKIP
    """
    given = instances
    folder, instances = input_folders(folder, options, instances)
    inputs = list_images(folder, "label maps" if options.label_nc else "input images")
    if instances is None:
        return [Pair(name, path) for name, path in inputs.items()]
    if given is None and not instances.is_dir():
        raise InputError(
            f"{instances}: there is no such folder; this generator needs instance maps: give their folder with "
            "--instances"
        )
    maps = list_images(instances, "instance maps")
    raise_problems(
        [
            Problem(
                WITHOUT_PARTNER,
                f"{display(path)} has no instance map {name}.* in {display(instances)}; add it",
                display(path),
            )
            for name, path in inputs.items()
            if name not in maps
        ]
    )
    return [Pair(name, path, maps[name]) for name, path in inputs.items()]
