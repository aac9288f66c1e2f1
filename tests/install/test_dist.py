"""The checks of ``make dist`` and the page of ``make matrix``, without building anything."""

import io
import json
import pathlib
import subprocess
import tarfile
import types
import zipfile

import pytest

from build_tools import dist_contents, old_glibc
from build_tools.matrix import __main__ as matrix
from build_tools.matrix import cells

NAMES = (
    "pix2pixhd/__init__.py",
    "pix2pixhd/losses/gan.py",
    "pix2pixhd/py.typed",
    "pix2pixhd/config/shipped/a.yaml",
    "pix2pixhd/reporting/templates/a.html",
    "pix2pixhd/_C.cpython-311-x86_64-linux-gnu.so",
    "pix2pixhd/_ops.so",
    *(f"a-1.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")),
    "a-1.dist-info/licenses/LICENSE",
)


def write_wheel(path: pathlib.Path, names=NAMES, **contents: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, contents.get(pathlib.Path(name).stem.split(".")[0], b"x"))
    return path


def test_a_wheel_of_the_package_alone_is_accepted(tmp_path):
    assert "wheel, 13 files" in dist_contents.check_wheel(write_wheel(tmp_path / "a.whl"))


@pytest.mark.parametrize("name", ["tests/test_a.py", "csrc/types.h", "pix2pixhd/_ops.so.debug", "pix2pixhd/a.pdb"])
def test_a_wheel_with_other_files_is_rejected(tmp_path, name):
    path = write_wheel(tmp_path / "a.whl", (*NAMES, name))
    with pytest.raises(SystemExit, match=f"a.whl contains {name}, which a wheel need not contain"):
        dist_contents.check_wheel(path)


@pytest.mark.parametrize("name", ["pix2pixhd/_ops.so", "pix2pixhd/py.typed"])
def test_a_wheel_without_a_part_is_rejected(tmp_path, name):
    path = write_wheel(tmp_path / "a.whl", [other for other in NAMES if other != name])
    with pytest.raises(SystemExit, match=f"a.whl lacks {name}"):
        dist_contents.check_wheel(path)


def test_a_wheel_over_its_budget_is_rejected(tmp_path):
    budget = json.loads(dist_contents.BUDGETS.read_text())["wheel"]
    path = write_wheel(tmp_path / "a.whl", _ops=bytes(budget))
    with pytest.raises(SystemExit, match=rf"has \d+ bytes, and the budget of a wheel is {budget}"):
        dist_contents.check_wheel(path)


def test_a_source_distribution_with_built_files_is_rejected(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a-1/setup.py", "a-1/pix2pixhd/_ops.so"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(SystemExit, match=r"contains built files: pix2pixhd/_ops\.so"):
        dist_contents.check_sdist(path)


def test_wheels_of_two_pythons_may_differ_in_the_module_of_python_alone(tmp_path):
    one = write_wheel(tmp_path / "1.whl")
    names = [name.replace("cpython-311", "cpython-312") for name in NAMES]
    assert (
        dist_contents.differing_files(one, write_wheel(tmp_path / "2.whl", names, _C=b"y", WHEEL=b"y", RECORD=b"y"))
        == []
    )
    other = write_wheel(tmp_path / "3.whl", names[1:], _ops=b"y")
    assert dist_contents.differing_files(one, other) == ["pix2pixhd/__init__.py", "pix2pixhd/_ops.so"]


def test_the_compiler_for_an_old_glibc_needs_zig(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(old_glibc.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(
        SystemExit, match=r"the package `ziglang` is needed for an old glibc\. Run: pip install ziglang"
    ):
        old_glibc.write_compiler(tmp_path, "x86_64")


def test_the_page_of_the_install_matrix_has_the_recorded_results():
    results = matrix.merge(matrix.recorded(), [])
    assert matrix.PAGE.read_text() == matrix.page(results)
    assert not [result for result in results if result["result"] == "failed"]


def test_new_results_replace_those_of_the_same_cells_only():
    row, other = cells.rows()[:2]
    old = [
        {"cell": r.name, "base": r.base, "python": "3", "torch": "2", "result": "passed", "remark": ""}
        for r in (row, other)
    ]
    new = [{**old[0], "result": "failed", "remark": "a | b"}]
    merged = matrix.merge(old, new)
    assert [result["result"] for result in merged[:3]] == ["failed", "passed", "not run"]
    assert len(merged) == len(cells.rows())
    assert "1 passed, 0 refused, 1 failed" in matrix.page(merged)


@pytest.mark.parametrize(
    ("call", "result", "remark"),
    [
        (lambda shop: "a remark", "passed", "a remark"),
        (lambda shop: (_ for _ in ()).throw(matrix.NotRun("no such Python")), "not run", "no such Python"),
        (lambda shop: cells.refused(lambda: None, "too old"), "failed", "not refused; expected: too old"),
    ],
)
def test_the_result_of_a_cell_is_recorded(capsys, call, result, remark):
    base = types.SimpleNamespace(facts={"python": "3.11.7", "torch": "2.14.1", "cuda": "13.0"})
    shop = types.SimpleNamespace(base=lambda name: base)
    found = matrix.execute(matrix.Row("a cell", cells.NEWEST, call), shop)
    assert (found["result"], found["remark"], found["torch"]) == (result, remark, "2.14.1, CUDA 13.0")
