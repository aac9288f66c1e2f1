"""Copies of the checkout, in which something else can be built."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def copy_checkout(target: pathlib.Path) -> pathlib.Path:
    """Copy the sources, committed or not, without built files."""
    listed = subprocess.run(  # nosec B607 # git, as found on PATH
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:  # an unpacked source distribution
        built = ("build", "dist", "runs", "demo_out", ".*", "*.so", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*built), dirs_exist_ok=True)
        return target
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # skip files that are tracked but deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
