"""Conversion of networks into lean ones, in place."""

from __future__ import annotations

import functools
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn

from pix2pixhd.nn.chain import run_chain
from pix2pixhd.nn.state import has_global_hooks, is_plain_image, is_transformed, is_unmodified

__all__ = ["add_output", "lean"]

_Module = TypeVar("_Module", bound=nn.Module)


class LeanSequential(nn.Sequential):
    """An ``nn.Sequential`` that saves less for backward. ``lean`` changes the class of a network's containers to it."""

    _plain_class: type[nn.Sequential] = nn.Sequential

    def forward(self, input: Any) -> Any:
        """Apply all layers."""
        if runs_lean(input):
            return run_chain(list(self), input)
        return nn.Sequential.forward(self, input)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        function, (_, *arguments), *rest = reduced
        return (_create, (type(self)._plain_class, function, *arguments), *rest)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the plain container, for ``torch.jit.script``."""
        plain = type(self)._plain_class.__new__(type(self)._plain_class)
        plain.__dict__.update(self.__dict__)
        return plain


def runs_lean(input: object) -> TypeGuard[Tensor]:
    """Whether a sequence of layers is evaluated lean: eager autograd of an image tensor, without global hooks."""
    # The transformations first: tracing the checks of the image would record them.
    return torch.is_grad_enabled() and not is_transformed() and is_plain_image(input) and not has_global_hooks()


def add_output(residual: Tensor, layers: nn.Module, x: Tensor) -> Tensor:
    """Compute ``residual + layers(x)``, in one pass if ``layers`` are lean and end in a norm, or a norm and activation.

    Args:
        residual: In a residual block, ``x``.
        layers: The layers, usually an ``nn.Sequential``.
        x: Input of the layers.
    """
    # A container with hooks is called.
    if runs_lean(x) and isinstance(layers, LeanSequential) and is_unmodified(layers, LeanSequential):
        return run_chain(list(layers), x, residual)
    return residual + cast(Tensor, layers(x))


@functools.cache
def _lean_class(plain: Any) -> Any:
    """Return the lean subclass of a container's class; it has the same name, so that ``repr`` does not change."""
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "_plain_class": plain}
    bases = (LeanSequential,) if plain is nn.Sequential else (LeanSequential, plain)
    return type(plain.__name__, bases, names)


def _create(plain: Any, function: Any, *arguments: Any) -> Any:
    """Create a container from its pickle, which names the plain class."""
    return function(_lean_class(plain), *arguments)


def lean(module: _Module, enabled: bool = True) -> _Module:
    """Make a network save less for backward, in place.

    In every ``nn.Sequential`` of the network, the chains of ``norm → activation → padding → convolution`` save the
    previous convolution's output and the statistics. The plain layers also save the normalised, activated and padded
    copies; here, one elementwise pass recomputes them in the backward. Values and gradients are those of the plain
    layers to round-off. Norms are ``InstanceNorm2d`` and ``BatchNorm2d``, activations are ``ReLU`` and ``LeakyReLU``,
    paddings are reflection, replication and zero padding; ``Conv2d`` and ``ConvTranspose2d`` may have any options.

    Parameters, their names, state dicts, ``repr``, hooks and the class hierarchy (``isinstance``) do not change, and
    later changes of layers, weights and modes apply. These run as before: other layers; layers with hooks or with a
    ``forward`` of their own; layers outside an ``nn.Sequential``; and everything without gradients, under
    ``torch.compile``, export, tracing, ``torch.func``, forward-mode AD and ``backend("reference")``.

    Args:
        module: The network. Gradients through it are differentiable again.
        enabled: Whether to save less; False restores the plain network.

    Returns:
        The network.

    Raises:
        TypeError: If ``module`` is not an ``nn.Module``.

    Note:
        The input of a chain that starts with padding or a norm is saved without a copy. If it is modified in place
        before the backward, the backward raises an error.

    Example:
        >>> from torch import Tensor, nn
        >>> network = lean(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3)))
        >>> network(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 3, 12, 12])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for container in module.modules():
        kind: Any = type(container)
        if issubclass(kind, LeanSequential):
            if not enabled:
                container.__class__ = kind._plain_class
        elif enabled and issubclass(kind, nn.Sequential) and kind.forward is nn.Sequential.forward:
            container.__class__ = _lean_class(kind)
    return module
