"""setup.py's decisions about torch and the compilers, and its messages, without building."""

import importlib.util
import sys
import types

import pytest
import setuptools

from build_tools.cuda_toolkit import Cuda
from tests.install.tools import ROOT, script

pytestmark = [pytest.mark.install, pytest.mark.filterwarnings("ignore:.*distutils")]


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, without CXX and with an empty PATH."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("pix2pixhd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pix2pixhd_setup", module)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return module


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cu117", "2.9.0a0+git1234"])
def test_unsupported_torch_is_rejected(build, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(SystemExit, match=f"torch >= 2.10 is needed to build, found {version.replace('+', '.')}"):
        build.import_torch()


@pytest.mark.parametrize("version", ["2.10.0", "2.15.0+cu130", "3.0.0a0+git1234"])
def test_newer_torch_is_accepted(build, monkeypatch, version):
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
def test_compiler_is_chosen_by_cxx_or_found_on_the_path(build, monkeypatch, tmp_path, compilers, cxx, found):
    for name in compilers:
        script(tmp_path / "bin" / name, f"echo '{name} (made up) 12.2'")
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert build.find_cxx() == found


@pytest.mark.parametrize(("cxx", "named"), [(None, r"g\+\+, c\+\+, clang\+\+"), ("/no/such/c++", r"/no/such/c\+\+")])
def test_missing_compiler_is_reported_with_the_remedy(build, monkeypatch, cxx, named):
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    with pytest.raises(SystemExit, match=rf"no C\+\+ compiler was found \({named}\).*apt install g\+\+.*or set CXX"):
        build.find_cxx()


@pytest.mark.parametrize("body", ["exit 1", "true", "kill -SEGV $$"])
def test_broken_compiler_is_reported(build, tmp_path, body):
    path = script(tmp_path / "bin" / "g++", body)
    with pytest.raises(SystemExit, match=r"g\+\+ --version") as caught:
        build.compiler_version([str(path)])
    assert "set CXX" in str(caught.value)


@pytest.mark.parametrize(
    ("cxx", "host"),
    [(["g++-12"], "g++-12"), (["ccache", "g++-12"], "g++-12"), (["/opt/bin/sccache", "clang++", "-m64"], "clang++")],
)
def test_nvcc_is_given_the_compiler_without_its_launcher(build, tmp_path, cxx, host):
    graph = build.Graph(tmp_path, cxx, Cuda("nvcc", "13.0", ["9.0"]))
    graph.file.close()
    rules = (tmp_path / "build.ninja").read_text()
    assert rules.count(f"-ccbin {host} ") == 2
    assert f"command = {' '.join(cxx)} -MMD" in rules
