"""Normalization of discriminator outputs: scales of layers, where the last layer is the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from torch import Tensor

# NVIDIA's discriminator returns a list over scales of lists over layers. A single scale or a single prediction is
# accepted as well.
Prediction: TypeAlias = "Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]"

# A normalized prediction: scales of layers. A public loss normalizes each argument once and passes this on.
Scales: TypeAlias = list[list[Tensor]]


def _checked(name: str, pred: object) -> Sequence[object]:
    if not isinstance(pred, (list, tuple)):
        raise TypeError(f"{name} must be a tensor or a list, got {type(pred).__name__}")
    if not pred:
        raise ValueError(f"{name} is an empty list; pass what the discriminator returned")
    return pred


def as_scales(name: str, pred: Prediction, flat_list_of: str = "layers") -> Scales:
    """Converts a discriminator output to a list over scales of lists over layers.

    Args:
        name: Name of ``pred`` in error messages.
        pred: A tensor, a list of tensors, or a list of lists of tensors.
        flat_list_of: Interpretation of a flat list of tensors: ``"layers"`` of one scale, as in pix2pixHD, or
            ``"scales"`` with one prediction each, as in SPADE without intermediate features.

    Raises:
        TypeError: If ``pred`` has another type.
        ValueError: If a list is empty.
    """
    if isinstance(pred, Tensor):
        return [[pred]]
    entries = _checked(name, pred)
    if all(isinstance(entry, Tensor) for entry in entries):
        flat = cast("list[Tensor]", list(entries))
        return [[entry] for entry in flat] if flat_list_of == "scales" else [flat]
    scales: Scales = []
    for k, entry in enumerate(entries):
        layers = [entry] if isinstance(entry, Tensor) else _checked(f"{name}[{k}]", entry)
        for j, layer in enumerate(layers):
            if not isinstance(layer, Tensor):
                raise TypeError(f"{name}[{k}][{j}] must be a tensor, got {type(layer).__name__}")
        scales.append(cast("list[Tensor]", list(layers)))
    return scales
