"""Failing builds end with a single message with the reason and the remedy, and no traceback."""

import re

import pytest

from tests.install.tools import Environment, no_cuda_reason

pytestmark = pytest.mark.install


def message(log):
    """The single message of the build; fails on a traceback."""
    assert "Traceback" not in log, log
    lines = [line.strip() for line in log.splitlines() if line.strip().startswith("pix2pixhd: ")]
    final = [line for line in lines if not line.startswith("pix2pixhd: building ")]
    assert len(final) == 1, log
    return final[0].removeprefix("pix2pixhd: ")


def test_required_cuda_that_cannot_be_built_is_an_error(builder, cpu_checkout, broken_nvcc):
    text = message(builder.fails(cpu_checkout, PIX2PIXHD_CUDA="1", PATH=broken_nvcc))
    assert text.startswith("PIX2PIXHD_CUDA=1, but ")
    assert no_cuda_reason() in text
    assert re.search(r"Set CUDA_HOME|install a CUDA build of torch", text)


def test_a_missing_compiler_is_reported(builder, cpu_checkout):
    text = message(builder.fails(cpu_checkout, PIX2PIXHD_CUDA="0", CXX="/no/such/compiler"))
    assert text.startswith("no C++ compiler was found (/no/such/compiler). Install one")


def test_a_compiler_error_is_reported(builder, cpu_checkout):
    """The log contains the compiler's message, and the final message refers to it."""
    log = builder.fails(cpu_checkout, PIX2PIXHD_CUDA="0", CXXFLAGS="-include no/such/header.h")
    assert re.search(r"no/such/header\.h.*(No such file|not found)", log)
    assert message(log) == "the extension did not compile; see the compiler's message above."


def test_missing_torch_is_reported(cpu_checkout, tmp_path):
    bare = Environment(tmp_path / "bare", leave_out=("torch",))
    text = message(bare.fails(cpu_checkout))
    assert text.startswith("torch >= 2.10 is needed to build, and it cannot be imported (No module named 'torch')")
    assert "omit --no-build-isolation" in text


@pytest.mark.parametrize("package", ["pybind11", "ninja"])
def test_a_missing_build_tool_is_reported(cpu_checkout, tmp_path, package):
    bare = Environment(tmp_path / "bare", leave_out=(package,))
    text = message(bare.fails(cpu_checkout, PIX2PIXHD_CUDA="0"))
    assert text == f"the package `{package}` is needed to build. Run: pip install {package}"


def test_an_old_setuptools_is_reported(cpu_checkout, tmp_path):
    """That of a new virtual environment of Python 3.11, where pip does not check it without build isolation."""
    old = Environment(tmp_path / "old", leave_out=("setuptools", "pkg_resources", "_distutils_hack", "distutils"))
    package = old.site / "setuptools"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '65.5.0'\n")
    (package / "build_meta.py").write_text("")
    text = message(old.fails(cpu_checkout))
    assert text.startswith("setuptools >= 77 is needed to build, found 65.5.0. Run: pip install -U setuptools")
