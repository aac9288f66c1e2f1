"""The tables of the documents are those of the committed results."""

import dataclasses
import json
import pathlib
import sys

import pytest
import torch

from pix2pixhd.bench.case import Agreement, Setup
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.timing import Timing

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_report  # noqa: E402

MACHINE = {
    "date": "2026-01-02",
    "threads": 2,
    "processor": "a CPU",
    "cpu": "AVX2",
    "torch": "2.10",
    "python": "3.10",
    "command": "pix2pixhd bench",
}


def result(name, dtype, factor):
    seconds = {"fused": 1.0, "plain": 4.0, "compiled": 3.0, "checkpoint": 5.0}
    if name in bench_report.LOSSES[:2]:
        seconds["limit"] = 0.9
    timings = {key: Timing((factor * value,) * 5) for key, value in seconds.items()}
    memory = {key: {"retained": int(1e6 * value), "peak": int(2e8 * value)} for key, value in seconds.items()}
    agreements = dict.fromkeys(timings, Agreement(0.0, 0.0))
    return CaseResult(name, Setup(dtype=dtype), timings, agreements, memory)


@pytest.fixture
def folder(tmp_path):
    cases = {"losses": bench_report.LOSSES}
    for part in bench_report.COMMANDS:
        names = cases.get(part, ["VGGLoss"])
        found = [result(name, dtype, 1e-3) for name in names for dtype in (torch.float32, torch.bfloat16)]
        document = {"machine": MACHINE, "cases": [case.to_json() for case in found]}
        (tmp_path / f"report_{part}.json").write_text(json.dumps(document))
    return tmp_path


def test_tables_contain_the_measurements_and_where_they_come_from(folder):
    tables = bench_report.tables(folder)
    row = next(line for line in tables["losses"].splitlines() if "feature matching" in line)
    assert row.split(" | ")[1:] == ["1.00 ms", "4.00× (4.00 to 4.00)", "3.00× (3.00 to 3.00)", "90% |"]
    row = next(line for line in tables["VGGLoss"].splitlines() if "**pix2pixhd**, float32" in line)
    assert row.split(" | ")[1:] == ["1.00 ms, 0.25", "1 MB, 0.25", "200 MB, 0.25 |"]
    assert "| **pix2pixhd**, bfloat16 |" in tables["VGGLoss"]
    assert (
        "2026-01-02 on 2 cores of a CPU (AVX2) with torch 2.10 and Python 3.10: `pix2pixhd bench`" in tables["VGGLoss"]
    )


def test_a_ratio_that_varies_is_not_printed_as_a_measurement():
    varying = {"fused": Timing((1.0, 1.0, 2.0, 2.0, 3.0)), "plain": Timing((2.0, 4.0, 8.0, 3.0, 1.0))}
    case = dataclasses.replace(result("LSGAN, generator", torch.float32, 1.0), timings=varying)
    assert "not measured" in bench_report.ratio_of(case, "plain")


def test_only_the_tables_are_rewritten():
    text = "a\n<!-- table: losses -->\nold\n<!-- end of table -->\nb\n"
    new = bench_report.render(text, {"losses": "| new |"})
    assert new == "a\n<!-- table: losses -->\n\n| new |\n\n<!-- end of table -->\nb\n"
    assert bench_report.render(new, {"losses": "| new |"}) == new
    with pytest.raises(SystemExit, match="no table 'losses'; the tables are summary"):
        bench_report.render(text, {"summary": ""})


@pytest.mark.parametrize("path", bench_report.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_contain_the_tables_of_the_committed_results(path):
    text = path.read_text()
    assert "<!-- table:" in text
    assert bench_report.render(text, bench_report.tables()) == text
