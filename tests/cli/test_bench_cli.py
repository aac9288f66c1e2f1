"""`pix2pixhd bench` checks its arguments before it measures, and keeps its measurements."""

import importlib.util
import json
import os
import sys

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from pix2pixhd.bench import run as measurement
from pix2pixhd.bench.agreement import Agreement
from pix2pixhd.bench.case import Setup
from pix2pixhd.bench.cases import CASES, LOSSES
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.device import supported_precisions
from pix2pixhd.bench.memory import ChildError
from pix2pixhd.bench.results import CaseResult
from pix2pixhd.bench.run import run_case
from pix2pixhd.bench.timing import Timing
from pix2pixhd.cli import bench, bench_options, bench_output
from pix2pixhd.cli.main import main
from tests.helpers import fails


def test_bench_refuses_sizes_and_outputs_before_it_measures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run_case", lambda *_: pytest.fail("measured"))
    file = str(tmp_path / "a.png")
    for arguments, message in (
        (["--size", "99999x16"], "at most 65536x65536, got '99999x16'"),
        (["--batch", "9" * 20], "at most 65536, got"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["bench", *arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert max(map(len, error.splitlines()[:-1])) <= 100  # the usage
    fails(capsys, ["bench", "--json", file, "--plot", file, "--force"], "--json and --plot must be two files")
    fails(capsys, ["bench", "--json", "/proc/a.json"], "--json: cannot write to /proc")
    fails(
        capsys, ["bench", "--size", "64x64", "100x64"], "--size: the case 'training step' needs", "got 100x64; change"
    )
    fails(capsys, ["bench", "--size", "32x32", "--num-d", "6"], "--num-d: the images of the case 'training step'")
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "%%" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_lack_of_memory_on_the_cpu_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_case", lambda *_: torch.empty(2**50))
    error = fails(capsys, ["bench", "--device", "cpu"], "out of memory (", "; lower --size, --batch or --num-d")
    assert "--device cpu" not in error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--implementations", "checkpoint", "--case", "LSGAN, generator"],
            ["no chosen case has 'checkpoint'", "fused, plain, compiled."],
        ),
        (["--implementations", "foo"], ["no chosen case has 'foo'", "checkpoint, features, bounded"]),
        (
            ["--inside-compile", "--case", "training step"],
            ["--inside-compile needs at least one of the cases feature matching;"],
        ),
        (["--dtype", "tf32", "--device", "cpu"], ["--dtype: tf32 is for GPUs"]),
        (["--implementations", "limit"], ["no chosen case has 'limit'"]),
        (["--no-compile", "--implementations", "compiled"], ["contradict each other; leave out one of them"]),
        (["--compare", "missing.json"], ["--compare: there is no file missing.json; measure with --json"]),
    ],
)
def test_bench_refuses_what_it_cannot_measure(capsys, monkeypatch, arguments, parts):
    monkeypatch.setattr(bench, "run_case", lambda *_: pytest.fail("measured"))
    fails(capsys, ["bench", *arguments], *parts)


def test_repeated_options_add_up_and_what_is_repeated_is_measured_once():
    arguments = bench_options.parser().parse_args(
        ["--size", "64x64", "--size", "32x32", "64x64", "--case", "VGGLoss", "--case", "VGGLoss"]
    )
    bench_options.complete(arguments, torch.device("cpu"))
    groups = bench_options.groups_of(arguments, torch.device("cpu"))
    assert [(name, setups[0].width) for name, setups in groups] == [("VGGLoss", 64), ("VGGLoss", 32)]


@pytest.mark.parametrize(
    ("plain", "verdict"),
    [(0.8, "costs fusion. With the plain loss"), (1.0, "no difference"), (2.0, "takes 2.00 times as long")],
)
def test_bench_reports_when_a_fused_loss_costs_fusion(plain, verdict):
    fused = [1.0 + 1e-3 * (k % 5) for k in range(20)]
    timings = {"fused": Timing(tuple(fused)), "plain": Timing(tuple(plain * x for x in reversed(fused)))}
    found = CaseResult("LSGAN, generator" + SUFFIX, Setup(), timings, {}, {})
    assert verdict in bench_output.inside_compile(found)


def test_bench_measures_everything_with_all():
    arguments = bench_options.parser().parse_args(["--all", "--device", "cpu"])
    device = torch.device("cpu")
    bench_options.complete(arguments, device)
    groups = bench_options.groups_of(arguments, device)
    assert {name for name, _ in groups} == {*CASES, *(name + SUFFIX for name in LOSSES)}
    assert {"checkpoint", "features", "bounded", "torchmetrics", "compiled"} <= set(arguments.implementations)
    assert all([setup.precision for setup in setups] == supported_precisions(device) for _, setups in groups)
    assert arguments.minutes == 8


def test_bench_begins_no_case_after_its_time(monkeypatch, capsys):
    begun = []

    def run_case(name, setups, *_):
        begun.append(name)
        times = {implementation: Timing((1.0,) * 5) for implementation in ("fused", "plain")}
        return [CaseResult(name, setups[0], times, {x: Agreement(0.0, 0.0) for x in times}, {})]

    monkeypatch.setattr(bench, "run_case", run_case)
    assert main(["bench", "--all", "--minutes", "1e-9", "--device", "cpu", "--no-memory", "--no-compile"]) == 0
    assert begun == ["feature matching"]
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"minutes: [{index + 1}/{len(CASES)}] {name}" in out for index, name in enumerate(CASES) if index)


@pytest.mark.parametrize("minutes", ["0", "nan", "-1", "x"])
def test_bench_refuses_unusable_minutes(minutes, capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_case", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        main(["bench", "--minutes", minutes])
    assert "--minutes: must be a number above 0" in capsys.readouterr().err


def test_bench_names_a_missing_package(capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_case", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(
        capsys,
        ["bench", "--implementations", "torchmetrics"],
        "'torchmetrics' needs the package torchmetrics",
        "pip install",
    )


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_bench_rejects_an_unavailable_device(capsys, device):
    fails(capsys, ["bench", "--device", device], "--device", device)


def test_compiled_steps_without_a_compiler_are_left_out(capsys, monkeypatch):
    def run_case(name, setups, *_):
        if name.endswith(SUFFIX):
            raise TorchDynamoException("No working C++ compiler found")
        times = {implementation: Timing((1.0,) * 5) for implementation in ("fused", "plain")}
        found = {x: Agreement(0.0, 0.0) for x in times}
        return [CaseResult(name, setups[0], times, found, {}, unavailable={"compiled": "no compiler"})]

    monkeypatch.setattr(bench, "run_case", run_case)
    case = ["--case", "LSGAN, generator", "--inside-compile"]
    assert main(["bench", *case, "--device", "cpu", "--no-memory"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not measured: [2/2] LSGAN, generator, in a compiled step, 1024x512: torch.compile failed (No working" in out
    assert "failed: torch.compile failed (no compiler); install a C++ compiler, or use --no-compile." in out


def test_without_a_compiler_the_other_implementations_are_measured():
    from torch._inductor import config

    # Not monkeypatch: its undo deletes the options.
    with config.patch({"force_disable_caches": True, "cpp.cxx": ("no-such-compiler",)}):
        [found] = run_case("LSGAN, generator", [Setup(16, 16)], rounds=1, report=lambda what: None)
    assert found.timings.keys() == found.agreements.keys() == {"fused", "plain"}
    assert "compiler" in found.unavailable["compiled"].lower()


def test_bench_keeps_the_times_if_the_memory_cannot_be_measured(capsys, monkeypatch, tmp_path):
    def fail(*arguments):
        raise ChildError("the child process was stopped by signal 9")

    monkeypatch.setattr(measurement, "measure_memory", fail)
    file = tmp_path / "found.json"
    command = ["bench", "--case", "LSGAN, generator", "--device", "cpu", "--rounds", "1", "--no-compile"]
    assert main([*command, "--json", str(file)]) == 0
    assert "--no-memory" in capsys.readouterr().err
    [case] = json.loads(file.read_text())["cases"]
    assert case["seconds"]["fused"]
    assert not case["bytes"]


def test_bench_writes_its_files_if_its_output_is_closed(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    file = tmp_path / "found.json"
    command = ["bench", "--case", "LSGAN, generator", "--device", "cpu", "--rounds", "1", "--no-compile", "--no-memory"]
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main([*command, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["cases"]
