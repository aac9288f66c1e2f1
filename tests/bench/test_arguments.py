"""The benchmarks refuse arguments that would fail in a child process, or after the measurement."""

import json
import pathlib
import sys

import bench_report
import interleaved
import largest_image
import lean
import pytest
import step_memory
import step_profile
import torch
import training_step

from pix2pixhd.bench.memory import run_child

REFUSED = [
    (step_memory, ["--size", "64"], "--size: must be width x height in multiples of 16"),
    (step_memory, ["--size", "70x40"], "--size: must be width x height in multiples of 16"),
    (step_memory, ["--size", "0x16"], "--size: must be width x height in multiples of 16"),
    (step_memory, ["--ngf", "0"], "--ngf: must be a positive integer, got '0'"),
    (step_memory, ["--json", "missing/file.json"], "--json: must be a file in a folder that exists"),
    (step_profile, ["--steps", "0"], "--steps: must be a positive integer, got '0'"),
    (training_step, ["--rounds", "-1"], "--rounds: must be a positive integer, got '-1'"),
    (training_step, ["--empty-convolutions"], "--empty-convolutions measures memory alone; pass --memory-only too"),
    (lean, ["--rounds", "0"], "--rounds: must be a positive integer, got '0'"),
    (lean, ["--size", "30"], "--size: must be a positive integer and a multiple of 32, got '30'"),
    (lean, ["--width", "x"], "--width: must be a positive integer, got 'x'"),
    (largest_image, ["--limits", "4", "nan"], "--limits: must be a positive number, got 'nan'"),
    (interleaved, ["VGGLoss", "70x32"], "argument POINT: must be width x height in multiples of 16"),
    (interleaved, ["VGGLoss", "64x32,batch=0"], "argument POINT: must be a positive integer, got '0'"),
    (
        interleaved,
        ["VGGLoss", "64x32,scale=2"],
        "must have options of batch, num_d, threads after the size",
    ),
    (interleaved, ["VGGLoss", "64x32,threads=1", "--memory"], "--memory does not depend on the number of threads"),
    (interleaved, ["VGG loss", "64x32"], "case must be one of feature matching; VGG feature maps;"),
    (interleaved, ["VGGLoss", "64x32", "--implementations", "lpips"], "--implementations: VGGLoss has fused, plain,"),
    (bench_report, ["--full"], "--full adds measurements to --measure; pass both, or neither"),
    (largest_image, ["--step", "10"], "--step: must be a positive integer and a multiple of 16, got '10'"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "message"), REFUSED, ids=[f"{row[0].__name__} {' '.join(row[1])}" for row in REFUSED]
)
def test_unusable_arguments_are_refused(script, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", [lean, step_memory, step_profile, largest_image])
def test_a_gpu_is_refused_where_there_is_none(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [script.__name__, "--device", "cuda"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--device: PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not the file of a search"),
        (json.dumps({"runs": {}, "device": "cpu", "scale": 0.5}), "is a search with --scale 0.5; pass the same"),
        (json.dumps({"runs": {}, "device": "cuda", "scale": 1.0}), "is a search with --device cuda; pass the same"),
        (
            json.dumps({"runs": {}, "device": "cpu", "empty_convolutions": True}),
            "is a search with --empty-convolutions True; pass the same",
        ),
    ],
    ids=["damaged", "other networks", "other device", "other convolutions"],
)
def test_the_runs_of_another_search_are_refused(content, message, tmp_path, monkeypatch, capsys):
    file = tmp_path / "found.json"
    file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["largest_image", "--resume", "--json", str(file)])
    with pytest.raises(SystemExit):
        largest_image.main()
    assert message in capsys.readouterr().err


def test_the_lean_benchmark_compares_with_plain_pytorch_in_any_order(monkeypatch, capsys):
    def run_child(command, exact_memory=False):
        amount = 2 if "plain" in command else 1
        return {"seconds": amount, "retained": amount, "peak": amount}

    monkeypatch.setattr(lean, "run_child", run_child)
    monkeypatch.setattr(sys, "argv", ["lean", "--networks", "unet", "--implementations", "lean", "plain"])
    lean.main()
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lean ")]
    assert row.count(" 0.50") == 3


def test_a_failed_child_process_is_reported_without_a_traceback_of_the_parent(tmp_path):
    script = pathlib.Path(tmp_path / "child.py")
    script.write_text("raise SystemExit('no such size')")
    with pytest.raises(SystemExit, match=r"child process failed, see the error above: child\.py --size 1"):
        run_child([script, "--size", "1"])


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_time_of_a_training_step_is_measured():
    setup = training_step.Setup("64x32", ngf=2, ndf=2, n_downsample=2, n_blocks=1, num_D=1, label_nc=3)
    assert training_step.measure("ours", "float32", setup, 1)["seconds"] > 0
