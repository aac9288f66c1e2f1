"""The benchmark scripts run, at sizes too small for meaningful measurements."""

import json
import pathlib
import subprocess
import sys

import pytest

from pix2pixhd.bench.cases import CASES

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(script, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_gpu_benchmark_runs_on_the_cpu_as_a_dry_run(tmp_path):
    out = run("gpu.py", "--device", "cpu", "--skip-build", "--skip-tests", "--no-compile", "--out", tmp_path)
    assert "A DRY RUN ON THE CPU" in out
    found = json.loads((tmp_path / "cpu-dry-run.json").read_text())
    assert {case["case"] for case in found["cases"]} == set(CASES)
    names = " ".join(row["what"] for row in found["goals"])
    for name in ("LSGAN, generator", "feature matching", "VGG feature maps", "VGGLoss", "LPIPS", "training step"):
        assert name in names
    assert all(row["value"] > 0 for row in found["goals"])


@pytest.mark.slow
def test_training_step_benchmark_measures_the_memory_of_both_implementations(tmp_path):
    small = ["--size", "64x64", "--ngf", 4, "--ndf", 4, "--n-blocks", 1, "--label-nc", 3, "--rounds", 1]
    options = ["--dtypes", "float32", "--memory-only", "--empty-convolutions", "--json", tmp_path / "step.json"]
    run("training_step.py", *small, *options)
    rows = json.loads((tmp_path / "step.json").read_text())["results"]
    assert rows["ours float32"]["peak"] < rows["original float32"]["peak"]


@pytest.mark.slow
def test_l1_profile_prints_every_row_and_the_shares():
    out = run("l1_profile.py", "--size", "64x64", "--rounds", 1)
    for dtype in ("float32", "bfloat16"):
        rows = out.split(dtype)[1]
        assert rows.count(" ms") >= 8
        assert rows.count(" GB/s") >= 6
        assert "share of the limit: loss" in rows


@pytest.mark.slow
def test_lean_benchmark_measures_every_implementation(tmp_path):
    small = ["--networks", "cyclegan", "--size", 64, "--width", 8, "--rounds", 1, "--implementations", "plain", "lean"]
    run("lean.py", *small, "--json", tmp_path / "lean.json")
    [rows] = json.loads((tmp_path / "lean.json").read_text())["results"].values()
    assert rows["lean"]["retained"] < rows["plain"]["retained"]
