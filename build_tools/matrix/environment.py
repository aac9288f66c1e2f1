"""Environments of the install matrix: bases with one release of torch each, and cells that share a base's packages."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from build_tools.messages import say

CHECK = pathlib.Path(__file__).with_name("check.py")
BUILD_TOOLS = ("setuptools>=77", "pybind11>=2.13", "ninja", "numpy")
# Variables that change a build or what Python imports.
_UNSET = ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "CXXFLAGS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
OTHER_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


class Failure(Exception):
    """A command of a cell failed. The text is its output."""


class NotRun(Exception):
    """This machine lacks what a cell needs. The text is the reason."""


def run(
    command: Sequence[object], cwd: pathlib.Path | None = None, timeout: int = 3600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without the network of the package index. Returns the completed process."""
    kept = {k: v for k, v in os.environ.items() if k not in _UNSET and not k.startswith("PIX2PIXHD_")}
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **offline, **variables},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
    )


def output(command: Sequence[object], cwd: pathlib.Path | None = None, **variables: str) -> str:
    """Run a command. Returns what it printed; raises Failure if it fails."""
    done = run(command, cwd, **variables)
    if done.returncode != 0:
        raise Failure(done.stdout + done.stderr)
    return done.stdout + done.stderr


def find_python(version: str) -> str:
    """The interpreter of a version, on the PATH or of pyenv.

    Raises:
        NotRun: If there is none.
    """
    candidates = [
        f"python{version}",
        *sorted(map(str, pathlib.Path.home().glob(f".pyenv/versions/{version}*/bin/python"))),
    ]
    for candidate in candidates:
        path = shutil.which(candidate)
        code = "import sysconfig; print(sysconfig.get_python_version() + sysconfig.get_config_var('ABIFLAGS'))"
        if path and run([path, "-c", code]).stdout.strip() == version:
            return path
    raise NotRun(f"no Python {version} on this machine")


@dataclasses.dataclass(frozen=True)
class Base:
    """An environment with torch and the build tools, and without this package."""

    name: str
    python: pathlib.Path

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """Versions of Python and torch, CUDA of torch, and the folders with its packages."""
        code = (
            "import json, platform, site, sys, sysconfig, torch\n"
            "folders = [p for p in sys.path if '-packages' in p]\n"
            "print(json.dumps({'python': platform.python_version() + sysconfig.get_config_var('ABIFLAGS'), "
            "'torch': torch.__version__, 'cuda': torch.version.cuda or '', 'folders': folders}))"
        )
        return json.loads(output([self.python, "-c", code]).splitlines()[-1])


def prepare(folder: pathlib.Path, name: str, python: str, torch: str) -> Base:
    """The base of this name in the folder; installs it from the package index if it is missing.

    Raises:
        NotRun: If there is no such Python, or the index has no such torch for it.
    """
    root = folder / name
    base = Base(name, root / "bin" / "python")
    ready = folder / f"{name}.ready"
    if ready.exists():
        return base
    interpreter = find_python(python)
    say(f"preparing {name}")
    output([interpreter, "-m", "venv", "--clear", root])
    packages = [torch, *BUILD_TOOLS]
    command = [base.python, "-m", "pip", "install", "--quiet", *packages]
    done = run(command, PIP_NO_INDEX="0")
    if done.returncode != 0:
        shutil.rmtree(root)
        found = re.search(r"No matching distribution found for \S+", done.stderr)
        raise NotRun(f"{found[0] if found else done.stderr.strip().splitlines()[-1]} (Python {python})")
    ready.touch()
    return base


class Cell:
    """An environment that shares a base's packages by links, and to which only this package is installed."""

    def __init__(
        self, base: Base, folder: pathlib.Path, prefix: Sequence[str] = (), umask: str = "", interpreter: str = ""
    ) -> None:
        """Create the environment.

        Args:
            base: Where torch and the build tools are.
            folder: For the environment.
            prefix: Put before each command, for example to run it as another user.
            umask: The umask of all commands.
            interpreter: A Python of the same version as the base's, for a user who may not run that one.
        """
        self.base = base
        self.folder = folder
        self.prefix = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *prefix] if umask else list(prefix)
        self.python = folder / "bin" / "python"
        self.call(interpreter or base.python, "-m", "venv", "--without-pip", folder)
        self.site = next(folder.glob("lib/python*/site-packages"))
        self.use(base)

    def use(self, base: Base) -> None:
        """Link the packages of a base, in place of those of the base before."""
        links = self.folder / "links"
        if links.exists():
            shutil.rmtree(links)
        links.mkdir()
        for path in base.facts["folders"]:
            for entry in pathlib.Path(path).iterdir():
                name = entry.name.lower()
                hidden = "pix2pixhd" in name or name.endswith(".pth") or name == "__pycache__"
                if not hidden and not (links / entry.name).exists():
                    (links / entry.name).symlink_to(entry)
        (self.site / "links.pth").write_text(f"{links}\n", encoding="utf-8")
        self.base = base

    def call(self, *command: object, **variables: str) -> str:
        """Run a command in the folder above the environment. Returns its output; raises Failure if it fails."""
        return output([*self.prefix, *command], cwd=self.folder.parent, **variables)

    def install(self, *arguments: object, **variables: str) -> str:
        """Run pip install without build isolation and without dependencies. Returns its output."""
        options = ("--verbose", "--no-build-isolation", "--no-deps", "--no-cache-dir")
        return self.call(self.python, "-m", "pip", "install", *options, *arguments, **variables)

    def check(self, **variables: str) -> dict[str, object]:
        """Compare fused losses and gradients with plain PyTorch, and run the command's help. Returns what is loaded."""
        printed = self.call(self.python, CHECK, **variables)
        version = self.call(self.folder / "bin" / "pix2pixhd", "--version", **variables)
        facts = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        if str(facts["package"]) not in version:
            raise Failure(f"pix2pixhd --version printed {version!r}, and the package has {facts['package']}")
        if facts["version"] != facts["package"] or not facts["cpu"]:
            raise Failure(f"the package does not have the libraries of its version: {facts}")
        return facts

    def losses(self, **variables: str) -> str:
        """What the check prints if it fails: the reason."""
        done = run([*self.prefix, self.python, CHECK], cwd=self.folder.parent, **variables)
        return done.stdout + done.stderr


def is_linux_root() -> bool:
    """Whether commands can be run as another user."""
    return sys.platform == "linux" and os.geteuid() == 0
