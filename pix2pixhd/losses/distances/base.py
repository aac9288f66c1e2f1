"""Base class and registry of the distances between feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from pix2pixhd.ops.frozen_features import differentiable


def mean_per_image(values: Tensor) -> Tensor:
    """Returns the mean over all dimensions but the first, ``[N]``."""
    return values.mean(dim=tuple(range(1, values.dim())))


class Distance:
    """A distance between two feature maps of each image.

    A new distance is a subclass with ``name`` and ``value`` in a file of its own, decorated with ``register`` and
    imported in ``pix2pixhd.losses.distances``. ``value_and_gradient`` may be overridden with the closed formula, which
    saves time and memory.

    The methods receive feature maps ``[N, ...]`` in float32 or float64, ``axis``, the dimension of the channels, and
    ``weight``, pixel weights that broadcast against the feature maps, or None.

    Attributes:
        name: Name of the distance as an argument of the losses.
        masked: Whether ``weight`` may be given.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses.distances import Distance
        >>> class Huber(Distance):
        ...     name, masked = "huber", False
        ...
        ...     def value(self, x, target, weight, axis):
        ...         return torch.nn.functional.huber_loss(x, target, reduction="none").flatten(1).mean(1)
        >>> x = torch.ones(2, 3, 4, 4)
        >>> value, gradient = Huber().value_and_gradient(x, torch.zeros_like(x), None, axis=1)
        >>> value
        tensor([0.5000, 0.5000])
    """

    name: ClassVar[str]
    masked: ClassVar[bool] = True

    def target(self, y: Tensor, axis: int) -> Tensor:
        """Returns what is kept of a target feature map; by default the feature map itself."""
        return y

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``, by differentiable operations of PyTorch."""
        raise NotImplementedError(f"{type(self).__name__} must define value(x, target, weight, axis)")

    def value_and_gradient(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image, ``[N]``, and its gradient with respect to ``x``."""
        with differentiable():
            leaf = x.detach().requires_grad_()
            value = self.value(leaf, target, weight, axis)
            if not value.requires_grad:
                return value, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies a function to the distance's own tensors, as ``nn.Module.to`` does to parameters."""


_registry: dict[str, type[Distance]] = {}


def register(kind: type[Distance]) -> type[Distance]:
    """Makes a distance available under its name. A class decorator."""
    _registry[kind.name] = kind
    return kind


class CallableDistance(Distance):
    """A function ``(fake_map, real_map) -> value``, differentiated by autograd.

    If it returns one value per image, ``[N]``, it is called once. If it returns a scalar, it is called for each image.
    """

    name = "callable"
    masked = False

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def value(self, x: Tensor, target: Tensor, weight: Tensor | None, axis: int) -> Tensor:
        """Returns the distance of each image, ``[N]``."""
        images = x.shape[0]
        value = self.function(x, target)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"distance must return a floating-point tensor, got {kind}; return a scalar tensor without .item() or "
                "float(), or one value per image"
            )
        if value.dim() == 0 and images == 1:
            return value.unsqueeze(0)
        if value.dim() == 0 and images > 1:
            value = torch.stack([self.function(x[k : k + 1], target[k : k + 1]) for k in range(images)])
        elif value.dim() == 0:
            value = mean_per_image(x)
        if value.shape != (images,):
            raise ValueError(
                f"distance must return a scalar or one value per image, ({images},), got {tuple(value.shape)}; reduce "
                "over the other dimensions"
            )
        return value


DistanceSpec: TypeAlias = str | Distance | Callable[[Tensor, Tensor], Tensor]


def make(spec: Any, options: dict[str, Any] | None = None) -> Distance:
    """Returns a distance by its name, as an object, or as a function of two feature maps.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name, a distance nor a function.
    """
    if isinstance(spec, Distance):
        return spec
    if isinstance(spec, str):
        if spec not in _registry:
            raise ValueError(f"distance must be one of {', '.join(sorted(_registry))} or a function, got {spec!r}")
        return _registry[spec](**(options or {}))
    if not callable(spec) or isinstance(spec, type):
        raise TypeError(f"distance must be a name, a Distance or a function of two feature maps, got {spec!r}")
    return CallableDistance(spec)


def make_all(spec: Any, linear: Sequence[Tensor] | None, count: int) -> list[Distance]:
    """Returns one distance per feature map.

    Raises:
        ValueError: If the number of distances or of linear weights is not ``count``, or linear weights are given to a
            distance other than ``"lpips"``, or require a gradient.
        TypeError: If linear weights are not tensors.
    """
    specs = list(spec) if isinstance(spec, (list, tuple)) else [spec] * count
    if len(specs) != count:
        raise ValueError(f"distance must be one, or one per feature map, {count}, got {len(specs)}")
    if linear is None:
        return [make(one) for one in specs]
    if len(linear) != count:
        raise ValueError(f"linear must have one tensor per feature map, {count}, got {len(linear)}")
    if any(one != "lpips" for one in specs):
        raise ValueError(f"linear is only for distance='lpips', got distance={spec!r}")
    for k, weights in enumerate(linear):
        if not isinstance(weights, Tensor):
            raise TypeError(f"linear[{k}] must be a tensor with one number per channel, got {type(weights).__name__}")
        if weights.requires_grad:
            raise ValueError(
                f"linear[{k}] requires a gradient, which the loss does not compute; pass linear[{k}].detach()"
            )
    return [make(one, {"linear": weights}) for one, weights in zip(specs, linear, strict=True)]
