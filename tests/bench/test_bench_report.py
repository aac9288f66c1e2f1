"""The tables of the documents are those of the committed results."""

import dataclasses
import json
import pathlib

import bench_report
import interleaved
import machine
import pytest
import report_tables
import torch

from pix2pixhd.bench.case import Agreement, Setup
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.timing import Timing

MACHINE = {
    "date": "2026-01-02",
    "threads": 2,
    "processor": "a CPU",
    "cpu": "AVX2",
    "torch": "2.10",
    "python": "3.10",
    "command": "pix2pixhd bench",
}
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = {"fused": 1.0, "plain": 4.0, "compiled": 3.0, "checkpoint": 5.0, "lpips": 2.0}


def result(name, factor=1e-3, **setup):
    seconds = dict(SECONDS)
    if name in report_tables.LOSSES[:2]:
        seconds["limit"] = 0.9
    timings = {key: Timing((factor * value,) * 5) for key, value in seconds.items()}
    memory = {key: {"retained": int(1e6 * value), "peak": int(2e8 * value)} for key, value in seconds.items()}
    agreements = dict.fromkeys(timings, Agreement(0.0, 0.0))
    return CaseResult(name, Setup(**setup), timings, agreements, memory)


def run(cases, threads=2, command="pix2pixhd bench"):
    return {
        "machine": {**MACHINE, "command": command},
        "cases": [{**case.to_json(), "threads": threads} for case in cases],
    }


def with_costs(costs):
    """Feature matching at sizes with given nanoseconds per pixel."""
    return [
        result("feature matching", 1e-9 * cost * width * height, width=width, height=height)
        for (width, height), cost in costs.items()
    ]


@pytest.fixture
def folder(tmp_path):
    costs = {(256, 128): 50, (512, 256): 20, (1024, 512): 21, (2048, 1024): 23}
    at_batch = result("feature matching", 1e-9 * 30 * 4 * 1024 * 512, batch=4)
    in_one_thread = result("feature matching", 1e-9 * 40 * 1024 * 512)
    lpips = [result("LPIPS", dtype=dtype, batch=8, width=256, height=256) for dtype in DTYPES]
    steps = ["original float32", "ours float32", "original bfloat16", "ours bfloat16"]
    rows = {name: {"seconds": 8.0 / 2**k, "peak": 4 * 10**9 / 2**k} for k, name in enumerate(steps)}
    sizes = {"fits": True, "limit": 2**33}
    documents = {
        "losses": run([result(name, dtype=dtype) for name in report_tables.LOSSES for dtype in DTYPES]),
        "vgg": run([result("VGGLoss", dtype=dtype) for dtype in DTYPES]),
        "lpips": [run([result("LPIPS")], command="first"), run(lpips, command="second")],
        "step": {"machine": MACHINE, "results": rows},
        "cost": [run([*with_costs(costs), at_batch]), run([in_one_thread], threads=1)],
        "lean": {
            "machine": {"date": "2026-01-02", "command": "lean.py"},
            "size": 256,
            "results": {
                "unet float32": {
                    "plain": {"seconds": 2.0, "retained": 4e8, "peak": 8e8},
                    "lean": {"seconds": 1.0, "retained": 2e8, "peak": 2e8},
                }
            },
        },
        "convergence": {
            "machine": MACHINE,
            "runs": [
                {"case": "paper", "seed": seed, "implementation": name, "steps": 160, "L1": 0.25 + x, "SSIM": 0.5 - x}
                for seed in range(3)
                for name, x in (("fused", 0.01 * seed), ("plain", 0.02), ("rounded", 0.01))
            ],
        },
        "largest": {
            "machine": MACHINE,
            "limits_gb": [8.0, 24.0],
            "results": {
                "global float32 ours": [{"height": 512, "estimated": False}, {"height": 1024, "estimated": True}]
            },
            "runs": {"global float32 ours": []},
        },
        "largest, local": {
            "machine": MACHINE,
            "limits_gb": [4.0, 8.0],
            "results": {},
            "runs": {
                "local float32 ours": [
                    {"height": 256, "peak": 2**31, **sizes},
                    {"height": 320, "peak": 5 * 2**30, **sizes},
                    {"height": 512, "peak": 2**33 - 1, **sizes},
                ]
            },
        },
    }
    for part, document in documents.items():
        (tmp_path / bench_report.FILES[part][0]).write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def tables(folder):
    return bench_report.tables(bench_report.read(folder))


def cells(text, start):
    """The cells after the first of the only row that begins with ``start``."""
    [row] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return row.strip("| ").split(" | ")[1:]


def test_tables_contain_the_measurements_and_where_they_come_from(tables):
    row = cells(tables["losses"], "feature matching (24.1 M elements), float32")
    assert row == ["1.00 ms", "4.00× (4.00 to 4.00)", "3.00× (3.00 to 3.00)", "90%"]
    assert cells(tables["VGGLoss"], "**pix2pixhd**, float32") == ["1.00 ms, 0.25", "1 MB, 0.25", "200 MB, 0.25"]
    assert "| **pix2pixhd**, bfloat16 |" in tables["VGGLoss"]
    origin = "2026-01-02 on 2 cores of a CPU (AVX2) with torch 2.10 and Python 3.10: `pix2pixhd bench`"
    assert origin in tables["VGGLoss"]


def test_the_table_of_lpips_is_relative_to_the_package_at_each_size(tables):
    assert cells(tables["LPIPS"], "**one image of 1024×512:** plain")[0] == "4.00 ms, 2.00"
    assert cells(tables["LPIPS"], "**8 images of 256×256:** plain")[0] == "4.00 ms, 2.00"
    assert cells(tables["LPIPS"], "**pix2pixhd**, bfloat16") == ["1.00 ms, 0.50", "1 MB, 0.50", "200 MB, 0.50"]
    assert tables["LPIPS"].endswith("Python 3.10: `first`, `second`.")


def test_the_table_of_the_step_is_relative_to_nvidias_in_float32(tables):
    assert cells(tables["step"], "NVIDIA's step, float32") == ["8.0 s", "1.00×", "4000 MB", "1.00"]
    assert cells(tables["step"], "**pix2pixhd**, bfloat16 autocast") == ["1.0 s", "8.00×", "500 MB", "0.12"]
    assert cells(tables["summary"], "training step, float32") == ["**4.0 s, 2000 MB**", "8.0 s, 4000 MB", "–"]


@pytest.mark.parametrize(("largest", "verdict"), [(21.6, "8%, within 10%"), (23, "15%, above 10%")])
def test_the_table_over_the_size_shows_whether_the_cost_is_flat(largest, verdict, folder):
    costs = {(256, 128): 50, (512, 256): 20, (2048, 1024): largest}
    (folder / "report_cost.json").write_text(json.dumps(run(with_costs(costs))))
    table = bench_report.tables(bench_report.read(folder))["cost over size"]
    assert table.startswith("| time per pixel | 256×128 | 512×256 | 2048×1024 |")
    assert cells(table, "feature matching, **pix2pixhd**") == ["50.0 ns", "20.0 ns", f"{largest:.1f} ns", verdict]
    assert cells(table, "feature matching, plain PyTorch")[:2] == ["200 ns", "80.0 ns"]


def test_the_table_of_the_cost_varies_one_thing_at_a_time(tables):
    rows = [line.split(" | ")[:2] for line in tables["cost"].splitlines() if line.startswith("| feature")]
    assert rows == [
        ["| feature matching, 1024×512, batch 1", "21.0 ns"],
        ["| feature matching, 1024×512, batch 4", "30.0 ns"],
        ["| feature matching, 1024×512, threads 1", "40.0 ns"],
        ["| feature matching, 1024×512, threads 2", "21.0 ns"],
    ]


def test_the_tables_of_earlier_measurements_show_shares_and_what_is_not_certain(tables):
    assert cells(tables["lean"], "**`lean`**") == ["1.00 s, 0.50", "200 MB, 0.50", "200 MB, 0.25"]
    assert tables["lean"].endswith("Measured on 2026-01-02: `lean.py`.")
    assert cells(tables["largest"], "global generator") == ["–", "1024×512", "≈ 2048×1024"]
    assert cells(tables["largest"], "local enhancer") == ["512×256", "≥ 1024×512", "–"]


def test_the_table_of_the_trainings_has_paired_differences(tables):
    # Differences of -0.02, -0.01 and 0; t = 4.303 with two degrees of freedom, times 0.01 / sqrt(3).
    assert cells(tables["convergence"], "paper")[:3] == ["3", "0.270 (± 0.000)", "-0.010 ± 0.025"]
    assert "Over all 3 pairs of trainings" in tables["convergence"]
    assert "9 trainings of 160 steps." in tables["convergence"]


def test_a_ratio_that_varies_is_not_printed_as_a_measurement():
    varying = {"fused": Timing((1.0, 1.0, 2.0, 2.0, 3.0)), "plain": Timing((2.0, 4.0, 8.0, 3.0, 1.0))}
    case = dataclasses.replace(result("LSGAN, generator"), timings=varying)
    assert "not measured" in report_tables.ratio_of(case, "plain")


def test_only_the_tables_are_rewritten():
    text = "a\n<!-- table: losses -->\nold\n<!-- end of table -->\nb\n"
    new = bench_report.render(text, {"losses": "| new |"})
    assert new == "a\n<!-- table: losses -->\n\n| new |\n\n<!-- end of table -->\nb\n"
    assert bench_report.render(new, {"losses": "| new |"}) == new
    with pytest.raises(SystemExit, match="no table 'loses'; the tables are summary"):
        bench_report.render(text.replace("losses", "loses"), {})


def test_results_are_needed_only_where_a_document_has_their_table(folder):
    (folder / "report_step.json").unlink()
    parts = bench_report.tables(bench_report.read(folder))
    assert "losses" in parts
    assert bench_report.render("no table", parts) == "no table"
    with pytest.raises(SystemExit, match=r"table 'step' needs report_step.json .* measure with --measure"):
        bench_report.render("<!-- table: step -->\n<!-- end of table -->", parts)


@pytest.mark.parametrize("path", bench_report.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_contain_the_tables_of_the_committed_results(path):
    text = path.read_text()
    assert "<!-- table:" in text
    assert bench_report.render(text, bench_report.tables(bench_report.read())) == text


def test_every_table_is_in_a_document_once():
    texts = "".join(path.read_text() for path in bench_report.DOCUMENTS)
    assert all(texts.count(f"<!-- table: {name} -->") == 1 for name in bench_report.TABLES)


def test_charts_are_drawn_from_the_results(folder, tmp_path):
    results = bench_report.read(folder)
    for file, (draw, needed) in bench_report.CHARTS.items():
        draw(tmp_path / file, results[needed])
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_a_part_is_replaced_when_all_of_its_commands_succeed(monkeypatch, tmp_path):
    """The second command of a part fails, then it succeeds."""
    called = []

    def fake(words, check, cwd):
        called.append(words)
        if broken and len(called) == 2:
            raise KeyboardInterrupt
        pathlib.Path(words[-1]).write_text(json.dumps({"command": len(called)}))

    monkeypatch.setattr(bench_report.subprocess, "run", fake)
    broken = True
    with pytest.raises(KeyboardInterrupt):
        bench_report.measure("lpips", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    broken = False
    called.clear()
    bench_report.measure("lpips", full=True, folder=tmp_path)
    assert json.loads((tmp_path / "report_lpips.json").read_text()) == [{"command": k} for k in (1, 2, 3)]
    bench_report.measure("losses", folder=tmp_path)
    assert json.loads((tmp_path / "report_losses.json").read_text()) == {"command": 4}
    assert called[-1][1:4] == ["-m", "pix2pixhd", "bench"]


@pytest.mark.parametrize(
    "command",
    [line for part in (bench_report.COMMANDS, bench_report.LONG) for lines in part.values() for line in lines],
)
def test_the_command_in_the_results_is_the_one_that_was_called(command):
    words = bench_report.command_line(command, "out.json")
    if not command.startswith("pix2pixhd"):
        assert machine.command(words[1:]) == command


def test_points_are_measured_interleaved_with_their_threads(monkeypatch):
    from pix2pixhd.bench import cases, timing

    threads, calls = [], []

    class Case:
        def run_of(self, name):
            def call():
                calls.append(name)
                threads.append(torch.get_num_threads())

            return call

    def compare(runs, rounds, warmup):
        for call in runs.values():
            call()
        return {name: Timing((1.0,) * rounds) for name in runs}

    monkeypatch.setattr(cases, "make_case", lambda name, setup: Case())
    monkeypatch.setattr(timing, "compare", compare)
    default = torch.get_num_threads()
    points = [interleaved.point("64x32,batch=2"), interleaved.point(f"32x32,num_d=3,threads={default + 1}")]
    found = interleaved.measure("feature matching", points, ["float32"], ["plain"], 2)
    assert calls == ["fused", "plain"] * 2
    assert threads == [default] * 2 + [default + 1] * 2
    assert torch.get_num_threads() == default
    setups = [case["setup"] for case in found]
    assert [(x["width"], x["height"], x["batch"], x["num_D"]) for x in setups] == [(64, 32, 2, 2), (32, 32, 1, 3)]
    assert [case["threads"] for case in found] == [default, default + 1]
    assert interleaved.describe(found[0]).startswith("64x32, batch 2, float32, 2 scales")
