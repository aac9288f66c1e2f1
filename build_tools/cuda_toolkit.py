"""The CUDA toolkit to build with: the machine's, or the one that the package index has for torch's CUDA."""

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

# The packages of CUDA 13 and newer share one folder, nvidia/cu13, laid out as a toolkit. Those for CUDA 12 have ptxas
# and no nvcc.
FIRST_ON_THE_INDEX = 13
# nvcc finds its own parts by its own place, and the others by flags. One or more of them are missing where only some of
# the packages came along with another one.
OWN_PARTS = ("bin/nvcc", "nvvm/bin/cicc", "nvvm/libdevice/libdevice.10.bc")
OTHER_PARTS = ("include/crt/host_config.h", "include/cuda_runtime.h", "include/nv/target", "lib/libcudart_static.a")


@dataclasses.dataclass
class Cuda:
    """A CUDA toolkit: its compiler, its version, the architectures to build for, and where else its parts lie."""

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
        """The index's nvcc 13.0 itself looks for its static runtime in lib64, which its packages do not have."""
        return [f"-L{home / 'lib'}" for home in self.homes]


def read_wish() -> str:
    wish = os.environ.get("PIX2PIXHD_CUDA") or "auto"
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"PIX2PIXHD_CUDA must be auto, 0 or 1, got {wish!r}.")
    return wish


def _major(torch) -> int:
    return int(torch.version.cuda.split(".")[0])


def find_machine_nvcc() -> str | None:
    """nvcc of CUDA_HOME, else of the PATH (where it may be a wrapper script: it is only ever called, never located)."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home:
            nvcc = pathlib.Path(home, "bin", "nvcc")
            if nvcc.exists():
                return str(nvcc)
            say(f"{variable}={home} has no bin/nvcc; looking on the PATH")
    return shutil.which("nvcc") or (str(USUAL_NVCC) if USUAL_NVCC.exists() else None)


def index_homes(torch) -> list[pathlib.Path]:
    """The folders that the package index's toolkit for torch's CUDA lies in, torch's own first.

    They are two where pip builds: it puts what the backend asks for into another folder than torch, and leaves out what
    came with torch. The runtime and its headers must be torch's then, and not a newer one that nvcc brought along.
    """
    folders = [str(pathlib.Path(torch.__file__).parent.parent), *sys.path]
    homes = [pathlib.Path(folder, "nvidia", f"cu{_major(torch)}") for folder in folders]
    return [home for home in dict.fromkeys(homes) if home.is_dir()]


def find_index_nvcc(torch) -> str | None:
    """nvcc that came from the package index, for torch's CUDA, with all that it needs to compile and link."""
    homes = index_homes(torch)
    for home in homes:
        if not (home / OWN_PARTS[0]).exists():
            continue
        missing = [part for part in OWN_PARTS if not (home / part).exists()]
        missing += [part for part in OTHER_PARTS if not any((other / part).exists() for other in homes)]
        if not missing:
            return str(home / OWN_PARTS[0])
        say(f"{home} has nvcc but not {', '.join(missing)}; passed over")
    return None


def index_requirements(torch) -> list[str]:
    """The packages that bring nvcc, its headers and its static runtime; empty where the index has no nvcc.

    Of torch's own minor version: code for a GPU runs on every driver of the same major version, but PTX only on one
    that is at least as new as the nvcc that wrote it, and torch's is the one that is sure to be there. The packages do
    not pin each other. cuda-toolkit[nvcc] would, but it is there with torch, and pip then takes no extras of it into a
    build environment. CCCL counts its minor versions otherwise.
    """
    major = _major(torch)
    if major < FIRST_ON_THE_INDEX:
        return []
    release = ".".join(torch.version.cuda.split(".")[:2])
    pinned = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime")
    return [*(f"{name}=={release}.*" for name in pinned), f"nvidia-cuda-cccl=={major}.*"]


def missing_requirements(torch) -> list[str]:
    """What is to be fetched from the package index before the build; empty where nothing is missing or wanted.

    Over a hundred megabytes are worth it where PIX2PIXHD_CUDA=1 asks for them, or where torch sees a GPU that it can
    use: for a torch whose driver is too old, the kernels of its CUDA would not start either. A GPU that the kernels do
    not support is no reason.
    """
    wish = read_wish()
    if wish == "0" or torch.version.cuda is None or not (wish == "1" or torch.cuda.is_available()):
        return []
    if wish != "1" and not archs.supported(archs.wanted(torch)):
        return []
    requirements = index_requirements(torch)
    if not requirements or find_machine_nvcc() or find_index_nvcc(torch):
        return []
    say(f"no nvcc on this machine: taking it from the package index, {', '.join(requirements)}")
    return requirements


def _without_nvcc_remedy(torch) -> str:
    toolkit = f"install the CUDA {torch.version.cuda} toolkit or set CUDA_HOME"
    requirements = index_requirements(torch)
    if not requirements:
        return f"For a GPU, {toolkit}; the package index has no nvcc for CUDA {_major(torch)}."
    return (
        f"For a GPU, {toolkit}; or take nvcc from the package index, by PIX2PIXHD_CUDA=1 pip install . without "
        f"--no-build-isolation, or with it after: pip install {' '.join(map(shlex.quote, requirements))}"
    )


def find_cuda(torch) -> Cuda | None:
    """The toolkit to build with, or None with the reason said; raises when PIX2PIXHD_CUDA=1 cannot be met."""
    wish = read_wish()
    if wish == "0":
        say("building without CUDA kernels: PIX2PIXHD_CUDA=0")
        return None

    def without(reason: str, remedy: str) -> None:
        if wish == "1":
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
        return without(f"{nvcc} --version names no release", "Set CUDA_HOME to a working toolkit.")
    version = f"{match[1]}.{match[2]}"
    if int(match[1]) > _major(torch):
        return without(
            f"nvcc is of CUDA {version} and torch of CUDA {torch.version.cuda}; a newer runtime than "
            "torch's may not start on this driver",
            f"Point CUDA_HOME at a CUDA {torch.version.cuda} toolkit.",
        )
    wanted = archs.wanted(torch)
    cuda = Cuda(nvcc, version, archs.fit(wanted, archs.known(nvcc), f"nvcc {version}"), homes)
    if not archs.supported(wanted):
        return without(
            f"the CUDA kernels need compute capability 7.0 or newer, and the build is for {';'.join(wanted)}",
            "On such a GPU the losses run in plain PyTorch. To build for another machine, name its GPUs in "
            f"TORCH_CUDA_ARCH_LIST, e.g. '{archs.DEFAULT}'.",
        )
    if not cuda.archs:
        return without(
            f"nvcc {version} builds for no GPU of {';'.join(wanted)}",
            "Use a torch and a toolkit of an older CUDA, or name other GPUs in TORCH_CUDA_ARCH_LIST.",
        )
    say(
        f"building CUDA kernels with nvcc {cuda.version} for {';'.join(cuda.archs)} "
        f"(torch's CUDA: {torch.version.cuda})"
    )
    return cuda
