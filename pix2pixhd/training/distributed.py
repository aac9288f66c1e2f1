"""Distributed training with explicit averaging of the gradients.

The step runs several backward passes through one forward, and some of them stop at the images. That is not possible
with ``DistributedDataParallel``, which expects one backward pass that reaches every parameter. This module replaces the
two things it would do: it broadcasts the initial weights and averages the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

__all__ = ["AveragedGradients", "GradientAverager", "gather_states", "rank", "share_buffers", "world_size"]

_BUCKET_BYTES = 25 * 2**20


def world_size() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Gathers the states of all processes, ordered by rank, in the first process; the others get an empty list.

    Args:
        state: The state of this process: tensors, numbers and strings.
    """
    if world_size() == 1:
        return [state]
    states: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(state, states)
    return states or []


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups tensors of the same dtype into buckets large enough for an efficient all-reduce."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not buckets or size >= _BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


class GradientAverager:
    """Averages gradients between all processes, asynchronously.

    Example:
        >>> averager = GradientAverager()
        >>> averager.start(torch.nn.Linear(2, 2))  # no effect with a single process
        >>> averager.finish()
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Any, Tensor, Sequence[Tensor]]] = []

    def start(self, network: nn.Module) -> None:
        """Starts to average the gradients of a network. They must not change until ``finish``."""
        if world_size() == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._pending.append((dist.all_reduce(flat, async_op=True), flat, bucket))

    def finish(self) -> None:
        """Waits for the averages and writes them into the gradients."""
        for work, flat, bucket in self._pending:
            work.wait()
            flat /= world_size()
            for gradient, average in zip(bucket, torch.split(flat, [x.numel() for x in bucket]), strict=True):
                gradient.copy_(average.view_as(gradient))
        self._pending.clear()


def share_buffers(networks: Iterable[nn.Module]) -> None:
    """Broadcasts the buffers of the first process, as ``DistributedDataParallel`` does.

    The only buffers are batch norm's running statistics. Validation, generation and the checkpoint, which the first
    process writes for all, use them.
    """
    if world_size() > 1:
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class AveragedGradients(DDPStrategy):
    """Lightning's DDP strategy without the ``DistributedDataParallel`` wrapper around the module."""

    def configure_ddp(self) -> None:
        """Broadcasts the weights of the first process."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.data, src=0)
