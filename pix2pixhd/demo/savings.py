"""What the fused losses save against plain PyTorch, on the feature maps of a run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import pix2pixhd
from pix2pixhd.config.schema import LossOptions
from pix2pixhd.training.module import Pix2PixHD, generator_loss

__all__ = ["Savings", "measure_savings"]

_REPEATS = 30


@dataclasses.dataclass(frozen=True)
class Cost:
    """One implementation's cost per step.

    Attributes:
        seconds: Median duration of the losses' forward and backward.
        kept: Bytes kept between forward and backward beyond what the networks hold anyway.
    """

    seconds: float
    kept: int


@dataclasses.dataclass(frozen=True)
class Savings:
    """Fused against plain PyTorch.

    Attributes:
        fused: What ``backend("auto")`` takes; plain PyTorch too where the extension was not built.
        plain: Plain PyTorch.
        elements: Elements of the feature maps, real and generated together.
    """

    fused: Cost
    plain: Cost
    elements: int

    @property
    def ratio(self) -> float:
        """How many times faster the fused losses are."""
        return self.plain.seconds / self.fused.seconds


def _kept_bytes(step: Callable[[], Tensor]) -> int:
    """Bytes that a forward saves for its backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()  # alive until its storages have been counted
    del loss
    return sum(kept.values())


def measure_savings(module: Pix2PixHD, condition: Tensor, fake: Tensor, real: Tensor) -> Savings:
    """Times the losses alone, fused and plain by turns, on the discriminator's own features of one batch.

    Args:
        module: A training module.
        condition: The encoded input ``[N, C, H, W]``.
        fake: Generated pictures ``[N, C, H, W]``.
        real: Real pictures ``[N, C, H, W]``.

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
        for backend, taken in durations.items():
            seconds = once(backend)
            if repeat >= 5:
                taken.append(seconds)
    kept = {}
    for backend in durations:
        with pix2pixhd.backend(backend):
            kept[backend] = _kept_bytes(forward)
    fused, plain = (Cost(statistics.median(durations[name]), kept[name]) for name in ("auto", "reference"))
    return Savings(fused, plain, sum(x.numel() for x in features))
