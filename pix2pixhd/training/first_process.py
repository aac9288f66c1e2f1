"""Checks that only the first of several processes runs, before they have a process group."""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from pix2pixhd.errors import InputError

__all__ = ["launcher", "on_first_process"]

_CONNECT = datetime.timedelta(minutes=30)
# Decoding a large dataset from a slow disk takes longer than any default of torch.distributed.
_CHECK = datetime.timedelta(days=2)
# How long a failing first process lets the others start and read that it failed. It serves the store they ask.
_FAREWELL_SECONDS = 30.0
# How long the others stay after that: launchers end all processes as soon as one ends, and the first has yet to print
# its message.
_STAY_SECONDS = 5.0

_calls = itertools.count()
_stores: list[Store] = []  # a store's server lives as long as the store; the process group shares it later


def launcher() -> ClusterEnvironment | None:
    """The launcher that started all processes at once; None when Lightning or nobody starts others.

    Raises:
        InputError: For SLURM's options that Lightning cannot work with.
    """
    try:
        for environment in (TorchElasticEnvironment, SLURMEnvironment):
            if environment.detect():
                return environment()
    except RuntimeError as error:
        raise InputError(f"SLURM: {error}") from error
    return None


def _connect(cluster: ClusterEnvironment) -> Store:
    # torchrun's agent serves the store; elsewhere the first process does, as it does for the process group.
    serves = cluster.global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(
        cluster.main_address,
        cluster.main_port,
        is_master=serves,
        timeout=_CONNECT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    store.set_timeout(_CHECK)
    _stores.append(store)
    return store


def _lead(check: Callable[[], None], store: Store, key: str, others: int) -> None:
    """Runs the check and publishes its outcome."""
    try:
        check()
    except BaseException:
        store.set(key, "failed")
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while store.add(f"{key}/read", 0) < others and time.monotonic() < deadline:
            time.sleep(0.05)
        raise
    store.set(key, "passed")


def _follow(store: Store, key: str) -> None:
    """Waits for the outcome; ends this process without a message when the first one has reported an error."""
    outcome = store.get(key)
    store.add(f"{key}/read", 1)
    if outcome != b"passed":
        time.sleep(_STAY_SECONDS)
        raise SystemExit(2)


def _in_group(check: Callable[[], None]) -> None:
    """The same where the caller has created a process group already."""
    group: Any = dist.new_group(backend="gloo", timeout=_CHECK)
    outcome: list[object] = [True]
    try:
        if dist.get_rank() == 0:
            outcome = [False]
            check()
            outcome = [True]
    finally:
        dist.broadcast_object_list(outcome, src=0, group=group)
        dist.destroy_process_group(group)
    if not outcome[0]:
        raise SystemExit(2)


def on_first_process(check: Callable[[], None]) -> None:
    """Runs a check in the first process; the others wait until it is finished and trust it.

    Under torchrun and SLURM all processes start at once and exchange the outcome through the store at the main address
    and port. Lightning's own launcher starts the others after the check in the first process, so they only skip it.

    Args:
        check: Raises when the run must not begin.

    Raises:
        SystemExit: In the other processes, with code 2 and without a message, when the check raised in the first one.
        InputError: In the other processes, when the first one ended without an outcome.
    """
    if dist.is_available() and dist.is_initialized():
        return _in_group(check)
    cluster = launcher()
    if cluster is None or cluster.world_size() == 1:
        return check() if int(os.environ.get("LOCAL_RANK", 0)) == 0 else None
    rank = cluster.global_rank()
    key = f"pix2pixhd/check/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_calls)}"
    try:
        store = _connect(cluster)
        if rank > 0:
            return _follow(store, key)
    except RuntimeError as error:  # torch.distributed's errors derive from it
        if rank > 0:
            raise InputError(
                f"process {rank}: the first process, at {cluster.main_address}:{cluster.main_port}, ended or cannot be "
                f"reached ({str(error).splitlines()[0]}); see its own message, and MASTER_ADDR and MASTER_PORT"
            ) from error
        return check()  # the port is taken: the process group reports it if this run is to have one
    return _lead(check, store, key, cluster.world_size() - 1)
