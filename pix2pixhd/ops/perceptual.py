"""The perceptual loss and its gradient in one forward pass, with no activation kept.

With frozen weights the loss is a scalar function of one picture, so its gradient is one picture: it is computed along
with the value, and nothing else stays until the backward. Generated and real side run in lockstep; a map goes as soon
as the next one is there. For the way back only bits are kept, until the end of the forward: which elements a ReLU let
through, where a pooled element came from, the signs of the L1 terms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd.ops import choice, library

# What follows each convolution of the network: a plain ReLU, one whose map is compared, or one with max-pooling.
RELU, TAP, POOL = "r", "t", "p"

# Under float16 the gradient of a mean over millions of elements is below the smallest number: 2^20 lifts 1e-9 to 1e-3,
# and leaves the deepest map's, the largest, eight powers of two below the largest number.
_FLOAT16_SCALE = 2.0**20


def adjoint(weight: Tensor) -> Tensor:
    """The weights ``[in, out, 3, 3]`` of a convolution's gradient with respect to its input.

    The gradient of a 3×3 convolution of stride 1 and padding 1 is another one, with weights transposed and mirrored.
    """
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def _has_kernels(loaded: bool, key: str) -> bool:
    return loaded and bool(torch._C._dispatch_has_kernel_for_dispatch_key("pix2pixhd::relu_pool", key))


# Found out at import, as in ``choice``.
_DEVICES = {"cpu": _has_kernels(library.cpu().loaded, "CPU"), "cuda": _has_kernels(library.cuda().loaded, "CUDA")}


def can_run(pictures: Tensor) -> bool:
    """Whether the operators for this device are there and chosen."""
    return _DEVICES.get(pictures.device.type, False) and choice.use_fused(pictures)


def _forward(
    x: Tensor, y: Tensor, weights: list[Tensor], biases: list[Tensor], factors: list[float], plan: str, pack: bool
) -> tuple[Tensor, Tensor, list[tuple[Any, ...]]]:
    """Value, the shape of the last map, and what the way back needs, per convolution."""
    ops = torch.ops.pix2pixhd
    loss = x.new_zeros((), dtype=torch.float64)
    trail: list[tuple[Any, ...]] = []
    taps = iter(factors)
    for kind, weight, bias in zip(plan, weights, biases, strict=True):
        # One side after the other: the input of a side's convolution goes before the other side's output comes.
        x = F.conv2d(x, weight, bias, padding=1)
        y = F.conv2d(y, weight, bias, padding=1)
        if kind == TAP:
            term, signs, mask = ops.relu_l1_.default(x, y, pack)
            factor = next(taps)
            loss += factor * term
            trail.append((mask, signs, factor / x.numel()))
        elif kind == POOL:
            size = x.shape[2:]
            x, codes = ops.relu_pool.default(x, pack)
            y, _ = ops.relu_pool.default(y, False)
            trail.append((codes, *size))
        else:
            trail.append((ops.relu_mask_.default(x, pack),))
            ops.relu_mask_.default(y, False)
    return loss, x, trail


def _backward(last: Tensor, adjoints: list[Tensor], plan: str, trail: list[tuple[Any, ...]], scale: float) -> Tensor:
    ops = torch.ops.pix2pixhd
    no_signs = last.new_empty(0, dtype=torch.int32)
    gradient = torch.zeros_like(last)
    del last
    for kind, weight in zip(reversed(plan), reversed(adjoints), strict=True):
        kept = trail.pop()
        if kind == TAP:
            mask, signs, coefficient = kept
            ops.relu_l1_backward_.default(gradient, mask, signs, coefficient * scale)
        elif kind == POOL:
            gradient = ops.relu_pool_backward.default(gradient, *kept)
        else:
            ops.relu_l1_backward_.default(gradient, kept[0], no_signs, 0.0)
        gradient = F.conv2d(gradient, weight, padding=1)
    return gradient


@torch.library.custom_op("pix2pixhd::perceptual_loss", mutates_args=())
def _perceptual_loss(
    fake: Tensor,
    real: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    adjoints: list[Tensor],
    factors: list[float],
    plan: str,
    dtype: torch.dtype,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), torch.autocast(fake.device.type, enabled=False):

        def laid_out(x: Tensor) -> Tensor:
            return x.to(dtype, memory_format=torch.channels_last)

        loss, last, trail = _forward(
            laid_out(fake),
            laid_out(real),
            [laid_out(w) for w in weights],
            [b.to(dtype) for b in biases],
            factors,
            plan,
            with_gradient,
        )
        value = loss.to(torch.float64 if dtype == torch.float64 else torch.float32)
        if not with_gradient:
            return value, fake.new_empty(0)
        scale = _FLOAT16_SCALE if dtype == torch.float16 else 1.0
        gradient = _backward(last, [laid_out(w) for w in adjoints], plan, trail, scale)
        # At least float32: an unscaled float16 gradient would vanish before the upstream gradient reaches it.
        gradient = gradient.to(value.dtype)
        return value, gradient.div_(scale) if scale != 1.0 else gradient


@_perceptual_loss.register_fake
def _(
    fake: Tensor,
    real: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    adjoints: list[Tensor],
    factors: list[float],
    plan: str,
    dtype: torch.dtype,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value = fake.new_empty((), dtype=wide)
    if not with_gradient:
        return value, fake.new_empty(0)
    return value, torch.empty_like(fake, dtype=wide, memory_format=torch.channels_last)


class _RefuseDoubleBackward(torch.autograd.Function):
    """Identity on the gradient; its own backward raises, where it would silently lose a term."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, fake: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(
            "pix2pixhd: VGGLoss was differentiated twice (create_graph=True), and this form keeps nothing to do so "
            "with; use VGGLoss(..., keep_activations=True)"
        )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fake, with_gradient = inputs[0], inputs[-1]
    if not with_gradient:
        raise RuntimeError("pix2pixhd.perceptual_loss: with_gradient must be True when a gradient is wanted")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], fake)
    ctx.no_gradients = [[None] * len(tensors) for tensors in inputs[2:5]]


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    gradient, fake = ctx.saved_tensors
    result = (grad * gradient).to(fake.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result = _RefuseDoubleBackward.apply(result, fake)
    return result, None, *ctx.no_gradients, None, None, None, None


_perceptual_loss.register_autograd(_autograd, setup_context=_setup_context)


def perceptual_loss(
    fake: Tensor,
    real: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    adjoints: list[Tensor],
    plan: str,
    factors: list[float],
) -> Tensor:
    """``Σ_k factors[k] · mean|φ_k(fake) − φ_k(real)|`` for a chain of 3×3 convolutions; see the module's docstring.

    Args:
        fake: Pictures ``[N, C, H, W]``.
        real: The same for the real side; gets no gradient.
        weights: Of the convolutions, ``[out, in, 3, 3]``, out a multiple of 32.
        biases: Of the convolutions, ``[out]``.
        adjoints: ``adjoint`` of each weight.
        plan: One letter per convolution, ``RELU``, ``TAP`` or ``POOL``.
        factors: One number per tapped map.

    Returns:
        A scalar: float64 for float64 pictures, else float32. Under autocast the network runs in autocast's type.
    """
    device = fake.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else fake.dtype
    wanted = torch.is_grad_enabled() and fake.requires_grad
    loss: Tensor
    loss, _ = _perceptual_loss(fake, real.detach(), weights, biases, adjoints, factors, plan, dtype, wanted)
    return loss
