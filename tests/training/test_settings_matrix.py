"""Pairwise combinations of all training options: each run works from start to generated images, or is refused."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train

from . import settings_matrix
from .settings_matrix import OPTIONS, REFUSED, is_refused, make_config, make_data, run_row

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = list(enumerate(settings_matrix.rows()))
DEFAULTS: dict[str, Any] = {name: values[0] for name, values in OPTIONS.items()}


def _title(row):
    return ",".join(f"{name}={value}" for name, value in row.items() if value != DEFAULTS[name])


def _of_processes(count):
    return [pytest.param(index, row, id=str(index)) for index, row in ROWS if row["devices"] == count]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return root


def test_every_pair_of_values_occurs():
    for first, second in itertools.combinations(OPTIONS, 2):
        for values in itertools.product(OPTIONS[first], OPTIONS[second]):
            pair = dict(zip((first, second), values, strict=True))
            occurs = any(pair.items() <= row.items() for _, row in ROWS)
            assert occurs != is_refused(pair), pair


@pytest.mark.slow
@pytest.mark.parametrize(("index", "row"), _of_processes(1))
def test_one_process(index, row, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", settings_matrix.compile_eagerly)
    try:
        run_row(row, data_root, tmp_path)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"row {index}: {_title(row)}") from error


@pytest.fixture(scope="module")
def two_processes(data_root, tmp_path_factory):
    """Runs all combinations with two processes, one after the other, and gives their folder and what was printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    rows = [(index, row) for index, row in ROWS if row["devices"] == 2]
    (folder / "rows.json").write_text(json.dumps(rows))
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", settings_matrix.__name__]
    done = subprocess.run(
        [sys.executable, *command, str(data_root), str(folder), str(folder / "rows.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return folder, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("index", "row"), _of_processes(2))
def test_two_processes(index, row, two_processes):
    folder, printed = two_processes
    for rank in range(2):
        outcome = folder / str(index) / f"outcome_{rank}.txt"
        assert outcome.exists(), f"row {index} did not end in process {rank}: {_title(row)}\n{printed}"
        assert not outcome.read_text(), f"row {index}, process {rank}: {_title(row)}\n{outcome.read_text()}"


@pytest.mark.parametrize(("part", "message"), [pytest.param(*refused, id=_title(refused[0])) for refused in REFUSED])
def test_what_does_not_go_together_is_refused_before_training(part, message, data_root, tmp_path):
    with pytest.raises(InputError, match=f"(?s){message}"):
        train(make_config(DEFAULTS | part, data_root, tmp_path / "run"))
    assert not list(tmp_path.rglob("*.ckpt"))
