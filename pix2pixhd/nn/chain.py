"""Lean evaluation of a sequence of layers.

In ``[pad] conv [norm] [act] [pad] conv …`` these parts are computed by the Functions of ``pix2pixhd.nn.functions``:
a norm with the activation and the padding that follow, a padding before a convolution, and a convolution whose input
is the result of one of both, also if another chain computed that. All other layers are called. What is lean is decided
on every call from the layers' current state; nothing is cached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pix2pixhd.nn.concatenation import convolve_parts, parts_of
from pix2pixhd.nn.functions import ConvSpec, NormSpec, Recipe, Statistics, convolve, normalise, recall, remember
from pix2pixhd.nn.layers import InstanceNorm2d, InstanceNormAct2d
from pix2pixhd.nn.state import is_plain_image, is_plain_tensor, is_unmodified
from pix2pixhd.ops.norm_act import LEAKY_RELU, REFLECT, RELU, REPLICATE, ZERO
from pix2pixhd.ops.norm_act_reference import memory_format_of

__all__ = ["run_chain"]

_PADS = {nn.ReflectionPad2d: REFLECT, nn.ReplicationPad2d: REPLICATE, nn.ZeroPad2d: ZERO}


def run_chain(layers: Sequence[nn.Module], x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Apply the layers one after another, as ``nn.Sequential`` does, and add ``residual``.

    A norm at the end, or a norm and an activation, adds it in its own pass.
    """
    position = 0
    while position < len(layers):
        rest = layers[position:]
        count, spec = _read_norm(rest, x)
        if spec is not None and count == len(rest) and residual is not None and _adds_residual(spec, x, residual):
            return _normalise(rest[0], x, dataclasses.replace(spec, keep_output=False), residual)[0]
        count, x = _advance(rest, x) if spec is None else _from_norm(rest, x, count, spec)
        position += count
    return x if residual is None else residual + x


def _adds_residual(spec: NormSpec, x: Tensor, residual: Tensor) -> bool:
    """Whether a norm of ``x`` may add the residual: no broadcasting, promotion of dtypes or copy to another layout."""
    if not is_plain_image(residual) or any(spec.padding):
        return False
    same = residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device
    return same and residual.is_contiguous(memory_format=memory_format_of(x))


def _advance(layers: Sequence[nn.Module], x: Tensor) -> tuple[int, Tensor]:
    """Apply the first layers, which are not a norm; return their number and the result."""
    parts = parts_of(x) if is_plain_image(x) else None
    if parts is not None and is_unmodified(layers[0], nn.Conv2d) and _is_lean_conv(layers[0], x):
        conv: Any = layers[0]
        if conv.groups == 1:
            return 1, convolve_parts(x, parts, conv.weight, conv.bias, _conv_spec(conv, x))
    recipe = recall(x) if is_plain_image(x) else None
    if recipe is not None and _is_lean_conv(layers[0], x):
        return 1, _convolve(layers[0], x, recipe)
    pad = _read_pad(layers[0], NormSpec()) if len(layers) > 1 and is_plain_image(x) else None
    if pad is None or not _is_lean_conv(layers[1], x):
        return 1, layers[0](x)
    y, padding, _ = normalise(x, None, None, pad)
    if recipe is not None and not any(recipe.spec.padding):
        spec = dataclasses.replace(recipe.spec, padding=pad.padding, padding_mode=pad.padding_mode)
        padding = recipe._replace(spec=spec)
    return 2, _convolve(layers[1], y, padding)


def _from_norm(layers: Sequence[nn.Module], x: Tensor, count: int, spec: NormSpec) -> tuple[int, Tensor]:
    """Apply ``count`` layers, which begin with a norm and are described by ``spec``, and a convolution that follows."""
    follows = len(layers) > count and _is_lean_conv(layers[count], x)
    if spec.keep_output and not follows:
        # The caller may modify the result in place if neither PyTorch's activation nor a convolution saves it.
        spec = dataclasses.replace(spec, keep_output=_saves_output(layers[count - 1]))
    y, recipe = _normalise(layers[0], x, spec)
    if spec.keep_output:
        return count, y
    if follows:
        return count + 1, _convolve(layers[count], y, recipe)
    remember(y, recipe)
    return count, y


def _convolve(conv: Any, y: Tensor, recipe: Recipe) -> Tensor:
    return convolve(y, conv.weight, conv.bias, recipe, _conv_spec(conv, y))


def _read_norm(layers: Sequence[nn.Module], x: Tensor) -> tuple[int, NormSpec | None]:
    """Read a norm, and the activation and padding that follow; return their number and constants."""
    norm: Any = layers[0]
    statistics = _statistics(norm, x)
    if statistics is Statistics.NONE:
        return 0, None
    if isinstance(norm, InstanceNormAct2d):
        return 1, norm.spec
    spec, count = NormSpec(statistics, norm.eps), 1
    if len(layers) > count and (activated := _read_activation(layers[count], spec)) is not None:
        spec, count = activated, count + 1
    invertible = spec.activation == LEAKY_RELU and spec.slope > 0 and norm.weight is None and norm.bias is None
    if invertible and spec.through_statistics:
        return count, dataclasses.replace(spec, keep_output=True)
    # Padding alone saves nothing, so it belongs to the convolution that follows.
    if len(layers) > count + 1 and _is_lean_conv(layers[count + 1], x):
        padded = _read_pad(layers[count], spec)
        spec, count = (spec, count) if padded is None else (padded, count + 1)
    return count, spec


def _statistics(norm: nn.Module, x: Tensor) -> Statistics:
    """Return the source of the statistics; NONE if the layer is not a norm that is computed here.

    Inputs that the layer rejects, of one pixel or another number of channels, are left to it.
    """
    kinds = (nn.BatchNorm2d, nn.InstanceNorm2d, InstanceNorm2d, InstanceNormAct2d)
    if not (is_plain_image(x) and any(is_unmodified(norm, kind) for kind in kinds)) or is_parametrized(norm):
        return Statistics.NONE
    assert isinstance(norm, (nn.InstanceNorm2d, nn.BatchNorm2d))
    tensors = [t for t in (norm.weight, norm.bias) if t is not None]
    if any(not is_plain_tensor(t) or t.dtype not in (x.dtype, torch.float32) for t in tensors):
        return Statistics.NONE
    if x.shape[1] != norm.num_features or (norm.weight is None) != (norm.bias is None):
        return Statistics.NONE
    pixels = x.shape[2] * x.shape[3]
    if isinstance(norm, nn.InstanceNorm2d):
        return Statistics.IMAGE if pixels > 1 and not norm.track_running_stats else Statistics.NONE
    if norm.training or (norm.running_mean is None and norm.running_var is None):
        return Statistics.BATCH if pixels * x.shape[0] > 1 else Statistics.NONE
    return Statistics.CONSTANT


def _read_activation(layer: nn.Module, spec: NormSpec) -> NormSpec | None:
    if is_unmodified(layer, nn.ReLU):
        return dataclasses.replace(spec, activation=RELU)
    if is_unmodified(layer, nn.LeakyReLU):
        assert isinstance(layer, nn.LeakyReLU)
        return dataclasses.replace(spec, activation=LEAKY_RELU, slope=layer.negative_slope)
    return None


def _saves_output(layer: nn.Module) -> bool:
    """Whether PyTorch saves the output of this activation, too."""
    return isinstance(layer, InstanceNormAct2d) or (isinstance(layer, nn.LeakyReLU) and layer.inplace)


def _read_pad(layer: nn.Module, spec: NormSpec) -> NormSpec | None:
    for kind, mode in _PADS.items():
        if is_unmodified(layer, kind):
            padding = cast("tuple[int, int, int, int]", layer.padding)
            return dataclasses.replace(spec, padding=padding, padding_mode=mode) if min(padding) >= 0 else None
    return None


def _is_lean_conv(layer: Any, x: Tensor) -> bool:
    if is_unmodified(layer, nn.Conv2d):
        supported = type(layer)._conv_forward is nn.Conv2d._conv_forward and _zero_padding(layer) is not None
    else:
        supported = is_unmodified(layer, nn.ConvTranspose2d)
    return (
        supported
        and bool(layer.padding_mode == "zeros")
        and layer.in_channels == x.shape[1]
        and all(t is None or is_plain_tensor(t) for t in _weights(layer))
    )


def _weights(layer: nn.Conv2d | nn.ConvTranspose2d) -> Iterable[Tensor | None]:
    """Return weight and bias, or what they are computed from: spectral norm updates its vectors on every access."""
    return layer.parameters() if is_parametrized(layer) else (layer.weight, layer.bias)


def _zero_padding(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...] | None:
    """Return a convolution's padding of both dimensions; None if it differs between opposite sides."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    left, right, top, bottom = conv._reversed_padding_repeated_twice  # zeros for "valid"
    return (top, left) if left == right and top == bottom else None


def _conv_spec(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> ConvSpec:
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return ConvSpec(
        torch.get_autocast_dtype(device) if autocast else None,
        conv.stride,
        _zero_padding(conv) or (0, 0),
        conv.dilation,
        conv.transposed,
        conv.output_padding,
        conv.groups,
    )


def _normalise(norm: nn.Module, x: Tensor, spec: NormSpec, residual: Tensor | None = None) -> tuple[Tensor, Recipe]:
    assert isinstance(norm, (nn.InstanceNorm2d, nn.BatchNorm2d))
    mean = rstd = None
    if spec.statistics is Statistics.CONSTANT:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # Copies, because training the same layer before the backward would modify the buffers.
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean = norm.running_mean.to(wide, copy=True)[None]
        rstd = (norm.running_var.to(wide) + spec.eps).rsqrt()[None]
    y, recipe, var = normalise(x, norm.weight, norm.bias, spec, mean, rstd, residual)
    if isinstance(norm, nn.BatchNorm2d) and norm.training and norm.track_running_stats:
        _update_statistics(norm, recipe.mean, var, x.numel() // x.shape[1])
    return y, recipe


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor | None, var: Tensor | None, count: int) -> None:
    """Update the running statistics as ``nn.BatchNorm2d`` does."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    momentum = momentum or 0.0
    unbiased = None if var is None else var * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None and new is not None:
            running.copy_((1 - momentum) * running + momentum * new[0])
