"""Measurement of the time and memory that the fused losses save, compared with plain PyTorch."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import pix2pixhd
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.training.losses import generator_loss
from pix2pixhd.training.module import Pix2PixHD

__all__ = ["Savings", "measure_savings"]

_REPEATS = 30


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one implementation of the losses per training step.

    Attributes:
        seconds: Median duration of forward and backward.
        saved: Bytes that the losses save for backward, in addition to the networks' activations.
    """

    seconds: float
    saved: int


@dataclasses.dataclass(frozen=True)
class Savings:
    """Costs of the fused losses and of plain PyTorch.

    Attributes:
        fused: Cost with ``backend("auto")``, which is plain PyTorch if the extension was not built.
        plain: Cost with plain PyTorch.
        elements: Total number of elements of the real and generated feature maps.
    """

    fused: Cost
    plain: Cost
    elements: int

    @property
    def ratio(self) -> float:
        """Speed-up of the fused losses."""
        return self.plain.seconds / self.fused.seconds


def _saved_bytes(step: Callable[[], Tensor]) -> int:
    """Measures how many bytes a forward pass saves for backward."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()  # keep the graph until its storages have been counted
    del loss
    return sum(saved.values())


def measure_savings(module: Pix2PixHD, condition: Tensor, fake: Tensor, real: Tensor) -> Savings:
    """Measures the losses, without the networks, on the discriminator's features of one batch.

    Fused losses and plain PyTorch run alternately.

    Args:
        module: A training module.
        condition: The encoded input ``[N, C, H, W]``.
        fake: Generated images ``[N, C, H, W]``.
        real: Real images ``[N, C, H, W]``.

    Returns:
        The costs of both implementations.

    Example:
        >>> savings = measure_savings(module, condition, module(condition), real)  # doctest: +SKIP
    """
    with torch.no_grad():
        pred_real = module.netD(torch.cat([condition, real], dim=1))
        pred_fake = module.netD(torch.cat([condition, fake], dim=1))
    features = [x for scales in (pred_fake, pred_real) for layers in scales for x in layers]
    for x in features:
        x.requires_grad_()
    options = LossOptions(**{**module.hparams["loss"], "lambda_vgg": 0.0})
    loss_G, loss_D = generator_loss(options), module.discriminator_loss

    def forward() -> Tensor:
        total: Tensor = loss_G(pred_fake, pred_real, fake, real).total + loss_D(pred_fake, pred_real).total
        return total

    def once(backend: str) -> float:
        for x in features:
            x.grad = None
        with pix2pixhd.backend(backend):
            start = time.perf_counter()
            torch.autograd.backward(forward())
            return time.perf_counter() - start

    durations: dict[str, list[float]] = {"auto": [], "reference": []}
    for repeat in range(_REPEATS + 5):
        for backend, measured in durations.items():
            seconds = once(backend)
            if repeat >= 5:
                measured.append(seconds)
    saved = {}
    for backend in durations:
        with pix2pixhd.backend(backend):
            saved[backend] = _saved_bytes(forward)
    fused, plain = (Cost(statistics.median(durations[name]), saved[name]) for name in ("auto", "reference"))
    return Savings(fused, plain, sum(x.numel() for x in features))
