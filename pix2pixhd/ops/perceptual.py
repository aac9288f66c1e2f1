"""The perceptual loss as one operator that computes value and gradient in the forward pass and saves no activation.

With frozen weights the loss is a scalar function of one image, so its gradient is one image. It is computed together
with the value (``perceptual_engine``), tile by tile if memory is limited (``perceptual_tiling``). Only this gradient is
saved for backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pix2pixhd.ops import backend, recycling
from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.conv_stack import ConvStack
from pix2pixhd.ops.perceptual_arguments import check_arguments
from pix2pixhd.ops.perceptual_distance import Comparison
from pix2pixhd.ops.perceptual_engine import TilePass, run_tile
from pix2pixhd.ops.perceptual_tiling import plan_tiles


def can_run(images: Tensor) -> bool:
    """Whether the operators of this device are loaded and the current backend uses them."""
    return backend.use_fused_if_loaded(images)


@torch.library.custom_op("pix2pixhd::perceptual_loss", mutates_args=())
def _perceptual_loss(
    fake: Tensor,
    real: Tensor | None,
    features: list[Tensor],
    weight_map: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    layer_weights: list[float],
    layer_kinds: str,
    distance: str,
    linear: list[Tensor],
    dtype: torch.dtype,
    memory_limit: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    # The operator's schema has no structures, so the stack arrives as its fields.
    stack = ConvStack(weights, biases, layer_kinds)
    sides = 1 if real is None else 2
    comparison = Comparison(layer_weights, distance, linear)
    check_arguments(fake, real, features, weight_map, stack, comparison, dtype, memory_limit)
    kept = comparison.saves_features
    tiles = plan_tiles(layer_kinds, stack.channels, fake.shape, dtype.itemsize, kept, sides, memory_limit)
    losses = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    gradient = None
    with torch.no_grad(), torch.autocast(fake.device.type, enabled=False):
        stack = stack.to(dtype)
        for tile in tiles:
            tile_pass = TilePass(stack, comparison, tile, with_gradient)
            loss, own = run_tile(tile_pass, fake, real, features, weight_map, dtype)
            losses[tile.first : tile.end] += loss
            if own is None:
                continue
            if len(tiles) == 1:
                gradient = own
                break
            if gradient is None:
                gradient = torch.zeros_like(fake, dtype=own.dtype, memory_format=torch.channels_last)
            gradient[tile.first : tile.end, :, tile.stages[0].first : tile.stages[0].end] += own
    return losses.to(wider(dtype)), fake.new_empty(0) if gradient is None else gradient


@_perceptual_loss.register_fake
def _(
    fake: Tensor,
    real: Tensor | None,
    features: list[Tensor],
    weight_map: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    layer_weights: list[float],
    layer_kinds: str,
    distance: str,
    linear: list[Tensor],
    dtype: torch.dtype,
    memory_limit: int | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    stack, comparison = ConvStack(weights, biases, layer_kinds), Comparison(layer_weights, distance, linear)
    check_arguments(fake, real, features, weight_map, stack, comparison, dtype, memory_limit)
    values = fake.new_empty(fake.shape[0], dtype=wider(dtype))
    if not with_gradient:
        return values, fake.new_empty(0)
    return values, torch.empty_like(fake, dtype=wider(dtype), memory_format=torch.channels_last)


class _RefuseDoubleBackward(torch.autograd.Function):
    """A scalar 0 that raises when it is differentiated with respect to ``fake``.

    Adding it to a gradient raises an error where a second derivative would otherwise be silently missing. The gradient
    is linear in the upstream gradient; the derivative with respect to that does not pass through this function.
    """

    @staticmethod
    def forward(ctx: Any, fake: Tensor, name: str) -> Tensor:
        ctx.name = name
        return fake.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(
            f"pix2pixhd: {ctx.name} was differentiated twice (create_graph=True), but it saves no activations, so it "
            f"supports first derivatives only; use {ctx.name}(..., keep_activations=True)"
        )


def _loss_name(distance: str) -> str:
    return "LPIPS" if distance == "lpips" else "VGGLoss"


_LISTS = (2, 4, 5, 9)  # features, weights, biases, linear


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fake, with_gradient = inputs[0], inputs[-1]
    if not with_gradient:
        raise RuntimeError("pix2pixhd.perceptual_loss: with_gradient must be True when a gradient is required")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], fake)
    ctx.loss_name = _loss_name(inputs[8])
    ctx.no_gradients = [[None] * len(x) if k in _LISTS else None for k, x in enumerate(inputs)][1:]


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    gradient, fake = ctx.saved_tensors
    result = (grad.view(-1, 1, 1, 1) * gradient).to(fake.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result = result + _RefuseDoubleBackward.apply(fake, ctx.loss_name)
    return result, *ctx.no_gradients


_perceptual_loss.register_autograd(_autograd, setup_context=_setup_context)


def perceptual_loss(
    fake: Tensor,
    real: Tensor | None,
    stack: ConvStack,
    layer_weights: list[float],
    *,
    features: list[Tensor] | None = None,
    weight_map: Tensor | None = None,
    distance: str = "l1",
    linear: Sequence[Tensor] = (),
    dtype: torch.dtype | None = None,
    memory_limit: int | None = None,
) -> Tensor:
    """Compute ``Σ_k layer_weights[k] · mean(weight · distance(φ_k(fake), φ_k(real)))`` for each image.

    Args:
        fake: Generated images ``[N, C, H, W]``.
        real: Real images of the same shape, which receive no gradient; None if ``features`` are given.
        stack: The network φ, in float32 or in the dtype of the pass.
        layer_weights: One weight per tapped feature map.
        features: The real images' tapped feature maps, after ReLU.
        weight_map: Pixel weights ``[N, 1, H, W]``, averaged to the size of each feature map; None for 1 everywhere.
        distance: ``"l1"``, ``"mse"`` or ``"lpips"``, see ``perceptual_distance``.
        linear: For ``"lpips"``, the weights of the channels, ``[C]`` per tapped feature map.
        dtype: Dtype in which the network is evaluated. None for autocast's dtype, or that of the images without
            autocast.
        memory_limit: Maximum number of bytes for feature maps and saved bits at a time; None for no limit.

    Returns:
        Losses ``[N]``, in float64 for a pass in float64, else in float32.

    Raises:
        ValueError: If the memory limit is too low.
        RuntimeError: If a parameter of the network requires a gradient.
    """
    recycling.check_if_due()
    device = fake.device.type
    if dtype is None:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else fake.dtype
    with_gradient = torch.is_grad_enabled() and fake.requires_grad
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*stack.weights, *stack.biases)):
        name = _loss_name(distance)
        raise RuntimeError(
            f"pix2pixhd: a parameter of the VGG requires a gradient, which {name} does not compute by default; "
            f"freeze the network with vgg.requires_grad_(False), or use {name}(..., keep_activations=True)"
        )
    losses: Tensor
    losses, _ = _perceptual_loss(
        fake,
        None if real is None else real.detach(),
        features or [],
        weight_map,
        stack.weights,
        stack.biases,
        layer_weights,
        stack.layer_kinds,
        distance,
        list(linear),
        dtype,
        memory_limit,
        with_gradient,
    )
    return losses
