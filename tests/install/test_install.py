"""``pip install .`` and ``pip install -e .``: the built package is imported and computes."""

import pathlib

import pytest
import torch

import pix2pixhd
from tests.install.tools import no_cuda_reason

pytestmark = pytest.mark.install


def test_installed_package_computes(cpu_install):
    facts = cpu_install.facts()
    assert pathlib.Path(facts["file"]).parent == cpu_install.package
    assert facts["version"] == facts["package"] == pix2pixhd.__version__
    assert facts["torch_version"] == facts["torch"] == torch.__version__
    assert facts["instruction_sets"].startswith("baseline")
    assert facts["compiler"]
    assert (facts["cuda_version"], facts["cuda_archs"], facts["cuda"]) == ("", "", False)


def test_build_without_cuda_kernels_reports_the_reason(cpu_install):
    assert cpu_install.log.count("pix2pixhd: building without CUDA kernels: PIX2PIXHD_CUDA=0") == 1


def test_doctor_finds_no_problem(cpu_install):
    doctor = cpu_install.command("doctor", CUDA_VISIBLE_DEVICES="")
    lines = doctor.stdout.splitlines()
    assert lines[-1] == "result: all well"
    assert any("CPU operators" in line and " yes, using " in line for line in lines)
    assert any("self-test, cpu" in line and " passed" in line for line in lines)
    assert any("CUDA kernels" in line and " not built" in line for line in lines)
    assert "Traceback" not in doctor.stderr


def test_editable_install_removes_stale_libraries_and_follows_edits(
    environment, cpu_install, cpu_checkout, broken_nvcc
):
    """It builds into the checkout, removes libraries of an earlier build, and uses edited sources.

    With a broken nvcc it builds without CUDA kernels, and its log reports the reason.
    """
    stale = cpu_checkout / "pix2pixhd" / "_ops_cuda.so"
    stale.write_text("from an earlier build with CUDA")
    log = environment.pip("install", "-v", "--editable", cpu_checkout, PATH=broken_nvcc, CXXFLAGS="-O0")
    (line,) = [line for line in log.splitlines() if "building without CUDA kernels" in line]
    assert no_cuda_reason() in line

    facts = environment.facts()
    assert pathlib.Path(facts["file"]).parent == cpu_checkout / "pix2pixhd"
    assert (facts["version"], facts["cuda_version"]) == (pix2pixhd.__version__, "")
    assert not stale.exists()
    assert sorted(path.name.split(".")[0] for path in stale.parent.glob("*.so")) == ["_C", "_ops"]

    source = cpu_checkout / "pix2pixhd" / "__init__.py"
    text = source.read_text()
    source.write_text(f'{text}EDITED = "yes"\n')
    try:
        assert environment.run("-c", "import pix2pixhd; print(pix2pixhd.EDITED)").stdout == "yes\n"
    finally:
        source.write_text(text)
