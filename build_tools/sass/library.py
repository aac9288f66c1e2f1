"""The kernels of the built library, and of further architectures, for which the sources are compiled."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig
import tempfile

from build_tools.cuda_toolkit import NVCC_FLAGS, find_machine_nvcc
from build_tools.messages import BuildError
from build_tools.sass.disassembly import Kernel, read_kernels
from build_tools.sass.kernels import ROOT

LIBRARY = ROOT / "pix2pixhd" / "_ops_cuda.so"
TOOLS = ("cuobjdump", "nvdisasm")
_VERSION = re.compile(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)")


def _tool_folders() -> list[pathlib.Path]:
    """The folder of nvcc, those of the package index's toolkits, and that of Triton, which comes with torch."""
    nvcc = find_machine_nvcc()
    folders = [pathlib.Path(nvcc).resolve().parent] if nvcc else []
    folders += sorted(pathlib.Path("/usr/local").glob("cuda*/bin"), reverse=True)
    packages = pathlib.Path(sysconfig.get_paths()["purelib"])
    folders += sorted(packages.glob("nvidia/cu*/bin"), reverse=True)
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        folders.append(pathlib.Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return folders


def find_tools() -> list[str]:
    """Paths of cuobjdump and nvdisasm, from one toolkit.

    Raises:
        BuildError: If no toolkit has both.
    """
    on_path = [shutil.which(name) for name in TOOLS]
    if all(on_path):
        return [path for path in on_path if path]
    for folder in _tool_folders():
        paths = [folder / name for name in TOOLS]
        if all(os.access(path, os.X_OK) for path in paths):
            return [str(path) for path in paths]
    raise BuildError(
        "cuobjdump and nvdisasm were not found on the PATH, beside nvcc, in nvidia-cuda-cuobjdump and "
        "nvidia-cuda-nvdisasm, or in triton. Install the CUDA toolkit, or: pip install nvidia-cuda-cuobjdump "
        "nvidia-cuda-nvdisasm"
    )


def _read(cubins: list[pathlib.Path]) -> tuple[dict[str, list[Kernel]], str]:
    """Kernels by architecture, and the version of the compiler."""
    cuobjdump, nvdisasm = find_tools()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # The largest first, so that none is left alone at the end.
        cubins = sorted(cubins, key=lambda cubin: -cubin.stat().st_size)
        found = list(pool.map(lambda cubin: read_kernels(cubin, cuobjdump, nvdisasm), cubins))
    kernels: dict[str, list[Kernel]] = {}
    versions = set()
    for cubin, part in zip(cubins, found, strict=True):
        arch = re.search(r"sm_\d+\w?", cubin.name)
        if arch and part:
            kernels.setdefault(arch[0], []).extend(part)
            versions |= {match.decode() for match in _VERSION.findall(cubin.read_bytes())}
    return {arch: sorted(kernels[arch], key=lambda kernel: kernel.name) for arch in sorted(kernels)}, "+".join(
        sorted(versions)
    )


def read_library(library: pathlib.Path = LIBRARY, arch: str = "all") -> tuple[dict[str, list[Kernel]], str]:
    """The kernels of a built library by architecture, and the version of the nvcc that compiled it.

    Args:
        library: The shared library.
        arch: One architecture, for example ``sm_90``, or ``all``.

    Raises:
        BuildError: If the library does not exist, contains no kernels, or cannot be read.
    """
    if not library.exists():
        raise BuildError(f"there is no {library.name} in {library.parent}: build the CUDA kernels first, make build")
    cuobjdump = find_tools()[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [cuobjdump, "-xelf", arch, str(library.resolve())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        kernels, version = _read(list(pathlib.Path(folder).glob("*.cubin")))
    if not kernels:
        raise BuildError(
            f"{library.name} contains no GPU code for {arch} that cuobjdump can read. {done.stderr.strip()}"
        )
    return kernels, version


def compile_kernels(archs: list[str]) -> tuple[dict[str, list[Kernel]], str]:
    """The kernels compiled for other architectures, for example ``sm_89``, with the flags of the build.

    Raises:
        BuildError: If there is no nvcc, or if it fails.
    """
    nvcc = find_machine_nvcc()
    if nvcc is None:
        raise BuildError(f"no nvcc was found to compile for {', '.join(archs)}. Set CUDA_HOME or omit --archs.")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder:
        cubins = []
        for arch in archs:
            for source in sources:
                cubin = pathlib.Path(folder, f"{source.stem}.{arch}.cubin")
                command = [nvcc, *NVCC_FLAGS, f"-arch={arch}", "-cubin", "-o", str(cubin), str(source)]
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if done.returncode != 0:
                    raise BuildError(f"nvcc does not compile {source.name} for {arch}:\n{done.stderr.strip()}")
                cubins.append(cubin)
        return _read(cubins)
