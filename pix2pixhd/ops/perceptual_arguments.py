"""Checks of the arguments of the perceptual loss's operator, which anyone may call through ``torch.ops``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pix2pixhd.ops.conv_stack import POOL, POOLED_KINDS, RELU, TAP, TAP_POOL, TAPPED_KINDS, ConvStack
from pix2pixhd.ops.perceptual_distance import DISTANCES, Comparison

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check(name: str, tensor: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Check one tensor's shape, dtype and device."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"pix2pixhd.perceptual_loss: {name} must have shape {[*shape]}, got {[*tensor.shape]}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            f"pix2pixhd.perceptual_loss: {name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}; "
            "convert it, for example with .float()"
        )
    if tensor.device != like.device or tensor.layout != torch.strided:
        raise ValueError(
            f"pix2pixhd.perceptual_loss: {name} must be a dense tensor on {like.device}, the device of fake, got a "
            f"{tensor.layout} tensor on {tensor.device}; convert it with .to_dense() or .to()"
        )


def _check_count(name: str, values: Sequence[object], count: int, per: str) -> None:
    if len(values) != count:
        raise ValueError(f"pix2pixhd.perceptual_loss: {name} must hold {count} elements, {per}, got {len(values)}")


def _check_stack(stack: ConvStack, fake: Tensor) -> None:
    kinds = stack.layer_kinds
    if not kinds or set(kinds) - {RELU, TAP, POOL, TAP_POOL}:
        raise ValueError(
            f"pix2pixhd.perceptual_loss: layer_kinds must hold one of {RELU}, {TAP}, {POOL} and {TAP_POOL} per "
            f"convolution, got {kinds!r}"
        )
    _check_count("weights", stack.weights, len(kinds), "one per convolution")
    _check_count("biases", stack.biases, len(kinds), "one per convolution")
    channels, device = fake.shape[1], fake.device
    for k, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
        out = weight.shape[:1]
        if (
            weight.shape[1:] != (channels, 3, 3)
            or bias.shape != out
            or out[0] % 32
            or not weight.dtype == bias.dtype in _DTYPES
            or not weight.device == bias.device == device
            or not weight.layout == bias.layout == torch.strided
        ):
            raise ValueError(
                f"pix2pixhd.perceptual_loss: weights[{k}] must be [out, {channels}, 3, 3], out a multiple of 32, and "
                f"biases[{k}] [out], both dense, of one floating-point dtype and on {device}, got {weight.dtype} "
                f"{[*weight.shape]} on {weight.device} and {bias.dtype} {[*bias.shape]} on {bias.device}"
            )
        channels = out[0]


def check_arguments(
    fake: Tensor,
    real: Tensor | None,
    features: Sequence[Tensor],
    weight_map: Tensor | None,
    stack: ConvStack,
    comparison: Comparison,
    dtype: torch.dtype,
    memory_limit: int | None,
) -> None:
    """Check the arguments of one call; see ``perceptual.perceptual_loss``.

    Raises:
        TypeError: If a dtype is not supported.
        ValueError: If shapes, lengths or devices do not match, or an option has an unknown value.
    """
    if fake is None or fake.dim() != 4:
        shape = None if fake is None else [*fake.shape]
        raise ValueError(f"pix2pixhd.perceptual_loss: fake must be images [N, C, H, W], got {shape}")
    images, _, height, width = fake.shape
    _check("fake", fake, fake.shape, fake)
    if dtype not in _DTYPES:
        raise TypeError(f"pix2pixhd.perceptual_loss: dtype must be floating-point, of 16 to 64 bits, got {dtype}")
    if comparison.distance not in DISTANCES:
        names = ", ".join(DISTANCES)
        raise ValueError(f"pix2pixhd.perceptual_loss: distance must be one of {names}, got {comparison.distance!r}")
    if memory_limit is not None and memory_limit < 0:
        raise ValueError(f"pix2pixhd.perceptual_loss: memory_limit must be at least 0 bytes, got {memory_limit}")
    _check_stack(stack, fake)
    taps, stage = [], 0
    for kind, channels in zip(stack.layer_kinds, stack.channels, strict=True):
        if kind in TAPPED_KINDS:
            taps.append((images, channels, height >> stage, width >> stage))
        stage += kind in POOLED_KINDS
    _check_count("layer_weights", comparison.layer_weights, len(taps), "one per tapped feature map")
    has_linear = DISTANCES[comparison.distance].has_linear
    _check_count("linear", comparison.linear, len(taps) * has_linear, f"for the distance {comparison.distance}")
    for k, (linear, tap) in enumerate(zip(comparison.linear, taps, strict=False)):
        _check(f"linear[{k}]", linear, tap[1:2], fake)
    _check_count("features", features, len(taps) if real is None else 0, "one per tapped feature map without real")
    for k, (feature_map, tap) in enumerate(zip(features, taps, strict=False)):
        _check(f"features[{k}]", feature_map, tap, fake)
    if real is not None:
        _check("real", real, fake.shape, fake)
    if weight_map is not None:
        # At lower scales the map still has the size of the original images.
        size = weight_map.shape[2:] if weight_map.dim() == 4 else (height, width)
        _check("weight_map", weight_map, (images, 1, *size), fake)
