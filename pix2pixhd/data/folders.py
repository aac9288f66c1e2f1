"""NVIDIA's folder layout: which files belong together."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from pix2pixhd.data.options import DataOptions
from pix2pixhd.errors import InputError

__all__ = ["Pair", "find_inputs", "find_pairs", "list_pictures", "match_files", "raise_problems"]

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp", ".npy"}

# Cityscapes, the original's own example, names the three files of one picture differently.
_SUFFIXES = (
    "_gtFine_labelIds",
    "_gtFine_instanceIds",
    "_gtCoarse_labelIds",
    "_gtCoarse_instanceIds",
    "_leftImg8bit",
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one picture.

    Attributes:
        name: What the files have in common: the name without extension and known suffixes.
        input: The label map, or the input picture.
        instance: The instance map; None when there are none.
        image: The real picture; None where only an input is needed.
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


def list_pictures(folder: pathlib.Path, purpose: str) -> dict[str, pathlib.Path]:
    """All pictures below a folder, by the name that ties the files of one picture together.

    Args:
        folder: The folder; searched with its subfolders.
        purpose: What the pictures are, for messages.

    Returns:
        Files by name, in alphabetical order. The name is the path below ``folder`` without extension and without the
        suffixes that Cityscapes uses (``_gtFine_labelIds``, ``_leftImg8bit``, …).

    Raises:
        InputError: If the folder is missing or empty, or if two files have the same name.

    Example:
        >>> import pathlib
        >>> pictures = list_pictures(pathlib.Path("datasets/cityscapes/train_img"), "pictures")  # doctest: +SKIP
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; {purpose} are expected there")
    pictures: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _EXTENSIONS or path.name.startswith(".") or not path.is_file():
            continue
        key = _key(path, folder)
        if key in pictures:
            raise InputError(f"{path} and {pictures[key]} have the same name {key!r}; rename or remove one of them")
        pictures[key] = path
    if not pictures:
        kinds = ", ".join(sorted(_EXTENSIONS))
        raise InputError(f"{folder}: the folder holds no pictures ({kinds}); {purpose} are expected there")
    return pictures


def match_files(options: DataOptions, phase: str) -> tuple[list[Pair], list[str]]:
    """The pictures of a phase, matched by file name, and what has no partner.

    Args:
        options: The ``data`` section.
        phase: Prefix of the folders, ``"train"`` say.

    Returns:
        One entry per complete picture, in alphabetical order; and one text per missing file.

    Raises:
        InputError: If a folder is missing or empty.

    Example:
        >>> pairs, problems = match_files(DataOptions(dataroot="datasets/cityscapes"), "train")  # doctest: +SKIP
    """
    if not options.dataroot:
        raise InputError("data.dataroot is not set; name the folder that holds the pictures, or try `pix2pixhd demo`")
    root = pathlib.Path(options.dataroot)
    if not root.is_dir():
        raise InputError(
            f"data.dataroot: there is no folder {root}; name the folder that holds {phase}_img or {phase}_B"
        )
    what = {
        options.input_folder: "label maps" if options.label_nc else "input pictures",
        options.image_folder: "real pictures",
    }
    if not options.no_instance:
        what["inst"] = "instance maps (or set data.no_instance: true)"
    found = {kind: list_pictures(root / f"{phase}_{kind}", purpose) for kind, purpose in what.items()}
    complete = set.intersection(*(set(files) for files in found.values()))
    pairs = [
        Pair(name, path, found["inst"][name] if "inst" in found else None, found[options.image_folder][name])
        for name, path in found[options.input_folder].items()
        if name in complete
    ]
    return pairs[: options.max_dataset_size], _without_partner(root, phase, found)


def _without_partner(root: pathlib.Path, phase: str, found: dict[str, dict[str, pathlib.Path]]) -> list[str]:
    names = {name: files[name] for files in reversed(found.values()) for name in files}
    return [
        f"{path} has no partner {name}.* in {root / f'{phase}_{kind}'}; add it, or remove the file"
        for name, path in sorted(names.items())
        for kind, files in found.items()
        if name not in files
    ]


def find_pairs(options: DataOptions, phase: str) -> list[Pair]:
    """The pictures of a phase, matched by file name, never by position.

    Args:
        options: The ``data`` section.
        phase: Prefix of the folders, ``"train"`` say.

    Returns:
        One entry per picture, in alphabetical order.

    Raises:
        InputError: If a folder is missing or empty, or if a file has no partner in another folder.

    Example:
        >>> pairs = find_pairs(DataOptions(dataroot="datasets/cityscapes"), "train")  # doctest: +SKIP
    """
    pairs, problems = match_files(options, phase)
    raise_problems(problems)
    return pairs


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one error that tells all problems; returns when there are none.

    Raises:
        InputError: With the problems.
    """
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{len(problems)} problems in the data:" + "".join(f"\n  {problem}" for problem in problems))


def find_inputs(folder: pathlib.Path, options: DataOptions, instances: pathlib.Path | None = None) -> list[Pair]:
    """The inputs to generate pictures from, with their instance maps where the generator was trained with them.

    Args:
        folder: Label maps or input pictures. Of a data set's root, ``test_label`` or ``test_A`` is taken.
        options: How the generator was trained.
        instances: Folder of instance maps; looked for beside ``folder`` (``test_inst`` for ``test_label``) when None.

    Raises:
        InputError: If a folder is missing or empty, or if an instance map is missing.

    Example:
        >>> inputs = find_inputs(pathlib.Path("test_label"), DataOptions(label_nc=35))  # doctest: +SKIP
    """
    inside = folder / f"test_{options.input_folder}"
    if inside.is_dir():
        folder = inside
    inputs = list_pictures(folder, "label maps" if options.label_nc else "input pictures")
    if options.no_instance:
        return [Pair(name, path) for name, path in inputs.items()]
    if instances is None:
        stem = folder.name.removesuffix(f"_{options.input_folder}")
        instances = folder.with_name(f"{stem}_inst")
        if not instances.is_dir():
            raise InputError(
                f"{instances}: there is no such folder; this generator needs instance maps: name their "
                "folder with --instances"
            )
    maps = list_pictures(instances, "instance maps")
    for name, path in inputs.items():
        if name not in maps:
            raise InputError(f"{path} has no instance map {name}.* in {instances}; add it")
    return [Pair(name, path, maps[name]) for name, path in inputs.items()]
