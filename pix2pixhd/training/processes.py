"""The number of processes that train together, and their common end if one of them fails."""

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

__all__ = ["distribution_options", "ending_together", "process_count", "raise_together"]

# Set by mpirun and by scripts that start the processes themselves. Lightning sets WORLD_SIZE for its own processes.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

# How long the others wait after an error in all processes. Launchers end all processes as soon as one ends, and the
# first one must be able to print its message before.
_EXIT_DELAY_SECONDS = 5.0
# How long the first process waits for its child processes to print their messages and end.
_CHILD_SECONDS = 5.0


def _started() -> tuple[str, int, int] | None:
    """Returns the launcher's name and its numbers of processes per machine and of machines; None without a launcher.

    Raises:
        InputError: If SLURM's variables are inconsistent.
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
    """Returns the number of processes per machine for a value of ``trainer.devices``."""
    if isinstance(devices, list):
        return len(devices)
    return torch.cuda.device_count() if devices == -1 else int(devices)


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else what + 'es' if what.endswith('s') else what + 's'}"


def _layout(options: TrainerOptions) -> tuple[int | str | list[int], int]:
    """Returns ``devices`` and ``num_nodes``, with unset values taken from the launcher.

    Raises:
        InputError: If they differ from what the launcher started. Every process or group of processes would otherwise
            train independently and write into the same folder.
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
                f"trainer.devices: according to {name}, {started} processes were started, but trainer.devices and "
                f"trainer.num_nodes give {total}; start them with torchrun or srun, or start one"
            )


def process_count(options: TrainerOptions) -> int:
    """Returns the number of processes that train together.

    Raises:
        InputError: If ``devices`` and ``num_nodes`` differ from what torchrun or SLURM started.

    Example:
        >>> process_count(TrainerOptions(devices=2))
        2
    """
    devices, nodes = _layout(options)
    return _local(devices) * nodes


def distribution_options(options: TrainerOptions) -> Mapping[str, Any]:
    """Returns Lightning's ``devices``, ``num_nodes`` and ``strategy``.

    Raises:
        InputError: As in ``process_count``.
    """
    devices, nodes = _layout(options)
    several = _local(devices) > 1 or nodes > 1
    return {
        "devices": devices,
        "num_nodes": nodes,
        "strategy": AveragedGradients() if several else options.strategy,
    }


def raise_together(error: InputError | None) -> None:
    """Raises an error that occurred in all processes, so that it is printed only once.

    Raises:
        InputError: In the first process.
        SystemExit: In the other processes, with code 2 and without a message.
    """
    if error is None:
        return
    if rank() == 0:
        raise error
    time.sleep(_EXIT_DELAY_SECONDS)
    raise SystemExit(2)


@contextlib.contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Ends all processes of a run when one fails, with the error message of that process.

    The other processes otherwise fail with the error of a closed connection. Those that Lightning started may not
    notice the failure at all.

    Raises:
        InputError: In place of the error of a closed connection.
    """
    try:
        yield
    except Exception as error:
        _end_children(trainer)
        if trainer.world_size > 1 and _is_closed_connection(error):
            raise InputError(
                "another process of this run ended, so this one cannot continue; see the error message of that process"
            ) from error
        raise


def _is_closed_connection(error: Exception) -> bool:
    # gloo raises plain RuntimeErrors.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and re.search(r"\bgloo\b|closed by peer|reset by peer", str(error)) is not None
    )


def _end_children(trainer: pl.Trainer) -> None:
    """Waits for the processes that Lightning started from this one, and kills those that do not exit in time."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    children = list(launcher.procs)
    launcher.procs.clear()  # Lightning monitors this list and kills this process if one of them fails
    deadline = time.monotonic() + _CHILD_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
