"""The loss on features of any frozen network as one operator that computes value and gradient in the forward pass.

The operator is opaque to ``torch.compile``. It takes an integer handle of the loss that owns the network; the loss
evaluates network and gradient. Only the gradient, which has the size of the image, is saved for backward.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pix2pixhd.ops import backend
from pix2pixhd.ops.autograd import forward_mode_active, wider, zero_of


class Owner(Protocol):
    """A loss that evaluates its frozen network for the operator."""

    def evaluate(
        self,
        fake: Tensor,
        real: Tensor | None,
        targets: Sequence[Tensor],
        weight_map: Tensor | None,
        autocast: torch.dtype | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses ``[N]`` and, if required, their gradients with the shape of ``fake``."""
        ...


_owners: weakref.WeakValueDictionary[int, Owner] = weakref.WeakValueDictionary()
_handles = itertools.count(1)


def register(owner: Owner) -> int:
    """Return a new handle of a loss. The registry holds the loss weakly."""
    handle = next(_handles)
    _owners[handle] = owner
    return handle


def can_run() -> bool:
    """Whether the operator can compute the gradient, or PyTorch has to differentiate the plain formula."""
    if backend.is_reference():
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not forward_mode_active() and not torch._C._are_functorch_transforms_active()


_AUTOGRAD_KEYS = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.AutogradOther)
# Counts modifications in place, also without gradients. Compiled graphs call the operator without it.
_VERSION_KEYS = (torch._C.DispatchKey.ADInplaceOrView,)


@contextlib.contextmanager
def _enabled(keys: Sequence[torch._C.DispatchKey]) -> Iterator[None]:
    """Enable functions of the dispatcher that are excluded inside an operator."""
    excluded = [torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        yield
    finally:
        for key, was in zip(keys, excluded, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, was)


def _hide(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach(), tensor._version


def _reveal(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("a tensor that the network needs for its gradient has been modified by an inplace operation")
    return tensor


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Enable autograd inside an operator, where the dispatcher excludes it.

    Saved-tensor hooks of the caller (activation checkpointing, offloading) apply to what the loss saves, not to the
    network's activations, which are freed before the operator returns. Hooks that return the tensor replace them.
    """
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    own_hooks = torch.autograd.graph.saved_tensors_hooks(_hide, _reveal) if hooked else contextlib.nullcontext()
    with _enabled(_AUTOGRAD_KEYS + _VERSION_KEYS), torch.enable_grad(), own_hooks:
        yield


def _check_arguments(fake: Tensor, real: Tensor | None, weight_map: Tensor | None) -> None:
    """Check what everyone who calls the operator through ``torch.ops`` can get wrong.

    Raises:
        TypeError: If ``fake`` is no tensor, or not floating-point.
        ValueError: If shapes do not match.
    """
    if fake is None or not fake.is_floating_point():
        got = None if fake is None else fake.dtype
        raise TypeError(f"pix2pixhd.frozen_feature_loss: fake must be a floating-point tensor, got {got}")
    shape = [*fake.shape]
    if not shape:
        raise ValueError("pix2pixhd.frozen_feature_loss: fake must be [N, ...], got a tensor of no dimensions")
    if real is not None and [*real.shape] != shape:
        raise ValueError(
            f"pix2pixhd.frozen_feature_loss: real must have the shape of fake, {shape}, got {[*real.shape]}"
        )
    # At lower scales the map still has the size of the original images.
    if weight_map is not None and (weight_map.dim() != 4 or [*weight_map.shape[:2]] != [shape[0], 1]):
        raise ValueError(
            f"pix2pixhd.frozen_feature_loss: weight_map must be [N, 1, H, W] for fake of shape {shape}, got "
            f"{[*weight_map.shape]}"
        )


@torch.library.custom_op("pix2pixhd::frozen_feature_loss", mutates_args=())
def _frozen_feature_loss(
    fake: Tensor,
    anchor: Tensor | None,
    real: Tensor | None,
    targets: list[Tensor],
    weight_map: Tensor | None,
    parameters: list[Tensor],
    handle: int,
    autocast: torch.dtype | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    owner = _owners.get(handle)
    if owner is None:
        raise RuntimeError("pix2pixhd: the loss of a compiled function has been deleted; keep a reference to the loss")
    _check_arguments(fake, real, weight_map)
    with _enabled(_VERSION_KEYS), torch.no_grad():
        losses, gradient = owner.evaluate(fake, real, targets, weight_map, autocast, with_gradient)
    return losses, fake.new_empty(0) if gradient is None else gradient


@_frozen_feature_loss.register_fake
def _(
    fake: Tensor,
    anchor: Tensor | None,
    real: Tensor | None,
    targets: list[Tensor],
    weight_map: Tensor | None,
    parameters: list[Tensor],
    handle: int,
    autocast: torch.dtype | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    _check_arguments(fake, real, weight_map)
    dtype = wider(fake.dtype)
    losses = fake.new_empty(fake.shape[0], dtype=dtype)
    return losses, torch.empty_like(fake, dtype=dtype) if with_gradient else fake.new_empty(0)


class _RefuseDoubleBackward(torch.autograd.Function):
    """A scalar 0 that raises when it is differentiated with respect to ``anchor``, a 0 that depends on the image."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, name: str) -> Tensor:
        ctx.name = name
        return anchor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(
            f"pix2pixhd: {ctx.name} was differentiated twice (create_graph=True), but it saves no activations, so it "
            f"supports first derivatives only; use {ctx.name}(..., keep_activations=True)"
        )


_LISTS = (3, 5)  # targets, parameters


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fake, anchor, handle, with_gradient = inputs[0], inputs[1], inputs[-3], inputs[-1]
    if not with_gradient:
        raise RuntimeError("pix2pixhd.frozen_feature_loss: with_gradient must be True when a gradient is required")
    ctx.mark_non_differentiable(output[1])
    # The anchor instead of the image: the image may be a normalized copy, which would be kept for nothing.
    ctx.save_for_backward(output[1], anchor)
    ctx.dtype = fake.dtype
    if not torch.compiler.is_compiling():
        ctx.owner_name = type(_owners.get(handle)).__name__  # the loss may be deleted before the backward pass
    ctx.no_gradients = [[None] * len(x) if k in _LISTS else None for k, x in enumerate(inputs)][1:]


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    gradient, anchor = ctx.saved_tensors
    result = (grad.view(-1, *[1] * (gradient.dim() - 1)) * gradient).to(ctx.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result = result + _RefuseDoubleBackward.apply(anchor, ctx.owner_name)
    return result, *ctx.no_gradients


_frozen_feature_loss.register_autograd(_autograd, setup_context=_setup_context)


def autocast_dtype(device: torch.device, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the autocast dtype of a loss with the option ``dtype``; None without autocast."""
    if dtype is not None:
        return None if dtype == torch.float32 else dtype
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def frozen_feature_loss(
    owner: nn.Module,
    handle: int,
    network: nn.Module,
    fake: Tensor,
    real: Tensor | None,
    *,
    targets: Sequence[Tensor] = (),
    weight_map: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the loss of each image, ``[N]``, with its gradient.

    Args:
        owner: The loss, which evaluates the network.
        handle: Its handle.
        network: The frozen network.
        fake: Inputs of the network, ``[N, ...]``.
        real: Target inputs, which receive no gradient; None if ``targets`` are given.
        targets: What the distances compare with, per compared feature map.
        weight_map: Pixel weights ``[N, 1, H, W]``, or None.
        dtype: Compute dtype of the network, or None for autocast's.

    Raises:
        RuntimeError: If a parameter of the network requires a gradient.
    """
    if dtype is not None:  # as under autocast, which converts from float32
        fake, real = fake.to(torch.float32), None if real is None else real.to(torch.float32)
    parameters = list(network.parameters())
    with_gradient = torch.is_grad_enabled() and fake.requires_grad
    if torch.is_grad_enabled() and any(x.requires_grad for x in parameters):
        name = type(owner).__name__
        raise RuntimeError(
            f"pix2pixhd: a parameter of the network requires a gradient, which {name} does not compute by default; "
            f"freeze the network with network.requires_grad_(False), or use {name}(..., keep_activations=True)"
        )
    losses: Tensor
    losses, _ = _frozen_feature_loss(
        fake,
        zero_of(fake) if with_gradient else None,
        None if real is None else real.detach(),
        list(targets),
        weight_map,
        [*parameters, *network.buffers()],
        handle,
        autocast_dtype(fake.device, dtype),
        with_gradient,
    )
    return losses
