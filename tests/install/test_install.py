"""``pip install .`` and ``pip install -e .``: the package computes; without its libraries, plain PyTorch takes over.

One file, so that one process of the parallel run builds the installation that these tests share.
"""

import json
import pathlib
import re

import pytest
import torch

import pix2pixhd
from tests.install.tools import UNOPTIMIZED, no_cuda_reason

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
    environment, cpu_install, cpu_checkout, broken_nvcc, cxx
):
    """It builds into the checkout, removes libraries of an earlier build, and uses edited sources.

    With a broken nvcc it builds without CUDA kernels, and its log reports the reason.
    """
    stale = cpu_checkout / "pix2pixhd" / "_ops_cuda.so"
    stale.write_text("from an earlier build with CUDA")
    log = environment.pip("install", "-v", "--editable", cpu_checkout, PATH=broken_nvcc, CXX=cxx, **UNOPTIMIZED)
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


def test_a_module_that_existed_at_an_earlier_build_is_not_installed(builder, cpu_checkout, tmp_path):
    """As after ``git pull`` and a second ``pip install .``, which uses the same build folder."""
    removed = tmp_path / "lib" / "pix2pixhd" / "removed_module.py"
    removed.parent.mkdir(parents=True)
    removed.write_text("")
    builder.run("setup.py", "-q", "build_py", "--build-lib", tmp_path / "lib", cwd=cpu_checkout)
    assert (removed.parent / "__init__.py").exists()
    assert not removed.exists()


# Computes three losses twice. Prints them, the warnings, and the error of requesting the fused backend.
LOSSES = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    import pix2pixhd
    from pix2pixhd.functional import hinge_loss, lsgan_loss, multi_l1_loss
    imported = len(caught)
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    for _ in range(2):
        loss = multi_l1_loss([x], [torch.zeros(2)]) + lsgan_loss([x], 1.0) + hinge_loss([x], True)
    (gradient,) = torch.autograd.grad(loss, [x])
try:
    with pix2pixhd.backend("fused"):
        hinge_loss([x], True)
    error = ""
except RuntimeError as caught_error:
    error = str(caught_error)
print(json.dumps({
    "file": pix2pixhd.__file__, "imported": imported, "loss": loss.item(), "gradient": gradient.tolist(),
    "warnings": [[w.category.__name__, str(w.message), w.filename] for w in caught], "error": error,
}))
"""
# By hand: mean|x| = 2, mean (x-1)^2 = 8, mean relu(1-x) = 2.
LOSS, GRADIENT = 12.0, [0.5 + 0.0 + 0.0, -0.5 - 4.0 - 0.5]
REMEDY = "reinstall this package: pip install --force-reinstall"


def missing(path):
    path.unlink()


def garbage(path):
    path.write_bytes(b"not a library\n" * 100)


def empty(path):
    path.write_bytes(b"")


DAMAGE = {missing: "_ops.so was not built", garbage: "invalid ELF header", empty: "file too short"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_losses_fall_back_to_plain_pytorch_with_one_warning(package_copy, run_in_copy, damage):
    damage(package_copy / "pix2pixhd" / "_ops.so")
    printed = json.loads(run_in_copy("-c", LOSSES).stdout.splitlines()[-1])
    assert printed["file"].startswith(str(package_copy))
    assert printed["imported"] == 0
    assert printed["loss"] == LOSS
    assert printed["gradient"] == GRADIENT
    ((category, text, _),) = printed["warnings"]
    assert category == "RuntimeWarning"
    assert text.startswith(
        "pix2pixhd: the losses on cpu run in plain PyTorch, which is slower and takes more memory: _ops.so "
    )
    assert DAMAGE[damage] in text
    assert REMEDY in text
    assert printed["error"].startswith("backend('fused') was requested, but _ops.so ")
    assert DAMAGE[damage] in printed["error"]
    assert REMEDY in printed["error"]


def test_requested_reference_backend_gives_no_warning(package_copy, run_in_copy):
    missing(package_copy / "pix2pixhd" / "_ops.so")
    printed = json.loads(run_in_copy("-c", LOSSES, PIX2PIXHD_BACKEND="reference").stdout.splitlines()[-1])
    assert (printed["loss"], printed["gradient"], printed["warnings"]) == (LOSS, GRADIENT, [])


def test_a_library_built_from_older_sources_is_not_used(package_copy, run_in_copy):
    """As after ``git pull`` in an editable install."""
    source = package_copy / "pix2pixhd" / "ops" / "extension.py"
    text = source.read_text()
    assert text.count('"norm_act")') == 1
    source.write_text(text.replace('"norm_act")', '"norm_act", "of_tomorrow")'))
    printed = json.loads(run_in_copy("-c", LOSSES).stdout.splitlines()[-1])
    assert (printed["loss"], printed["gradient"]) == (LOSS, GRADIENT)
    ((_, warning, _),) = printed["warnings"]
    assert "_ops.so was built from older sources, it lacks of_tomorrow; reinstall" in warning


@pytest.mark.parametrize("damage", [missing, garbage])
def test_doctor_reports_missing_cpu_operators(package_copy, run_in_copy, damage):
    damage(package_copy / "pix2pixhd" / "_ops.so")
    doctor = run_in_copy("-m", "pix2pixhd", "doctor", check=False)
    assert doctor.returncode == 1, doctor.stderr
    lines = [line.strip() for line in doctor.stdout.splitlines()]
    (line,) = [line for line in lines if line.startswith("CPU operators")]
    assert "no: _ops.so" in line
    assert DAMAGE[damage] in line
    assert REMEDY in line
    assert any(line.startswith("self-test, cpu") and "not run" in line for line in lines)
    assert lines[-1] == "result: NOT all well, see above"
    assert "Traceback" not in doctor.stderr


def test_broken_cuda_library_does_not_affect_the_cpu_operators(package_copy, run_in_copy):
    garbage(package_copy / "pix2pixhd" / "_ops_cuda.so")
    doctor = run_in_copy("-m", "pix2pixhd", "doctor", CUDA_VISIBLE_DEVICES="").stdout
    (line,) = [line for line in doctor.splitlines() if line.strip().startswith("CUDA operators")]
    assert ("invalid ELF header" if torch.version.cuda else "is a build without CUDA") in line
    assert doctor.endswith("result: all well\n")


def test_package_without_any_built_library_computes_with_one_warning(package_copy, run_in_copy):
    """The plain sources, as on a platform without the extension."""
    for path in (package_copy / "pix2pixhd").glob("*.so"):
        path.unlink()
    printed = json.loads(run_in_copy("-c", LOSSES).stdout.splitlines()[-1])
    assert (printed["loss"], printed["gradient"]) == (LOSS, GRADIENT)
    assert [category for category, *_ in printed["warnings"]] == ["RuntimeWarning"]
    doctor = run_in_copy("-m", "pix2pixhd", "doctor", check=False)
    assert doctor.returncode == 1
    assert re.search(r"pix2pixhd\._C +missing: not built", doctor.stdout)
