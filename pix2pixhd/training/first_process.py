"""Runs checks in the first of several processes only, before a process group exists."""

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
# How long a failed first process waits for the others to start and read its outcome, since it hosts the store.
_FAILURE_WAIT_SECONDS = 30.0
# How long the others wait after reading a failure. Launchers end all processes as soon as one ends, and the first one
# must be able to print its message before.
_EXIT_DELAY_SECONDS = 5.0

_calls = itertools.count()
_stores: list[Store] = []  # keeps the stores' servers alive; the process group uses the server later


def launcher() -> ClusterEnvironment | None:
    """Returns the launcher that started all processes; None if Lightning starts the others or there are none.

    Raises:
        InputError: For SLURM options that Lightning does not support.
    """
    try:
        for environment in (TorchElasticEnvironment, SLURMEnvironment):
            if environment.detect():
                return environment()
    except RuntimeError as error:
        raise InputError(f"SLURM: {error}") from error
    return None


def _connect(cluster: ClusterEnvironment) -> Store:
    # torchrun's agent hosts the store; otherwise the first process does, as for the process group.
    is_host = cluster.global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(
        cluster.main_address,
        cluster.main_port,
        is_master=is_host,
        timeout=_CONNECT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    store.set_timeout(_CHECK)
    _stores.append(store)
    return store


def _lead(check: Callable[[], None], store: Store, key: str, others: int) -> None:
    """Runs the check and publishes its outcome in the store."""
    try:
        check()
    except BaseException:
        store.set(key, "failed")
        deadline = time.monotonic() + _FAILURE_WAIT_SECONDS
        while store.add(f"{key}/read", 0) < others and time.monotonic() < deadline:
            time.sleep(0.05)
        raise
    store.set(key, "passed")


def _follow(store: Store, key: str) -> None:
    """Waits for the outcome; exits without a message if the first process reported an error."""
    outcome = store.get(key)
    store.add(f"{key}/read", 1)
    if outcome != b"passed":
        time.sleep(_EXIT_DELAY_SECONDS)
        raise SystemExit(2)


def _in_group(check: Callable[[], None]) -> None:
    """Runs the check in the first process of an existing process group and broadcasts its outcome."""
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
    """Runs a check in the first process, while the others wait for its outcome.

    Under torchrun and SLURM all processes start at once and exchange the outcome through the store at the main address
    and port. Lightning's own launcher starts the others after the check in the first process, so they skip the check.

    Args:
        check: Raises an exception if the run must not start.

    Raises:
        SystemExit: In the other processes, with code 2 and without a message, if the check raised in the first one.
        InputError: In the other processes, if the first one ended without an outcome.
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
        return check()  # the port is in use; the process group reports that if this run creates one
    return _lead(check, store, key, cluster.world_size() - 1)
