"""The perceptual loss and its gradient in one forward pass, with no activation kept: the operator.

With frozen weights the loss is a scalar function of one picture, so its gradient is one picture: it is computed along
with the value (``vgg_pass``), part by part where memory is bounded (``vgg_parts``), and nothing else stays until the
backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pix2pixhd.ops import backend, extension, recycling
from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.perceptual_engine import Chain, PartPass, channels_last, run_part
from pix2pixhd.ops.perceptual_tiling import plan_parts


class Network(NamedTuple):
    """A chain of 3×3 convolutions of stride 1 and padding 1, as the operator takes it.

    Attributes:
        weights: ``[out, in, 3, 3]`` each, out a multiple of 32.
        biases: ``[out]`` each.
        plan: One letter per convolution, see ``pix2pixhd.ops.perceptual_tiling``.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    plan: str


def _has_kernels(loaded: bool, key: str) -> bool:
    return loaded and bool(torch._C._dispatch_has_kernel_for_dispatch_key("pix2pixhd::relu_pool", key))


# Found out at import, as in ``choice``.
_DEVICES = {"cpu": _has_kernels(extension.cpu().loaded, "CPU"), "cuda": _has_kernels(extension.cuda().loaded, "CUDA")}


def can_run(pictures: Tensor) -> bool:
    """Whether the operators for this device are there and chosen."""
    return _DEVICES.get(pictures.device.type, False) and backend.use_fused(pictures)


@torch.library.custom_op("pix2pixhd::perceptual_loss", mutates_args=())
def _perceptual_loss(
    fake: Tensor,
    real: Tensor | None,
    features: list[Tensor],
    weight_map: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    factors: list[float],
    plan: str,
    squared: bool,
    dtype: torch.dtype,
    memory_limit: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    parts = plan_parts(
        plan, [len(b) for b in biases], fake.shape, dtype.itemsize, squared, 1 if real is None else 2, memory_limit
    )
    losses = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    gradient = None
    with torch.no_grad(), torch.autocast(fake.device.type, enabled=False):
        chain = Chain(
            [channels_last(w.to(dtype)) for w in weights],
            [b.to(dtype) for b in biases],
            plan,
            factors,
            squared,
            bias_apart=fake.device.type != "cpu",
        )
        for part in parts:
            one = PartPass(chain, part, with_gradient)
            loss, own = run_part(one, fake, real, features, weight_map, dtype)
            losses[part.first : part.end] += loss
            if own is None:
                continue
            if len(parts) == 1:
                gradient = own
                break
            if gradient is None:
                gradient = torch.zeros_like(fake, dtype=own.dtype, memory_format=torch.channels_last)
            gradient[part.first : part.end, :, part.stages[0].first : part.stages[0].end] += own
    return losses.to(wider(dtype)), fake.new_empty(0) if gradient is None else gradient


@_perceptual_loss.register_fake
def _(
    fake: Tensor,
    real: Tensor | None,
    features: list[Tensor],
    weight_map: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    factors: list[float],
    plan: str,
    squared: bool,
    dtype: torch.dtype,
    memory_limit: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    values = fake.new_empty(fake.shape[0], dtype=wider(dtype))
    if not with_gradient:
        return values, fake.new_empty(0)
    return values, torch.empty_like(fake, dtype=wider(dtype), memory_format=torch.channels_last)


class _RefuseDoubleBackward(torch.autograd.Function):
    """A scalar 0 that raises when it is differentiated with respect to ``fake``.

    Added to a gradient, it turns a second derivative that would be silently missing into an error. The derivative with
    respect to the upstream gradient, in which the gradient is linear, does not pass through it.
    """

    @staticmethod
    def forward(ctx: Any, fake: Tensor) -> Tensor:
        return fake.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(
            "pix2pixhd: VGGLoss was differentiated twice (create_graph=True), and this form keeps nothing to do so "
            "with; use VGGLoss(..., keep_activations=True)"
        )


_LISTS = (2, 4, 5)  # features, weights, biases


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fake, with_gradient = inputs[0], inputs[-1]
    if not with_gradient:
        raise RuntimeError("pix2pixhd.perceptual_loss: with_gradient must be True when a gradient is wanted")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], fake)
    ctx.no_gradients = [[None] * len(x) if k in _LISTS else None for k, x in enumerate(inputs)][1:]


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    gradient, fake = ctx.saved_tensors
    result = (grad.view(-1, 1, 1, 1) * gradient).to(fake.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result = result + _RefuseDoubleBackward.apply(fake)
    return result, *ctx.no_gradients


_perceptual_loss.register_autograd(_autograd, setup_context=_setup_context)


def perceptual_loss(
    fake: Tensor,
    real: Tensor | None,
    network: Network,
    factors: list[float],
    *,
    features: list[Tensor] | None = None,
    weight_map: Tensor | None = None,
    squared: bool = False,
    dtype: torch.dtype | None = None,
    memory_limit: int | None = None,
) -> Tensor:
    """``Σ_k factors[k] · mean(weight · distance(φ_k(fake), φ_k(real)))`` of each picture; see the module's docstring.

    Args:
        fake: Pictures ``[N, C, H, W]``.
        real: The same for the real side; gets no gradient. None where ``features`` are given.
        network: φ: weights in float32, or in the type of the pass.
        factors: One number per tapped map.
        features: The real pictures' tapped maps, after ReLU.
        weight_map: ``[N, 1, H, W]``, averaged to each map's size; None for 1 everywhere.
        squared: Squared error instead of L1.
        dtype: In which the network runs; None for autocast's, or the pictures' own without it.
        memory_limit: Most bytes for maps and bits at a time, or None.

    Returns:
        ``[N]``: float64 for float64, else float32.

    Raises:
        ValueError: If the bound on memory is too low.
    """
    recycling.check_if_due()
    device = fake.device.type
    if dtype is None:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else fake.dtype
    wanted = torch.is_grad_enabled() and fake.requires_grad
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*network.weights, *network.biases)):
        raise RuntimeError(
            "pix2pixhd: a parameter of the VGG requires a gradient, and this form of VGGLoss computes none for it; "
            "freeze the network with vgg.requires_grad_(False), or use VGGLoss(..., keep_activations=True)"
        )
    losses: Tensor
    losses, _ = _perceptual_loss(
        fake,
        None if real is None else real.detach(),
        features or [],
        weight_map,
        network.weights,
        network.biases,
        factors,
        network.plan,
        squared,
        dtype,
        memory_limit,
        wanted,
    )
    return losses
