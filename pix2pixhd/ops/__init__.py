"""scaffold, to be replaced: reference only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from pix2pixhd.ops import reference

__all__ = ["backend", "hinge_loss", "lsgan_loss", "mean_loss", "multi_l1_loss"]


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    yield


def _w(n: int, weights: Sequence[float] | None) -> list[float]:
    return [1.0] * n if weights is None else list(weights)


def multi_l1_loss(inputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    return reference.multi_l1_loss(inputs, targets, _w(len(inputs), weights))


def lsgan_loss(preds: Sequence[Tensor], target: float | Sequence[float], weights: Sequence[float] | None = None) -> Tensor:
    t = [float(target)] * len(preds) if isinstance(target, (int, float)) else list(target)
    return reference.lsgan_loss(preds, t, _w(len(preds), weights))


def hinge_loss(preds: Sequence[Tensor], target_is_real: bool, weights: Sequence[float] | None = None) -> Tensor:
    return reference.hinge_loss(preds, [1.0 if target_is_real else -1.0] * len(preds), _w(len(preds), weights))


def mean_loss(preds: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    return reference.mean_loss(preds, _w(len(preds), weights))
