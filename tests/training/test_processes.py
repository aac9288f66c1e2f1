"""The number of processes must match what torchrun or SLURM started; otherwise the run is rejected before training."""

import pathlib

import pytest
import yaml

import pix2pixhd
from pix2pixhd.config.schema.trainer import TrainerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.distributed import AveragedGradients
from pix2pixhd.training.processes import distribution_options, process_count
from tests.helpers import run_command_under_torchrun

ROOT = pathlib.Path(__file__).resolve().parents[2]

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "3",
    "WORLD_SIZE": "6",
    "RANK": "0",
    "LOCAL_RANK": "0",
}
SLURM = {
    "SLURM_NTASKS": "6",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "3",
    "SLURM_PROCID": "0",
    "SLURM_JOB_NAME": "train",
}


def started_by(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM])
@pytest.mark.parametrize(
    "given", [{}, {"num_nodes": 3}, {"devices": 2, "num_nodes": 3}, {"devices": [0, 1], "num_nodes": 3}]
)
def test_number_of_processes_is_taken_from_the_launcher(monkeypatch, variables, given):
    started_by(monkeypatch, variables)
    options = TrainerOptions(**given)
    found = distribution_options(options)
    assert found["devices"] == given.get("devices", 2)
    assert found["num_nodes"] == 3
    assert isinstance(found["strategy"], AveragedGradients)
    assert process_count(options) == 6


@pytest.mark.parametrize(("name", "variables"), [("torchrun", TORCHRUN), ("SLURM", SLURM)])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": 1}, "{} started 2 processes on this machine, trainer.devices is 1; set auto"),
        ({"devices": [0, 1, 2]}, r"{} started 2 processes on this machine, trainer.devices is \[0, 1, 2\]; set auto"),
        ({"devices": 2}, "{} started processes on 3 machines, trainer.num_nodes is 1; set it to 3"),
        ({"num_nodes": 2}, "{} started processes on 3 machines, trainer.num_nodes is 2; set it to 3"),
    ],
)
def test_numbers_that_differ_from_the_launcher_are_rejected(monkeypatch, name, variables, given, message):
    started_by(monkeypatch, variables)
    with pytest.raises(InputError, match=message.format(name)):
        process_count(TrainerOptions(**given))


def test_slurm_with_one_task_trains_one_process_and_uneven_tasks_are_rejected(monkeypatch):
    started_by(monkeypatch, SLURM | {"SLURM_NTASKS": "1"})
    assert distribution_options(TrainerOptions()) == {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    with pytest.raises(InputError, match=r"SLURM started 1 process on this machine, trainer\.devices is 2"):
        process_count(TrainerOptions(devices=2))
    started_by(monkeypatch, {"SLURM_NTASKS": "5"})
    with pytest.raises(InputError, match=r"5 tasks \(SLURM_NTASKS\) on 3 machines, but 2 per machine"):
        process_count(TrainerOptions())


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_started_by_an_unknown_launcher_are_rejected(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert process_count(TrainerOptions(devices=2)) == 2
    with pytest.raises(InputError, match=f"according to {name}, 2 processes were started, .* give 1; start them with"):
        process_count(TrainerOptions())


def test_without_a_launcher_one_process_trains():
    assert distribution_options(TrainerOptions()) == {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    assert process_count(TrainerOptions(devices=2, num_nodes=2)) == 4


def test_shipped_configurations_take_the_number_of_processes_from_the_launcher():
    for path in pathlib.Path(pix2pixhd.__file__).with_name("configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text()).get("trainer", {}).get("devices", "auto") == "auto", path


@pytest.mark.slow
def test_torchrun_with_another_number_of_devices_is_rejected_before_training(command_line, tmp_path):
    codes, printed = run_command_under_torchrun(tmp_path / "processes", command_line("--trainer.devices=1"))
    assert 2 in codes
    assert printed.count("torchrun started 2 processes on this machine, trainer.devices is 1") == 1, printed
    assert not (tmp_path / "run").exists()
