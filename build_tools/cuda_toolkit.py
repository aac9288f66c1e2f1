"""The CUDA toolkit for the build: the machine's, or the one from the package index for torch's CUDA."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from build_tools import archs
from build_tools.messages import BuildError, say

USUAL_NVCC = pathlib.Path("/usr/local/cuda/bin/nvcc")

# The packages of CUDA 13 and newer share one folder, nvidia/cu13, with the layout of a toolkit. Those of CUDA 12 have
# ptxas but no nvcc.
FIRST_ON_THE_INDEX = 13
# nvcc finds OWN_PARTS relative to itself and OTHER_PARTS by flags. Parts are missing if only some of the packages are
# installed, for example as dependencies of another package.
OWN_PARTS = ("bin/nvcc", "nvvm/bin/cicc", "nvvm/libdevice/libdevice.10.bc")
OTHER_PARTS = ("include/crt/host_config.h", "include/cuda_runtime.h", "include/nv/target", "lib/libcudart_static.a")

# -fmad=false: the same rounding as on the CPU. It costs no time, because the kernels are memory-bound.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


@dataclasses.dataclass
class Cuda:
    """A CUDA toolkit: its compiler, its version, the architectures to build for, and further folders with its parts."""

    nvcc: str
    version: str
    archs: list[str]
    homes: list[pathlib.Path] = dataclasses.field(default_factory=list)

    @property
    def gencode(self) -> list[str]:
        flags = []
        for arch in self.archs:
            number = arch.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if arch.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags

    @property
    def compile_flags(self) -> list[str]:
        return [*self.gencode, *(f"-I{home / 'include'}" for home in self.homes)]

    @property
    def link_flags(self) -> list[str]:
        """Library folders: the index's nvcc 13.0 expects its static runtime in lib64, which the packages lack."""
        return [f"-L{home / 'lib'}" for home in self.homes]


def read_cuda_option() -> str:
    """The value of PIX2PIXHD_CUDA: auto, 0 or 1."""
    option = os.environ.get("PIX2PIXHD_CUDA") or "auto"
    if option not in ("auto", "0", "1"):
        raise BuildError(f"PIX2PIXHD_CUDA must be auto, 0 or 1, got {option!r}.")
    return option


def _major(torch) -> int:
    return int(torch.version.cuda.split(".")[0])


def find_machine_nvcc() -> str | None:
    """nvcc of CUDA_HOME, or else of the PATH. May be a wrapper script, so its location is not used."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home:
            nvcc = pathlib.Path(home, "bin", "nvcc")
            if nvcc.exists():
                return str(nvcc)
            say(f"{variable}={home} has no bin/nvcc; looking on the PATH")
    return shutil.which("nvcc") or (str(USUAL_NVCC) if USUAL_NVCC.exists() else None)


def index_homes(torch) -> list[pathlib.Path]:
    """The folders with the package index's toolkit for torch's CUDA, that next to torch first.

    There are two in pip's build environment: pip installs the backend's requirements into another folder than torch,
    except those that are installed with torch. The runtime and its headers must then be those next to torch, not newer
    ones that were installed with nvcc.
    """
    folders = [str(pathlib.Path(torch.__file__).parent.parent), *sys.path]
    homes = [pathlib.Path(folder, "nvidia", f"cu{_major(torch)}") for folder in folders]
    return [home for home in dict.fromkeys(homes) if home.is_dir()]


def find_index_nvcc(torch) -> str | None:
    """nvcc from the package index, for torch's CUDA, if all parts for compiling and linking are installed."""
    homes = index_homes(torch)
    for home in homes:
        if not (home / OWN_PARTS[0]).exists():
            continue
        missing = [part for part in OWN_PARTS if not (home / part).exists()]
        missing += [part for part in OTHER_PARTS if not any((other / part).exists() for other in homes)]
        if not missing:
            return str(home / OWN_PARTS[0])
        say(f"{home} has nvcc but not {', '.join(missing)}; ignored")
    return None


def index_requirements(torch) -> list[str]:
    """The packages with nvcc, its headers and its static runtime. Empty if the index has no nvcc.

    They have the same minor version as torch's CUDA. GPU code runs on every driver of the same major version, but PTX
    only on a driver at least as new as the nvcc that generated it, and torch's version is certain to be supported. The
    packages do not pin each other. cuda-toolkit[nvcc] would, but it is installed with torch already, and pip then does
    not install its extras into a build environment. CCCL has other minor versions.
    """
    major = _major(torch)
    if major < FIRST_ON_THE_INDEX:
        return []
    release = ".".join(torch.version.cuda.split(".")[:2])
    pinned = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime")
    return [*(f"{name}=={release}.*" for name in pinned), f"nvidia-cuda-cccl=={major}.*"]


def missing_requirements(torch) -> list[str]:
    """The packages to install from the index before the build. Empty if nothing is missing or needed.

    The download exceeds a hundred megabytes. It is made if PIX2PIXHD_CUDA=1, or if torch can use a GPU that the kernels
    support. (If the driver is too old for torch, kernels built for its CUDA would not start either.)
    """
    option = read_cuda_option()
    if option == "0" or torch.version.cuda is None or not (option == "1" or torch.cuda.is_available()):
        return []
    if option != "1" and not archs.supported(archs.wanted(torch)):
        return []
    requirements = index_requirements(torch)
    if not requirements or find_machine_nvcc() or find_index_nvcc(torch):
        return []
    say(f"no nvcc on this machine: installing it from the package index, {', '.join(requirements)}")
    return requirements


def _without_nvcc_remedy(torch) -> str:
    toolkit = f"install the CUDA {torch.version.cuda} toolkit or set CUDA_HOME"
    requirements = index_requirements(torch)
    if not requirements:
        return f"For a GPU, {toolkit}; the package index has no nvcc for CUDA {_major(torch)}."
    return (
        f"For a GPU, {toolkit}; or use nvcc from the package index: run PIX2PIXHD_CUDA=1 pip install . without "
        f"--no-build-isolation, or with it after: pip install {' '.join(map(shlex.quote, requirements))}"
    )


def find_cuda(torch) -> Cuda | None:
    """The toolkit for the build, or None after a message with the reason.

    Raises:
        BuildError: If PIX2PIXHD_CUDA=1 and CUDA kernels cannot be built.
    """
    option = read_cuda_option()
    if option == "0":
        say("building without CUDA kernels: PIX2PIXHD_CUDA=0")
        return None

    def without(reason: str, remedy: str) -> None:
        if option == "1":
            raise BuildError(f"PIX2PIXHD_CUDA=1, but {reason}. {remedy}")
        say(f"building without CUDA kernels: {reason}. {remedy}")

    if torch.version.cuda is None:
        return without(
            f"torch {torch.__version__} is a build without CUDA", "For a GPU, install a CUDA build of torch."
        )
    nvcc, homes = find_machine_nvcc(), []
    if nvcc is None:
        nvcc, homes = find_index_nvcc(torch), index_homes(torch)
    if nvcc is None:
        return without("no nvcc was found", _without_nvcc_remedy(torch))
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return without(f"{nvcc} --version fails ({error})", "Set CUDA_HOME to a working toolkit.")
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        return without(f"the output of {nvcc} --version has no release", "Set CUDA_HOME to a working toolkit.")
    version = f"{match[1]}.{match[2]}"
    if int(match[1]) > _major(torch):
        return without(
            f"nvcc has CUDA {version} and torch has CUDA {torch.version.cuda}; a newer runtime than "
            "torch's may not run with this driver",
            f"Point CUDA_HOME at a CUDA {torch.version.cuda} toolkit.",
        )
    wanted = archs.wanted(torch)
    cuda = Cuda(nvcc, version, archs.fit(wanted, archs.known(nvcc), f"nvcc {version}"), homes)
    if not archs.supported(wanted):
        return without(
            f"the CUDA kernels need compute capability 7.0 or newer, and the build is for {';'.join(wanted)}",
            "On such a GPU the losses run in plain PyTorch. To build for another machine, list its GPUs in "
            f"TORCH_CUDA_ARCH_LIST, e.g. '{archs.DEFAULT}'.",
        )
    if not cuda.archs:
        return without(
            f"nvcc {version} supports no GPU of {';'.join(wanted)}",
            "Use a torch and a toolkit with an older CUDA, or list other GPUs in TORCH_CUDA_ARCH_LIST.",
        )
    say(
        f"building CUDA kernels with nvcc {cuda.version} for {';'.join(cuda.archs)} "
        f"(torch's CUDA: {torch.version.cuda})"
    )
    return cuda
