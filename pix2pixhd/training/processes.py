"""How many processes train together, and how they end together when one of them fails."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from pix2pixhd.config.schema.trainer import TrainerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.distributed import AveragedGradients, rank
from pix2pixhd.training.first_process import launcher

__all__ = ["ending_together", "process_count", "raise_together", "spread"]

# Set by mpirun and by scripts that start the processes themselves. Lightning sets WORLD_SIZE for its own processes.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

# How long the others stay after an error that all have found: launchers end all processes as soon as one ends, and the
# first has yet to print its message.
_STAY_SECONDS = 5.0
# How long the first process lets those that it started print their own messages and end.
_CHILD_SECONDS = 5.0


def _started() -> tuple[str, int, int] | None:
    """The launcher's name, and how many processes per machine and machines it started; None without a launcher.

    Raises:
        InputError: If SLURM's variables contradict each other.
    """
    cluster = launcher()
    if cluster is None:
        return None
    if not isinstance(cluster, SLURMEnvironment):
        local = int(os.environ.get("LOCAL_WORLD_SIZE", cluster.world_size()))
        return "torchrun", local, int(os.environ.get("GROUP_WORLD_SIZE", cluster.world_size() // local))
    total = cluster.world_size()
    if total == 1:
        return "SLURM", 1, 1
    local, nodes = int(os.environ["SLURM_NTASKS_PER_NODE"]), int(os.environ.get("SLURM_NNODES", 1))
    if local * nodes != total:
        raise InputError(
            f"SLURM: there are {total} tasks (SLURM_NTASKS) on {nodes} machines, but {local} per machine "
            "(SLURM_NTASKS_PER_NODE); start as many on every machine with srun --nodes and --ntasks-per-node"
        )
    return "SLURM", local, nodes


def _local(devices: int | str | list[int]) -> int:
    """Number of processes per machine that ``trainer.devices`` asks for."""
    if isinstance(devices, list):
        return len(devices)
    return torch.cuda.device_count() if devices == -1 else int(devices)


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else what + 'es' if what.endswith('s') else what + 's'}"


def _layout(options: TrainerOptions) -> tuple[int | str | list[int], int]:
    """``devices`` and ``num_nodes``, with those of the launcher where they are left open.

    Raises:
        InputError: If they differ from what the launcher started: every process, or every group of them, would train
            on its own and write into the same folder.
    """
    devices, nodes, started = options.devices, options.num_nodes, _started()
    if started is None:
        devices = 1 if devices == "auto" else devices
        _check_world_size(_local(devices) * nodes)
        return devices, nodes
    name, local, machines = started
    if devices == "auto":
        devices, nodes = local, machines if nodes == 1 else nodes
    if _local(devices) != local:
        raise InputError(
            f"trainer.devices: {name} started {_count(local, 'process')} on this machine, trainer.devices is "
            f"{options.devices}; set auto"
        )
    if nodes != machines:
        raise InputError(
            f"trainer.num_nodes: {name} started processes on {_count(machines, 'machine')}, trainer.num_nodes is "
            f"{options.num_nodes}; set it to {machines}"
        )
    return devices, nodes


def _check_world_size(total: int) -> None:
    for name in _WORLD_SIZES:
        started = os.environ.get(name, "1")
        if started.isdigit() and int(started) not in (1, total):
            raise InputError(
                f"trainer.devices: {name} says that {started} processes were started, trainer.devices and "
                f"trainer.num_nodes make {total}; start them with torchrun or srun, or start one"
            )


def process_count(options: TrainerOptions) -> int:
    """How many processes train together.

    Raises:
        InputError: If ``devices`` and ``num_nodes`` differ from what torchrun or SLURM started.

    Example:
        >>> process_count(TrainerOptions(devices=2))
        2
    """
    devices, nodes = _layout(options)
    return _local(devices) * nodes


def spread(options: TrainerOptions) -> Mapping[str, Any]:
    """Lightning's ``devices``, ``num_nodes`` and ``strategy``; raises as ``process_count`` does."""
    devices, nodes = _layout(options)
    several = _local(devices) > 1 or nodes > 1
    return {
        "devices": devices,
        "num_nodes": nodes,
        "strategy": AveragedGradients() if several else options.strategy,
    }


def raise_together(error: InputError | None) -> None:
    """Raises an error that all processes have found, so that it is printed once.

    Raises:
        InputError: In the first process.
        SystemExit: In the others, with code 2 and without a message.
    """
    if error is None:
        return
    if rank() == 0:
        raise error
    time.sleep(_STAY_SECONDS)
    raise SystemExit(2)


@contextlib.contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Ends a run of several processes with the message of the one that failed.

    The others notice only that a connection was closed; the processes that Lightning started, perhaps nothing at all.

    Raises:
        InputError: In place of the error of a closed connection.
    """
    try:
        yield
    except Exception as error:
        _end_children(trainer)
        if trainer.world_size > 1 and _is_closed_connection(error):
            raise InputError(
                "another process of this run ended, so this one cannot continue; see the message of that one"
            ) from error
        raise


def _is_closed_connection(error: Exception) -> bool:
    # gloo raises plain RuntimeErrors.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and re.search(r"\bgloo\b|closed by peer|reset by peer", str(error)) is not None
    )


def _end_children(trainer: pl.Trainer) -> None:
    """Waits for the processes that Lightning started from this one, and ends those that do not end by themselves."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    children = list(launcher.procs)
    launcher.procs.clear()  # Lightning watches this list, and kills this process when one of them fails
    deadline = time.monotonic() + _CHILD_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
