"""Shared by the installation tests: environments, copies of the checkout, a check of the operators."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig
import types

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLOW = os.environ.get("PIX2PIXHD_TEST_SLOW_INSTALL", "") not in ("", "0")

# Compiling without optimization takes a third of the time. The installation that runs the tests is optimized, and so
# are the wheels that are tested with other releases of torch.
UNOPTIMIZED = {} if SLOW else {"CXXFLAGS": "-O0", "NVCC_APPEND_FLAGS": "-Xcicc -O1 -Xptxas -O0"}

# Variables that change a build, or the packages that a subprocess imports.
_UNSET = (
    "CUDA_HOME",
    "CUDA_PATH",
    "TORCH_CUDA_ARCH_LIST",
    "CXX",
    "CXXFLAGS",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
)


def find_nvcc() -> str | None:
    """nvcc as setup.py finds it in the environment of the tests."""
    usual = pathlib.Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def archs_here() -> str:
    """The architectures of a test build: those of this machine's GPUs, or else a single one."""
    if not torch.cuda.is_available():
        return "9.0"
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def no_cuda_reason() -> str:
    """Why no CUDA kernels are built with a broken nvcc: nvcc fails, or torch is a build without CUDA."""
    return "--version fails" if torch.version.cuda else "is a build without CUDA"


def script(path: pathlib.Path, body: str) -> pathlib.Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def torch_with(
    cuda: str | None, *capabilities: tuple[int, int], folder: pathlib.Path | str = "/no/such"
) -> types.SimpleNamespace:
    """A stand-in for torch with this CUDA version, in this folder, with GPUs of these capabilities."""
    return types.SimpleNamespace(
        __version__="2.15.0",
        __file__=f"{folder}/torch/__init__.py",
        version=types.SimpleNamespace(cuda=cuda),
        cuda=types.SimpleNamespace(
            is_available=lambda: bool(capabilities),
            device_count=lambda: len(capabilities),
            get_device_capability=lambda index: capabilities[index],
        ),
    )


def nvcc(path: pathlib.Path, release: str = "13.0") -> pathlib.Path:
    """Write an nvcc that prints its version."""
    return script(path, f"echo 'Cuda compilation tools, release {release}, V{release}.48'")


def variables(**changes: str) -> dict[str, str]:
    """The environment of a subprocess, without variables that change a build and without the network."""
    kept = {k: v for k, v in os.environ.items() if k not in _UNSET and not k.startswith("PIX2PIXHD_")}
    return {**kept, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONWARNINGS": "default", **changes}


# Searches for objects by flags and source, without the folders in them.
_CACHE = r"""
for target; do :; done
case $target in *.o) ;; *) exec "$@" ;; esac
key=$(printf '%s\n' "$@" | sed 's|[^=]*/||g' | cksum | tr ' ' -)
mkdir -p "$FOLDER"
if [ ! -e "$FOLDER/$key.o" ]; then
    "$@" || exit
    cp "$target.d" "$FOLDER/$key.d"
    cp "$target" "$FOLDER/$key.o"
fi
cp "$FOLDER/$key.d" "$target.d"
cp "$FOLDER/$key.o" "$target"
"""


def compiler_cache(folder: pathlib.Path) -> str:
    """CXX with a launcher that compiles each source once per set of flags, for several builds of one checkout."""
    path = script(folder / "ccache", _CACHE.replace("$FOLDER", str(folder / "objects")))
    cxx = shlex.split(os.environ.get("CXX", "")) or ["g++" if shutil.which("g++") else "c++"]
    return shlex.join([str(path), *cxx])


class Environment:
    """A virtual environment with links to the running environment's packages, except this one and ``leave_out``.

    With ``alone`` it has no links but its own pip, and it installs from the network.
    """

    def __init__(self, folder: pathlib.Path, leave_out: tuple[str, ...] = (), alone: bool = False) -> None:
        shared = any(True for _ in importlib.metadata.distributions(name="pip")) and not alone
        subprocess.run([sys.executable, "-m", "venv", *["--without-pip"] * shared, str(folder)], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.alone = alone
        self.log = ""
        self.site = next(folder.glob("lib/python*/site-packages"))
        if alone:
            return
        links = folder / "links"
        links.mkdir()
        for path in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
            for entry in pathlib.Path(path).iterdir():
                name = entry.name.lower()
                hidden = "pix2pixhd" in name or name.endswith(".pth") or name == "__pycache__"
                if not hidden and not name.startswith(leave_out or ("\0",)) and not (links / entry.name).exists():
                    (links / entry.name).symlink_to(entry)
        (self.site / "links.pth").write_text(f"{links}\n")

    @property
    def package(self) -> pathlib.Path:
        return self.site / "pix2pixhd"

    def run(
        self, *arguments: object, cwd: pathlib.Path | None = None, check: bool = True, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python outside the checkout. The message of a failure contains the output."""
        command = [str(self.python), *map(str, arguments)]
        if self.alone:
            changes = {"PIP_NO_INDEX": "0", **changes}
        result = subprocess.run(
            command, cwd=cwd or self.folder, env=variables(**changes), capture_output=True, text=True, check=False
        )
        if check and result.returncode != 0:
            raise AssertionError(f"exit status {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    def pip(self, command: str, *arguments: object, check: bool = True, **changes: str) -> str:
        """Run pip without build isolation and without dependencies. Returns the output."""
        options = ("--no-build-isolation", "--no-deps", "--no-cache-dir")
        result = self.run("-m", "pip", command, *options, *arguments, check=check, **changes)
        return result.stdout + result.stderr

    def fails(self, *arguments: object, **changes: str) -> str:
        """Run pip wheel, which must fail. Returns the output."""
        result = self.run(
            *("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir", *arguments),
            check=False,
            **changes,
        )
        assert result.returncode != 0, result.stdout
        return result.stdout + result.stderr

    def facts(self, **changes: str) -> dict[str, object]:
        """Run the check of the operators and return its results."""
        return json.loads(self.run("-c", CHECK, **changes).stdout.splitlines()[-1])

    def command(self, *arguments: str, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run the installed ``pix2pixhd`` command."""
        return self.run(self.folder / "bin" / "pix2pixhd", *arguments, check=check, **changes)


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A built wheel, the names in it and the build log."""

    path: pathlib.Path
    names: list[str]
    log: str


CHECK = (ROOT / "build_tools" / "matrix" / "check.py").read_text()
