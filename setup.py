"""Build the extension: three shared libraries in one parallel ninja graph.

* ``pix2pixhd/_C``         pybind11 module with build information. It does not need torch, so that it can always be
  imported for diagnosis.
* ``pix2pixhd/_ops``       CPU kernels and the operators' schemas, for the LibTorch stable ABI of torch >= 2.10.
* ``pix2pixhd/_ops_cuda``  CUDA kernels, if torch is a CUDA build and ``build_tools`` finds nvcc.

Environment variables:
    PIX2PIXHD_CUDA        auto (default), 0 (never) or 1 (required: fail if CUDA kernels cannot be built)
    TORCH_CUDA_ARCH_LIST  as in PyTorch, e.g. "8.0;9.0+PTX"; default: the visible GPUs, or else 8.0, 9.0 and PTX. An
                          architecture that nvcc does not support is replaced by PTX of the newest older one;
                          architectures older than 7.0 are skipped.
    CUDA_HOME, CXX, CXXFLAGS, MAX_JOBS  as usual
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # for setup.py without the backend of pyproject.toml

from build_tools.cuda_toolkit import NVCC_FLAGS, Cuda, find_cuda  # noqa: E402
from build_tools.kernel_flags import CXX_FLAGS, KERNEL_FLAGS, instruction_sets  # noqa: E402
from build_tools.messages import BuildError, say  # noqa: E402

TARGET_VERSION = "0x020a000000000000"  # torch 2.10, the oldest supported version


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            f"torch >= 2.10 is needed to build, and it cannot be imported ({error}). Install it first, or let pip "
            "install it into an isolated build environment: omit --no-build-isolation."
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise BuildError(f"torch >= 2.10 is needed to build, found {torch.__version__}. Run: pip install -U torch")
    return torch


class Graph:
    """Writes and runs a ninja file. Source paths are relative, so that messages contain no path of this machine."""

    def __init__(self, folder: pathlib.Path, cxx: list[str], cuda: Cuda | None) -> None:
        try:
            from ninja import ninja_syntax
        except ImportError as error:
            raise BuildError("the package `ninja` is needed to build. Run: pip install ninja") from error
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = (folder / "build.ninja").open("w")
        self.ninja = ninja_syntax.Writer(self.file)
        self.ninja.variable("builddir", str(folder))  # the folder of ninja's log
        compiler = " ".join(shlex.quote(part) for part in cxx)
        extra = os.environ.get("CXXFLAGS", "")
        self.ninja.rule(
            "cxx", f"{compiler} -MMD -MF $out.d $flags {extra} -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        self.ninja.rule("link", f"{compiler} -shared $in -o $out $libs")
        if cuda is not None:
            nvcc = shlex.quote(cuda.nvcc)
            host = f"-ccbin {shlex.quote(host_compiler(cxx))}"
            self.ninja.rule(
                "nvcc", f"{nvcc} {host} -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc"
            )
            # nvcc links its static runtime, so the library runs without the toolkit.
            self.ninja.rule("nvlink", f"{nvcc} {host} -shared $in -o $out $libs")

    def compile(self, source: str, flags: list[str], rule: str = "cxx") -> str:
        target = str(self.folder / (source.replace("/", "_") + ".o"))
        self.ninja.build(target, rule, source, variables={"flags": " ".join(shlex.quote(flag) for flag in flags)})
        return target

    def link(self, target: str, objects: list[str], libs: list[str], rule: str = "link") -> None:
        self.ninja.build(target, rule, objects, variables={"libs": " ".join(shlex.quote(lib) for lib in libs)})

    def run(self) -> None:
        self.file.close()
        import ninja

        command = [str(pathlib.Path(ninja.BIN_DIR, "ninja")), "-f", str(self.folder / "build.ninja")]
        jobs = os.environ.get("MAX_JOBS")
        if jobs:
            command += ["-j", jobs]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            raise BuildError("the extension did not compile; see the compiler's message above.")


def find_cxx() -> list[str]:
    cxx = shlex.split(os.environ.get("CXX", "")) or next(
        ([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), []
    )
    if not cxx or shutil.which(cxx[0]) is None:
        raise BuildError(
            f"no C++ compiler was found ({cxx[0] if cxx else 'g++, c++, clang++'}). Install one (Debian and Ubuntu: "
            "apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install) or set CXX."
        )
    return cxx


def host_compiler(cxx: list[str]) -> str:
    """The compiler without a launcher such as ccache, because nvcc accepts a single name."""
    launchers = ("ccache", "sccache", "distcc", "icecc")
    return cxx[1] if len(cxx) > 1 and pathlib.Path(cxx[0]).name in launchers else cxx[0]


def compiler_version(cxx: list[str]) -> str:
    command = [*cxx, "--version"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{shlex.join(command)} failed ({error}). Repair this compiler or set CXX.") from error
    if not text.strip():
        raise BuildError(f"{shlex.join(command)} printed nothing. Repair this compiler or set CXX.")
    return text.splitlines()[0]


class BuildModules(build_py):
    def run(self) -> None:
        # setuptools installs everything in this folder, also modules that existed at an earlier build. The libraries
        # are linked again from their objects.
        shutil.rmtree(pathlib.Path(self.build_lib, "pix2pixhd"), ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # The operators do not depend on Python, so their names have no ABI tag. setuptools calls this with and without
        # the package name.
        if fullname.split(".")[-1] in ("_ops", "_ops_cuda"):
            return f"{fullname.replace('.', os.sep)}.so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        torch = import_torch()
        self.cuda = find_cuda(torch)
        if self.cuda is None:
            self.extensions = [e for e in self.extensions if e.name != "pix2pixhd._ops_cuda"]
            stale = pathlib.Path(self.get_ext_fullpath("pix2pixhd._ops_cuda"))
            if stale.exists():  # from an earlier editable install
                stale.unlink()
        self.torch = torch
        super().run()

    def build_extensions(self) -> None:
        cxx = find_cxx()
        graph = Graph(pathlib.Path(self.build_temp).resolve(), cxx, self.cuda)
        target = {e.name.split(".")[-1]: self._target(e.name) for e in self.extensions}
        shared = [f"-DTORCH_TARGET_VERSION={TARGET_VERSION}"]
        for path in self._torch_includes():  # keep the folder out of the messages in torch's headers
            shared += [f"-I{path}", f"-fmacro-prefix-map={path}/="]
        torch_lib = str(pathlib.Path(self.torch.__file__).parent / "lib")

        sets = instruction_sets(platform.machine())
        kernels = [
            graph.compile(f"csrc/cpu/kernels_{name}.cpp", [*CXX_FLAGS, *KERNEL_FLAGS, *flags])
            for name, flags in sets.items()
        ]
        dispatch = graph.compile("csrc/cpu/dispatch.cpp", CXX_FLAGS)
        tensor = graph.compile("csrc/torch/stable_tensor.cpp", [*CXX_FLAGS, *shared])
        ops = [
            graph.compile(str(path.relative_to(ROOT)), [*CXX_FLAGS, *shared])
            for path in sorted(ROOT.glob("csrc/torch/*_cpu.cpp"))
        ]
        torch_libs = [f"-L{torch_lib}", "-ltorch_cpu", "-ltorch"]
        graph.link(target["_ops"], [*ops, tensor, dispatch, *kernels], torch_libs)

        if self.cuda is not None:
            flags = [*NVCC_FLAGS, *self.cuda.compile_flags]
            cuda_kernels = [
                graph.compile(str(path.relative_to(ROOT)), flags, "nvcc")
                for path in sorted(ROOT.glob("csrc/cuda/*.cu"))
            ]
            plan = graph.compile("csrc/cuda/launch_plan.cpp", CXX_FLAGS)
            cuda_ops = [
                graph.compile(str(path.relative_to(ROOT)), [*CXX_FLAGS, *shared, "-DUSE_CUDA"])
                for path in sorted(ROOT.glob("csrc/torch/*_cuda.cpp"))
            ]
            libs = [f"-L{torch_lib}", "-ltorch_cuda", "-ltorch_cpu", "-ltorch", *self.cuda.link_flags]
            graph.link(target["_ops_cuda"], [*cuda_ops, tensor, plan, *cuda_kernels], libs, "nvlink")

        build_information = {
            "PIX2PIXHD_VERSION": self.distribution.get_version(),
            "PIX2PIXHD_TORCH": self.torch.__version__,
            "PIX2PIXHD_COMPILER": compiler_version(cxx),
            "PIX2PIXHD_INSTRUCTION_SETS": ",".join(sets),
            "PIX2PIXHD_CUDA": self.cuda.version if self.cuda else "",
            "PIX2PIXHD_CUDA_ARCHS": ";".join(self.cuda.archs) if self.cuda else "",
        }
        defines = [f'-D{name}="{value}"' for name, value in build_information.items()]
        info = graph.compile("csrc/build_facts.cpp", [*CXX_FLAGS, *self._python_includes(), *defines])
        graph.link(target["_C"], [info], ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
        graph.run()

    def _target(self, name: str) -> str:
        path = pathlib.Path(self.get_ext_fullpath(name)).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def _torch_includes(self) -> list[str]:
        return [str(pathlib.Path(self.torch.__file__).parent / "include")]

    def _python_includes(self) -> list[str]:
        try:
            import pybind11
        except ImportError as error:
            raise BuildError("the package `pybind11` is needed to build. Run: pip install pybind11") from error
        return [f"-I{pybind11.get_include()}", *(f"-I{path}" for path in self.include_dirs)]


if sys.platform == "win32":
    say("Windows: no extension is built, the losses run in plain PyTorch")

setup(
    ext_modules=[]
    if sys.platform == "win32"
    else [Extension(f"pix2pixhd.{name}", sources=[]) for name in ("_C", "_ops", "_ops_cuda")],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildModules},
)
