"""Copies of the checkout, environments without the package, and one build of each kind per session.

Nothing here changes the working tree or uses the network. The environments link to the packages of the environment that
runs the tests, and every build runs in a temporary copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch

from build_tools import cuda_toolkit
from build_tools.checkout import copy_checkout
from tests.install.tools import UNOPTIMIZED, Environment, Wheel, archs_here, compiler_cache, find_nvcc


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("a folder with spaces ")


@pytest.fixture
def environment(tmp_path):
    """A fresh environment with all packages but this one."""
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="session")
def builder(folder):
    """The environment of the shared builds. Nothing is installed into it."""
    return Environment(folder / "builder")


@pytest.fixture(scope="session")
def nvcc_wrapper(folder):
    """A folder for the PATH whose nvcc is a wrapper script, as on some distributions and clusters."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    if torch.version.cuda is None:
        pytest.skip(f"torch {torch.__version__} is a build without CUDA")
    bin_folder = folder / "wrapper"
    bin_folder.mkdir()
    script = bin_folder / "nvcc"
    script.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    script.chmod(0o755)
    return bin_folder


@pytest.fixture(scope="session")
def broken_nvcc(folder):
    """A PATH whose nvcc fails. (Without one, nvcc in the default location would be found.)"""
    script = folder / "broken" / "nvcc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'nvcc: not today' >&2\nexit 1\n")
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def cpu_checkout(folder):
    """A copy of the checkout. The installs from it share its build folder, as for a user."""
    return copy_checkout(folder / "cpu_checkout")


@pytest.fixture(scope="session")
def cxx(folder):
    """A compiler that the builds of ``cpu_checkout`` share, with a cache of its objects."""
    return compiler_cache(folder / "cxx")


@pytest.fixture(scope="session")
def cpu_install(folder, cpu_checkout, cxx):
    """``pip install .`` without CUDA kernels."""
    environment = Environment(folder / "cpu_environment")
    environment.log = environment.pip("install", "-v", cpu_checkout, PIX2PIXHD_CUDA="0", CXX=cxx, **UNOPTIMIZED)
    return environment


@pytest.fixture(scope="session")
def sdist(folder, builder):
    """The source distribution, built by the hook of the build backend."""
    source = copy_checkout(folder / "sdist_checkout")
    decoy = source / "pix2pixhd" / "_ops.so"
    decoy.write_text("as left in the source tree by an editable install")
    hook = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    out = builder.run("-c", hook, folder, cwd=source).stdout
    return folder / out.splitlines()[-1]


@pytest.fixture(scope="session")
def unpacked(folder, sdist):
    with tarfile.open(sdist) as archive:
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / "unpacked", **options)
    return next((folder / "unpacked").iterdir())


@pytest.fixture(scope="session")
def wheel(folder, builder, unpacked, request):
    """``pip wheel`` of the unpacked source distribution, with CUDA kernels if they can be built."""
    variables = dict(UNOPTIMIZED)
    if find_nvcc() is not None and torch.version.cuda is not None:
        bin_folder = request.getfixturevalue("nvcc_wrapper")
        variables |= {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PIX2PIXHD_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": archs_here(),
        }
    out = folder / "wheels"
    log = builder.pip("wheel", "-v", "--wheel-dir", out, unpacked, **variables)
    (path,) = out.iterdir()
    return Wheel(path, zipfile.ZipFile(path).namelist(), log)


@pytest.fixture(scope="session")
def wheel_install(folder, wheel):
    environment = Environment(folder / "wheel_environment")
    environment.pip("install", wheel.path)
    return environment


@pytest.fixture
def package_copy(cpu_install, tmp_path):
    """A copy of the installed package that tests may damage."""
    target = tmp_path / "copy"
    shutil.copytree(cpu_install.package, target / "pix2pixhd", ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture
def run_in_copy(builder, package_copy):
    def run(*arguments, **options):
        return builder.run(*arguments, cwd=package_copy, **options)

    return run


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine without a toolkit: no variables set, an empty PATH, no nvcc in other locations."""
    for name in ("PIX2PIXHD_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(cuda_toolkit, "USUAL_NVCC", tmp_path / "nowhere" / "nvcc")
    others = [folder for folder in sys.path if "-packages" not in folder]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *others])


def pytest_collection_modifyitems(items):
    """Mark all tests of this folder, and skip them on a platform without the extension."""
    for item in items:
        if "tests/install/" in item.path.as_posix():
            item.add_marker(pytest.mark.install)
            if sys.platform == "win32":
                item.add_marker(pytest.mark.skip(reason="no extension is built on Windows"))


def pytest_report_header():
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc: none"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return "nvcc: " + next((line for line in text.splitlines() if "release" in line), "--version printed no release")
