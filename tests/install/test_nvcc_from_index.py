"""nvcc from the package index: when the build requires it, which parts setup.py uses, and that it compiles."""

import os
import pathlib
import re
import shlex
import shutil
import sys

import pytest
import torch
from setuptools import build_meta

from build_tools import backend, cuda_toolkit
from pix2pixhd.ops import extension
from tests.install.tools import SLOW, Environment, nvcc, torch_with

pytestmark = pytest.mark.install

# The packages for CUDA 13.2.
PACKAGES = [
    "nvidia-cuda-nvcc==13.2.*",
    "nvidia-nvvm==13.2.*",
    "nvidia-cuda-crt==13.2.*",
    "nvidia-cuda-runtime==13.2.*",
    "nvidia-cuda-cccl==13.*",
]
GPU = (9, 0)


def toolkit(site, *omitted, release="13.2"):
    """Create the files that the packages install into site-packages."""
    home = site / "nvidia" / "cu13"
    for part in (*cuda_toolkit.OWN_PARTS, *cuda_toolkit.OTHER_PARTS):
        if part not in omitted:
            (home / part).parent.mkdir(parents=True, exist_ok=True)
            (home / part).touch()
    if "bin/nvcc" not in omitted:
        nvcc(home / "bin" / "nvcc", release)
    return home


@pytest.mark.parametrize(
    ("cuda", "gpus", "option", "packages"),
    [
        ("13.2", [GPU], "auto", PACKAGES),
        ("13.2", [], "auto", []),  # no GPU, no download
        ("13.2", [], "1", PACKAGES),
        ("13.2", [GPU], "0", []),
        ("13.0", [GPU], "auto", [name.replace("13.2", "13.0") for name in PACKAGES]),
        ("12.8", [GPU], "auto", []),  # the index has no nvcc of CUDA 12
        (None, [], "1", []),
    ],
)
@pytest.mark.usefixtures("bare_machine")
def test_nvcc_is_required_if_the_machine_has_none(monkeypatch, capsys, cuda, gpus, option, packages):
    monkeypatch.setenv("PIX2PIXHD_CUDA", option)
    assert cuda_toolkit.missing_requirements(torch_with(cuda, *gpus)) == packages
    message = capsys.readouterr().err
    assert ("no nvcc on this machine: installing it from the package index, nvidia-cuda-nvcc==13." in message) == bool(
        packages
    )


@pytest.mark.parametrize("where", ["PATH", "CUDA_HOME", "usual", "site-packages"])
@pytest.mark.usefixtures("bare_machine")
def test_nvcc_is_not_required_if_the_machine_has_one(monkeypatch, tmp_path, where):
    if where == "PATH":
        nvcc(tmp_path / "bin" / "nvcc")
    elif where == "CUDA_HOME":
        nvcc(tmp_path / "toolkit" / "bin" / "nvcc")
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    elif where == "usual":
        monkeypatch.setattr(cuda_toolkit, "USUAL_NVCC", nvcc(tmp_path / "usual" / "nvcc"))
    else:
        toolkit(tmp_path / "site")
    assert cuda_toolkit.missing_requirements(torch_with("13.2", GPU)) == []


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_backend_adds_nvcc_to_the_requirements_of_setuptools(monkeypatch, kind):
    hook = f"get_requires_for_build_{kind}"
    monkeypatch.setattr(build_meta, hook, lambda settings: [f"setuptools wants {settings}"])
    monkeypatch.setattr(cuda_toolkit, "missing_requirements", lambda module: [module.__name__])
    assert getattr(backend, hook)({"a": "b"}) == ["setuptools wants {'a': 'b'}", "torch"]
    monkeypatch.setitem(sys.modules, "torch", None)  # the import fails
    assert getattr(backend, hook)() == ["setuptools wants None"]


def test_other_backend_hooks_are_those_of_setuptools():
    hooks = [name for name in build_meta.__all__ if re.match("build_|prepare_|get_requires_for_build_sdist", name)]
    assert len(hooks) > 4
    assert all(getattr(backend, name) is getattr(build_meta, name) for name in hooks)


@pytest.mark.usefixtures("bare_machine")
def test_setup_uses_the_index_nvcc_only_if_the_machine_has_none(tmp_path):
    home = toolkit(tmp_path / "site")
    cuda = cuda_toolkit.find_cuda(torch_with("13.2"))
    assert (cuda.nvcc, cuda.version) == (str(home / "bin" / "nvcc"), "13.2")
    assert cuda.compile_flags == [*cuda.gencode, f"-I{home / 'include'}"]
    assert cuda.link_flags == [f"-L{home / 'lib'}"]
    on_path = nvcc(tmp_path / "bin" / "nvcc")
    cuda = cuda_toolkit.find_cuda(torch_with("13.2"))
    assert (cuda.nvcc, cuda.compile_flags, cuda.link_flags) == (str(on_path), cuda.gencode, [])


@pytest.mark.usefixtures("bare_machine")
def test_parts_next_to_torch_precede_those_next_to_nvcc(tmp_path):
    """As in pip's build environment, where nvcc installs a newer runtime than torch's into a separate folder."""
    theirs = toolkit(tmp_path / "overlay", *cuda_toolkit.OWN_PARTS, "include/crt/host_config.h")
    ours = toolkit(tmp_path / "site", "include/nv/target")
    cuda = cuda_toolkit.find_cuda(torch_with("13.2", folder=tmp_path / "overlay"))
    assert cuda.nvcc == str(ours / "bin" / "nvcc")
    assert cuda.compile_flags == [*cuda.gencode, f"-I{theirs / 'include'}", f"-I{ours / 'include'}"]
    assert cuda.link_flags == [f"-L{theirs / 'lib'}", f"-L{ours / 'lib'}"]


@pytest.mark.parametrize("part", [*cuda_toolkit.OWN_PARTS[1:], *cuda_toolkit.OTHER_PARTS])
@pytest.mark.usefixtures("bare_machine")
def test_incomplete_index_toolkit_is_ignored(tmp_path, capsys, part):
    home = toolkit(tmp_path / "site", part)
    assert cuda_toolkit.find_cuda(torch_with("13.2")) is None
    message = capsys.readouterr().err
    assert f"{home} has nvcc but not {part}; ignored" in message
    assert "building without CUDA kernels: no nvcc was found. " in message
    assert cuda_toolkit.missing_requirements(torch_with("13.2", GPU)) == PACKAGES


@pytest.mark.usefixtures("bare_machine")
def test_index_toolkit_for_another_cuda_is_ignored(tmp_path):
    toolkit(tmp_path / "site")
    assert cuda_toolkit.find_cuda(torch_with("14.0")) is None
    assert cuda_toolkit.find_cuda(torch_with("12.8")) is None


@pytest.mark.usefixtures("bare_machine")
def test_message_without_nvcc_contains_the_install_command(capsys):
    assert cuda_toolkit.find_cuda(torch_with("13.2")) is None
    message = capsys.readouterr().err
    assert "run PIX2PIXHD_CUDA=1 pip install . without --no-build-isolation" in message
    assert message.endswith("pip install " + " ".join(f"'{name}'" for name in PACKAGES) + "\n")
    assert cuda_toolkit.find_cuda(torch_with("12.8")) is None
    message = capsys.readouterr().err
    assert message.endswith("set CUDA_HOME; the package index has no nvcc for CUDA 12.\n")


@pytest.mark.parametrize("cuda", ["12.8", "13.2", "14.0"])
def test_installed_package_recommends_the_index_only_if_it_has_nvcc(cuda):
    remedy = extension.nvcc_remedy(cuda)
    assert f"install a CUDA toolkit for CUDA {cuda}" in remedy
    assert ("PIX2PIXHD_CUDA=1" in remedy) == bool(cuda_toolkit.index_requirements(torch_with(cuda)))


@pytest.fixture
def hidden(tmp_path):
    """A PATH with everything but nvcc."""
    folders = []
    for k, name in enumerate(os.environ["PATH"].split(os.pathsep)):
        folder = pathlib.Path(name)
        if (folder / "nvcc").exists():
            links = tmp_path / f"path{k}"
            links.mkdir()
            for entry in folder.iterdir():
                if entry.name != "nvcc":
                    (links / entry.name).symlink_to(entry)
            folder = links
        folders.append(str(folder))
    return os.pathsep.join(folders)


@pytest.fixture
def source(unpacked, tmp_path):
    """The sources, without the default location of the toolkit."""
    target = tmp_path / "source"
    shutil.copytree(unpacked, target)
    module = target / "build_tools" / "cuda_toolkit.py"
    text, count = re.subn("(?m)^USUAL_NVCC = .*", 'USUAL_NVCC = pathlib.Path("/no/such/nvcc")', module.read_text())
    assert count == 1
    module.write_text(text)
    return target


def needs_network(test):
    major = int((torch.version.cuda or "0").split(".")[0])
    unknown = major < cuda_toolkit.FIRST_ON_THE_INDEX
    reason = f"the package index has no nvcc for CUDA {torch.version.cuda}"
    opted_out = pytest.mark.skipif(not SLOW, reason="downloads nvcc; set PIX2PIXHD_TEST_SLOW_INSTALL=1")
    return pytest.mark.slow(opted_out(pytest.mark.skipif(unknown, reason=reason)(test)))


def check(environment, archs):
    facts = environment.facts(CUDA_VISIBLE_DEVICES="")
    assert (facts["cuda"], facts["cuda_reason"]) == (True, "")
    assert (facts["cuda_version"], facts["cuda_archs"]) == (facts["torch_cuda"], archs)
    assert environment.command("doctor", CUDA_VISIBLE_DEVICES="").stdout.endswith("result: all well\n")


@needs_network
def test_install_command_in_the_message_enables_cuda_kernels(environment, source, hidden):
    """After running the command in the message, the same build has CUDA kernels."""
    variables = {"PIX2PIXHD_CUDA": "1", "PATH": hidden, "CXXFLAGS": "-O0", "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}
    message = environment.fails(source, **variables)
    (command,) = re.findall(r"with it after: pip (install .*)", message)
    environment.pip(*shlex.split(command), PIP_NO_INDEX="0")
    environment.pip("install", source, **variables)
    check(environment, "8.0;9.0+PTX")


@needs_network
def test_pip_installs_nvcc_into_its_build_environment(tmp_path, source, hidden):
    alone = Environment(tmp_path / "alone", alone=True)
    try:
        alone.run("-m", "pip", "install", source, PIX2PIXHD_CUDA="1", PATH=hidden, TORCH_CUDA_ARCH_LIST="9.0+PTX")
        check(alone, "9.0+PTX")
    finally:
        shutil.rmtree(alone.folder)  # gigabytes that pytest would keep
