"""Training in several processes: gradients are averaged between them, explicitly.

The step runs several backwards through one forward, and stops some of them at pictures; ``DistributedDataParallel``,
which counts on one backward that reaches every parameter, cannot be wrapped around that. What it would do is little:
give every process the same weights to start with, and average the gradients.
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
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's state, in order, on the first process; an empty list on the others.

    Args:
        state: Tensors, numbers and strings.
    """
    if world_size() == 1:
        return [state]
    states: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(state, states)
    return states or []


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Lists of tensors of one type, each of about the size that keeps a network busy."""
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
    """Averages gradients between all processes, while other work goes on.

    Example:
        >>> averager = GradientAverager()
        >>> averager.start(torch.nn.Linear(2, 2))  # without other processes there is nothing to do
        >>> averager.finish()
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Any, Tensor, Sequence[Tensor]]] = []

    def start(self, network: nn.Module) -> None:
        """Begins to average the gradients of a network, which must not change until ``finish``."""
        if world_size() == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._pending.append((dist.all_reduce(flat, async_op=True), flat, bucket))

    def finish(self) -> None:
        """Waits, and puts the averages in place."""
        for work, flat, bucket in self._pending:
            work.wait()
            flat /= world_size()
            for gradient, average in zip(bucket, torch.split(flat, [x.numel() for x in bucket]), strict=True):
                gradient.copy_(average.view_as(gradient))
        self._pending.clear()


def share_buffers(networks: Iterable[nn.Module]) -> None:
    """Gives every process the first one's buffers, as ``DistributedDataParallel`` does.

    Batch norm's running statistics are the only ones. They validate, generate and go into checkpoints, of which there
    is one for all processes.
    """
    if world_size() > 1:
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class AveragedGradients(DDPStrategy):
    """Lightning's strategy for several processes, without ``DistributedDataParallel`` around the module."""

    def configure_ddp(self) -> None:
        """Gives every process the weights of the first."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.data, src=0)
