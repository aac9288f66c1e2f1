"""What setup.py decides, without building: every environment it can meet, and the message it gives."""

import importlib.util
import sys
import types

import pytest
import setuptools

from tests.install.tools import ROOT

pytestmark = [pytest.mark.install, pytest.mark.filterwarnings("ignore:.*distutils")]

ALL = ("PIX2PIXHD_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH", "CXX")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, in an environment without any of its variables and with an empty PATH."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("pix2pixhd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pix2pixhd_setup", module)
    spec.loader.exec_module(module)
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    # A toolkit in the usual place would be found.
    monkeypatch.setattr(module, "USUAL_NVCC", tmp_path / "nowhere" / "nvcc")
    return module


def torch_with(cuda, *capabilities):
    return types.SimpleNamespace(
        __version__="2.15.0",
        version=types.SimpleNamespace(cuda=cuda),
        cuda=types.SimpleNamespace(
            is_available=lambda: bool(capabilities),
            device_count=lambda: len(capabilities),
            get_device_capability=lambda index: capabilities[index],
        ),
    )


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def nvcc(path, release="13.0"):
    return script(path, f"echo 'Cuda compilation tools, release {release}, V{release}.48'")


def test_a_wrapper_script_on_the_path_is_enough(build, tmp_path, capsys):
    path = nvcc(tmp_path / "bin" / "nvcc")
    cuda = build.find_cuda(torch_with("13.2"))
    assert (cuda.nvcc, cuda.version, cuda.archs) == (str(path), "13.0", ["8.0", "9.0+PTX"])
    assert "building CUDA kernels with nvcc 13.0 for 8.0;9.0+PTX (torch's CUDA: 13.2)" in capsys.readouterr().err


def test_cuda_home_goes_before_the_path_and_the_path_before_the_usual_place(build, monkeypatch, tmp_path):
    usual = nvcc(tmp_path / "usual" / "nvcc", "11.1")
    monkeypatch.setattr(build, "USUAL_NVCC", usual)
    assert build.find_cuda(torch_with("13.2")).nvcc == str(usual)
    on_path = nvcc(tmp_path / "bin" / "nvcc", "12.2")
    assert build.find_cuda(torch_with("13.2")).nvcc == str(on_path)
    home = nvcc(tmp_path / "toolkit" / "bin" / "nvcc", "13.1")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "toolkit"))
    assert build.find_cuda(torch_with("13.2")).nvcc == str(home)
    other = nvcc(tmp_path / "other" / "bin" / "nvcc", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "other"))
    assert build.find_cuda(torch_with("13.2")).nvcc == str(other)


def test_a_cuda_home_without_nvcc_is_said_and_passed_over(build, monkeypatch, tmp_path, capsys):
    path = nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    assert build.find_cuda(torch_with("13.2")).nvcc == str(path)
    assert f"CUDA_HOME={tmp_path / 'empty'} has no bin/nvcc; looking on the PATH" in capsys.readouterr().err


# What is there, torch's CUDA, and what the message names: the reason and the remedy.
WITHOUT = {
    "torch without CUDA": (lambda bin: nvcc(bin / "nvcc"), None, ["torch 2.15.0 is a build without CUDA"], "of torch"),
    "no nvcc": (lambda bin: None, "13.2", ["no nvcc was found"], "install the CUDA 13.2 toolkit or set CUDA_HOME"),
    "newer major": (
        lambda bin: nvcc(bin / "nvcc", "14.1"),
        "13.2",
        ["nvcc is of CUDA 14.1 and torch of CUDA 13.2"],
        "Point CUDA_HOME at a CUDA 13.2 toolkit",
    ),
    "nvcc fails": (
        lambda bin: script(bin / "nvcc", "exit 3"),
        "13.2",
        ["--version fails", "exit status 3"],
        "CUDA_HOME",
    ),
    "nvcc is garbage": (lambda bin: script(bin / "nvcc", "echo hello"), "13.2", ["names no release"], "CUDA_HOME"),
    "nvcc does not start": (
        lambda bin: script(bin / "nvcc", "").write_text("#!/no/such/shell\n"),
        "13.2",
        ["--version fails", "No such file"],
        "CUDA_HOME",
    ),
    "nvcc answers bytes": (
        lambda bin: script(bin / "nvcc", r"printf '\377\376'"),
        "13.2",
        ["names no release"],
        "CUDA_HOME",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_without_cuda_the_reason_is_said(build, monkeypatch, tmp_path, capsys, case):
    make, torch_cuda, reasons, remedy = WITHOUT[case]
    make(tmp_path / "bin")
    assert build.find_cuda(torch_with(torch_cuda)) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pix2pixhd: building without CUDA kernels: ")
    assert all(reason in line for reason in reasons)
    assert remedy in line

    monkeypatch.setenv("PIX2PIXHD_CUDA", "1")
    with pytest.raises(build.BuildError) as caught:
        build.find_cuda(torch_with(torch_cuda))
    (line,) = str(caught.value).strip().splitlines()
    assert line.startswith("pix2pixhd: PIX2PIXHD_CUDA=1, but ")
    assert all(reason in line for reason in [*reasons, remedy])


@pytest.mark.parametrize(("wish", "built"), [("0", False), ("1", True), ("auto", True), ("", True)])
def test_the_wish_decides(build, monkeypatch, tmp_path, capsys, wish, built):
    nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("PIX2PIXHD_CUDA", wish)
    assert (build.find_cuda(torch_with("13.2")) is not None) == built
    assert ("building without CUDA kernels: PIX2PIXHD_CUDA=0" in capsys.readouterr().err) == (not built)


@pytest.mark.parametrize("wish", ["yes", "2", "ON"])
def test_a_wish_that_is_none_is_refused(build, monkeypatch, wish):
    monkeypatch.setenv("PIX2PIXHD_CUDA", wish)
    with pytest.raises(SystemExit, match=f"PIX2PIXHD_CUDA must be auto, 0 or 1, got '{wish}'"):
        build.find_cuda(torch_with("13.2"))


@pytest.mark.parametrize(
    ("asked", "gpus", "archs"),
    [
        ("", (), ["8.0", "9.0+PTX"]),
        ("", ((9, 0), (8, 6), (9, 0)), ["8.6", "9.0+PTX"]),
        ("7.5", ((9, 0),), ["7.5"]),
        ("8.0;9.0a+PTX", (), ["8.0", "9.0a+PTX"]),
        ("8.0 8.6,9.0; 12.0", (), ["8.0", "8.6", "9.0", "12.0"]),
        (";9.0;", (), ["9.0"]),
    ],
)
def test_architectures(build, monkeypatch, asked, gpus, archs):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert build.cuda_archs(torch_with("13.2", *gpus)) == archs


@pytest.mark.parametrize("asked", ["Hopper", "sm_90", "90", "9.0;native", ";", "9.0+SASS"])
def test_bad_architectures(build, monkeypatch, asked):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST must be numbers such as '8.0;9.0\+PTX', got '"):
        build.cuda_archs(torch_with("13.2"))


def test_flags_of_nvcc(build):
    cuda = build.Cuda("nvcc", "13.0", ["8.0", "9.0a+PTX"])
    assert cuda.gencode == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cu117", "2.9.0a0+git1234"])
def test_an_older_torch_is_refused(build, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(SystemExit, match=f"torch >= 2.10 is needed to build, found {version.replace('+', '.')}"):
        build.import_torch()


@pytest.mark.parametrize("version", ["2.10.0", "2.15.0+cu130", "3.0.0a0+git1234"])
def test_any_newer_torch_is_taken(build, monkeypatch, version):
    module = types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "torch", module)
    assert build.import_torch() is module


@pytest.mark.parametrize(
    ("compilers", "cxx", "found"),
    [
        (["g++", "c++", "clang++"], None, ["g++"]),
        (["clang++"], None, ["clang++"]),
        (["g++", "clang++"], "clang++", ["clang++"]),
        (["g++", "ccache"], "ccache g++", ["ccache", "g++"]),
        (["g++"], "", ["g++"]),
    ],
)
def test_compilers(build, monkeypatch, tmp_path, compilers, cxx, found):
    for name in compilers:
        script(tmp_path / "bin" / name, f"echo '{name} (made up) 12.2'")
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert build.find_cxx() == found


@pytest.mark.parametrize(("cxx", "named"), [(None, r"g\+\+, c\+\+, clang\+\+"), ("/no/such/c++", r"/no/such/c\+\+")])
def test_no_compiler(build, monkeypatch, cxx, named):
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    with pytest.raises(SystemExit, match=rf"no C\+\+ compiler was found \({named}\).*apt install g\+\+.*or set CXX"):
        build.find_cxx()


@pytest.mark.parametrize("body", ["exit 1", "true", "kill -SEGV $$"])
def test_a_compiler_that_does_not_work(build, tmp_path, body):
    path = script(tmp_path / "bin" / "g++", body)
    with pytest.raises(SystemExit, match=r"g\+\+ --version") as caught:
        build.compiler_version([str(path)])
    assert "set CXX" in str(caught.value)


@pytest.mark.parametrize(
    ("cxx", "host"),
    [(["g++-12"], "g++-12"), (["ccache", "g++-12"], "g++-12"), (["/opt/bin/sccache", "clang++", "-m64"], "clang++")],
)
def test_nvcc_gets_the_compiler_and_not_its_launcher(build, tmp_path, cxx, host):
    graph = build.Graph(tmp_path, cxx, build.Cuda("nvcc", "13.0", ["9.0"]))
    graph.file.close()
    rules = (tmp_path / "build.ninja").read_text()
    assert rules.count(f"-ccbin {host} ") == 2
    assert f"command = {' '.join(cxx)} -MMD" in rules
