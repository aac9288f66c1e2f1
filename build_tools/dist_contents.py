"""What a distribution may contain and how large it may be, against ``dist_budgets.json``."""

from __future__ import annotations

import fnmatch
import json
import pathlib
import re
import tarfile
import zipfile

from build_tools.messages import BuildError

BUDGETS = pathlib.Path(__file__).with_name("dist_budgets.json")

# Everything in a wheel matches one of these, and each of these matches something, except for the CUDA library.
WHEEL = (
    "pix2pixhd/*.py",
    "pix2pixhd/py.typed",
    "pix2pixhd/config/shipped/*.yaml",
    "pix2pixhd/reporting/templates/*.html",
    "pix2pixhd/_C.*.so",
    "pix2pixhd/_ops.so",
    "pix2pixhd/_ops_cuda.so",
    "*.dist-info/METADATA",
    "*.dist-info/WHEEL",
    "*.dist-info/RECORD",
    "*.dist-info/entry_points.txt",
    "*.dist-info/top_level.txt",
    "*.dist-info/licenses/LICENSE",
)
_OPTIONAL = ("pix2pixhd/_ops_cuda.so",)
_BUILT = re.compile(r"\.(so|o|a|pyc|pdb|d)$|(^|/)(build|dist|__pycache__|\.git|\.venv)(/|$)")
# What belongs to one Python: the module _C, and the lists that contain its name.
_OF_ONE_PYTHON = re.compile(r"pix2pixhd/_C\.[^/]+\.so|[^/]+\.dist-info/(WHEEL|RECORD)")


def check_wheel(path: pathlib.Path) -> str:
    """Check the names in a wheel, that it is stripped of symbols, and its size. Returns a summary."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    unknown = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in WHEEL)]
    if unknown:
        raise BuildError(f"{path.name} contains {', '.join(unknown)}, which a wheel need not contain.")
    missing = [p for p in WHEEL if p not in _OPTIONAL and not fnmatch.filter(names, p)]
    if missing:
        raise BuildError(f"{path.name} lacks {', '.join(missing)}.")
    kind = "wheel with CUDA" if "pix2pixhd/_ops_cuda.so" in names else "wheel"
    return _check_size(path, kind, len(names))


def check_sdist(path: pathlib.Path) -> str:
    """Check that a source distribution contains nothing that was built, and its size. Returns a summary."""
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    built = [name for name in names if _BUILT.search(name)]
    if built:
        raise BuildError(f"{path.name} contains built files: {', '.join(built)}.")
    return _check_size(path, "sdist", len(names))


def _check_size(path: pathlib.Path, kind: str, files: int) -> str:
    budget, size = json.loads(BUDGETS.read_text())[kind], path.stat().st_size
    if size > budget:
        raise BuildError(
            f"{path.name} has {size} bytes, and the budget of a {kind} is {budget}. Make it smaller, or raise the "
            f"budget in {BUDGETS.name} if it is worth it."
        )
    return f"{path.name}: {kind}, {files} files, {size} bytes of {budget}"


def differing_files(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """The files that differ between the wheels of two Pythons, other than those that belong to one Python."""
    contents = []
    for path in (one, other):
        with zipfile.ZipFile(path) as archive:
            contents.append({i.filename: (i.CRC, i.file_size) for i in archive.infolist()})
    names = sorted(contents[0].keys() | contents[1].keys())
    return [n for n in names if not _OF_ONE_PYTHON.fullmatch(n) and contents[0].get(n) != contents[1].get(n)]
