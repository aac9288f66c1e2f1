"""The contents of the source distribution and of the wheel built from it, and the dependencies of its libraries."""

import email
import fnmatch
import pathlib
import re
import shutil
import subprocess
import tarfile
import zipfile

import pytest
import torch

import pix2pixhd
from build_tools.dist_contents import WHEEL
from tests.install.tools import ROOT, archs_here

pytestmark = pytest.mark.install


def data_files():
    found = [*(ROOT / "pix2pixhd").rglob("*.yaml"), *(ROOT / "pix2pixhd").rglob("*.html")]
    assert {path.suffix for path in found} == {".yaml", ".html"}
    return {str(path.relative_to(ROOT)) for path in found}


def test_sdist_has_all_sources_and_no_built_files(sdist):
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cu", ".cpp")]
    harness = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".h", ".cpp")]
    assert any(path.suffix == ".cu" for path in sources)
    wanted = {str(path.relative_to(ROOT)) for path in [*sources, *harness]}
    wanted |= {"setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE", "pix2pixhd/py.typed"}
    wanted |= {"docs/migrating.md", *data_files()}
    assert wanted - set(names) == set()
    assert [name for name in names if re.search(r"\.(so|o|pyc)$|^build/|ninja", name)] == []


def test_wheel_has_each_library_once_and_all_data_files(wheel):
    libraries = sorted(name for name in wheel.names if name.endswith(".so"))
    tagged = [name for name in libraries if re.fullmatch(r"pix2pixhd/_C\.\S+\.so", name)]
    assert len(tagged) == 1
    cuda = ["pix2pixhd/_ops_cuda.so"] if "building CUDA kernels" in wheel.log else []
    assert libraries == [*tagged, "pix2pixhd/_ops.so", *cuda]
    assert len(wheel.names) == len(set(wheel.names))
    assert data_files() | {"pix2pixhd/py.typed"} <= set(wheel.names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pix2pixhd").rglob("*.py")}
    assert {name for name in wheel.names if name.endswith(".py")} == modules
    unknown = [name for name in wheel.names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in WHEEL)]
    assert unknown == []  # what `make dist` allows
    tops = {name.partition("/")[0] for name in wheel.names}
    assert tops == {"pix2pixhd", f"pix2pixhd_fused-{pix2pixhd.__version__}.dist-info"}


def test_wheel_metadata_lists_the_requirements(wheel):
    with zipfile.ZipFile(wheel.path) as archive:
        (name,) = [name for name in wheel.names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        libraries = {name: archive.read(name) for name in wheel.names if name.endswith(".so")}
    assert metadata["Name"] == "pix2pixhd-fused"
    assert metadata["Version"] == pix2pixhd.__version__
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(re.split(r"[><=]", text)[0] for text in needed) == ["numpy", "torch", "torchvision"]
    assert "torch>=2.10" in needed
    assert not wheel.path.name.endswith("any.whl")
    # Messages contain no folder of the build machine. (nvcc stores its command line in the libraries that it links.)
    for name, content in libraries.items():
        assert b"torch/include/" not in content, name
        assert "_ops_cuda" in name or str(wheel.path.parents[1]).encode() not in content, name


def test_wheel_installs_and_computes(wheel_install):
    facts = wheel_install.facts(CUDA_VISIBLE_DEVICES="")
    assert pathlib.Path(facts["file"]).parent == wheel_install.package
    assert facts["torch_version"] == torch.__version__


def test_cuda_kernels_built_by_a_wrapper_script_load(nvcc_wrapper, wheel, wheel_install):
    """The operators load also on a machine without a GPU."""
    assert "building CUDA kernels with nvcc" in wheel.log
    facts = wheel_install.facts()
    text = subprocess.run([nvcc_wrapper / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert f"release {facts['cuda_version']}," in text
    assert facts["cuda_archs"] == archs_here()
    assert (facts["cuda"], facts["cuda_reason"]) == (True, "")
    doctor = wheel_install.command("doctor").stdout
    assert re.search(rf"CUDA kernels +nvcc {facts['cuda_version']}, for {archs_here()}", doctor)
    assert re.search(r"CUDA operators +yes", doctor)
    assert doctor.endswith("result: all well\n")


def needed(library):
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on this machine")
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"\((RPATH|RUNPATH)\)", text), "the library searches a folder of the build machine"
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))


def test_cpu_operators_depend_on_torch_but_not_on_python_or_cuda(wheel_install):
    libraries = needed(wheel_install.package / "_ops.so")
    assert any(name.startswith("libtorch_cpu.") for name in libraries)
    assert [name for name in libraries if re.search(r"cuda|python|c10", name)] == []


def test_cuda_operators_do_not_depend_on_the_toolkit(nvcc_wrapper, wheel_install):
    libraries = needed(wheel_install.package / "_ops_cuda.so")
    assert any(name.startswith("libtorch_cuda.") for name in libraries)
    toolkit = [name for name in libraries if re.search(r"cudart|nvrtc|libcuda\.|cublas|python", name)]
    assert toolkit == []


def test_build_information_can_be_imported_without_torch(wheel_install):
    (library,) = wheel_install.package.glob("_C.*.so")
    assert [name for name in needed(library) if re.search("torch|c10|cuda", name)] == []
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {str(library)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\n"
        "print(module.version)"
    )
    assert wheel_install.run("-c", code).stdout.strip() == pix2pixhd.__version__
