"""Pairwise combinations of all training options: each run works up to generated images, or is rejected."""

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


def test_every_valid_pair_of_values_occurs():
    for first, second in itertools.combinations(OPTIONS, 2):
        for values in itertools.product(OPTIONS[first], OPTIONS[second]):
            pair = dict(zip((first, second), values, strict=True))
            occurs = any(pair.items() <= row.items() for _, row in ROWS)
            assert occurs != is_refused(pair), pair


@pytest.mark.slow
@pytest.mark.parametrize(("index", "row"), _of_processes(1))
def test_combination_in_one_process(index, row, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", settings_matrix.trace_only)
    try:
        run_row(row, data_root, tmp_path)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"row {index}: {_title(row)}") from error


@pytest.fixture(scope="module")
def two_processes(data_root, tmp_path_factory):
    """Runs all combinations with two processes; returns the folder of the outcomes and the output of failures."""
    folder = tmp_path_factory.mktemp("two_processes")
    pending = [(index, row) for index, row in ROWS if row["devices"] == 2]
    printed = {}
    while pending:
        (folder / "rows.json").write_text(json.dumps(pending))
        command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", settings_matrix.__name__]
        done = subprocess.run(
            [sys.executable, *command, str(data_root), str(folder), str(folder / "rows.json")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        if done.returncode == 0:
            break
        # The first row without two successful outcomes ended the processes; continue with the next row.
        failed = next(i for i, (index, _) in enumerate(pending) if not _succeeded(folder / str(index)))
        printed[pending[failed][0]] = (done.stdout + done.stderr)[-3000:]
        pending = pending[failed + 1 :]
    return folder, printed


def _succeeded(folder):
    outcomes = list(folder.glob("outcome_*.txt"))
    return len(outcomes) == 2 and not any(outcome.read_text() for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "row"), _of_processes(2))
def test_combination_in_two_processes(index, row, two_processes):
    folder, printed = two_processes
    for outcome in sorted((folder / str(index)).glob("outcome_*.txt")):
        assert not outcome.read_text(), f"row {index}: {_title(row)}\n{outcome.read_text()}"
    assert _succeeded(folder / str(index)), f"row {index}: {_title(row)}\n{printed.get(index)}"


@pytest.mark.parametrize(("part", "message"), [pytest.param(*refused, id=_title(refused[0])) for refused in REFUSED])
def test_invalid_combinations_are_rejected_before_training(part, message, data_root, tmp_path):
    with pytest.raises(InputError, match=f"(?s){message}"):
        train(make_config(DEFAULTS | part, data_root, tmp_path / "run"))
    assert not list(tmp_path.rglob("*.ckpt"))
