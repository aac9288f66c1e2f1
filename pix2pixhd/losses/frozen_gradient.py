"""Value and gradient of a loss on features of a frozen network, of which no activation is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd.losses.distances import Distance
from pix2pixhd.losses.segments import checkpointed
from pix2pixhd.losses.taps import feature_maps
from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.frozen_features import differentiable
from pix2pixhd.ops.perceptual_scaling import SMALLEST, power_of_two
from pix2pixhd.ops.perceptual_tiling import MemoryLimitError


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
        tap: Index of the compared feature map.
        distance: The distance.
        weight: Its factor.
    """

    tap: int
    distance: Distance
    weight: float


def channel_axis(x: Tensor, channel_dim: int | None) -> int:
    """Returns the dimension of the channels: 1 for images ``[N, C, h, w]``, the last one for tokens ``[N, L, C]``."""
    if channel_dim is not None:
        axis = channel_dim + x.dim() if channel_dim < 0 else channel_dim
        if not 0 < axis < x.dim():
            raise ValueError(
                f"channel_dim must be a dimension of the feature maps other than the batch's, got {channel_dim} for a "
                f"feature map of shape {tuple(x.shape)}"
            )
        return axis
    return 1 if x.dim() > 3 else x.dim() - 1


def _computed(x: Tensor) -> Tensor:
    """Returns a feature map in the dtype of the arithmetic."""
    x = x.to(wider(x.dtype))
    if not torch.compiler.is_compiling() and x.is_inference() and not torch.is_inference_mode_enabled():
        return x.clone()  # autograd cannot save inference tensors
    return x


def _modifiable(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """Returns a gradient that may be modified in place: a copy if it overlaps itself, or an input of the distance."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(gradient.stride(), gradient.shape, strict=True))
    storage = gradient.untyped_storage().data_ptr()
    shared = any(storage == x.untyped_storage().data_ptr() for x in inputs)
    return gradient.clone(memory_format=torch.contiguous_format) if expanded or shared else gradient


def _weight_at(weight_map: Tensor | None, x: Tensor, axis: int, distance: Distance) -> Tensor | None:
    """Returns the pixel weights, averaged to the size of a feature map, that broadcast against it."""
    if weight_map is None:
        return None
    if not distance.masked:
        raise ValueError(f"mask cannot be used with the distance {distance.name!r}; weight the images instead")
    if x.dim() != 4 or axis not in (1, 3):
        raise ValueError(
            f"mask needs feature maps [N, C, h, w], got one of shape {tuple(x.shape)}; select other taps, or omit mask"
        )
    rows, columns = (x.shape[2], x.shape[3]) if axis == 1 else (x.shape[1], x.shape[2])
    weight = F.adaptive_avg_pool2d(weight_map.to(x.dtype), (rows, columns))
    return weight if axis == 1 else weight.movedim(1, 3)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _scale_of(gradients: Sequence[Tensor], images: int) -> Tensor:
    """Returns a factor per image, ``[N]``, that keeps the gradients in the range of float16. It stays on the device."""
    peak = torch.full((images,), SMALLEST, device=gradients[0].device, dtype=torch.float32)
    for gradient in gradients:
        dims = tuple(range(1, gradient.dim()))
        own = torch.linalg.vector_norm(gradient, torch.inf, dim=dims).to(torch.float32)
        peak = torch.fmax(peak, own)  # ignores NaN
    return power_of_two(peak)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Measures the largest number of bytes of live tensors that are allocated in this mode."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def known(self, tensor: Tensor) -> None:
        """Excludes a tensor."""
        self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._now -= size


# Bytes per image, by network and by everything else that determines them.
_measured: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a loss is evaluated.

    Attributes:
        network: The frozen network.
        taps: Names of the modules whose outputs are compared; None for the network's own outputs.
        terms: Returns the terms of the loss for this number of feature maps, or raises an error.
        channel_dim: Dimension of the channels; None to derive it from the number of dimensions.
        memory_limit: Maximum number of bytes allocated at a time; None for no limit.
        checkpoint: Whether to save only segment inputs, and recompute activations in the backward pass. None for a loss
            without this option.
    """

    network: nn.Module
    taps: tuple[str, ...] | None
    terms: Callable[[int], Sequence[Term]]
    channel_dim: int | None = None
    memory_limit: int | None = None
    checkpoint: bool | None = None

    def maps(self, images: Tensor) -> list[Tensor]:
        """Returns the compared feature maps, with a graph if a gradient is required."""
        if not (self.checkpoint and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return feature_maps(self.network, self.taps, images)
        with checkpointed(self.network, self.taps):
            return feature_maps(self.network, self.taps, images, whole=True)

    def targets(self, real: Tensor, chosen: Callable[[Term], bool] | None = None) -> list[Tensor]:
        """Returns what the terms compare with, for target images. ``chosen`` selects the terms."""
        maps = self.maps(real)
        terms = [term for term in self.terms(len(maps)) if chosen is None or chosen(term)]
        return [self._target(term, maps[term.tap]) for term in terms]

    def _target(self, term: Term, y: Tensor) -> Tensor:
        axis = channel_axis(y, self.channel_dim)
        kind = type(term.distance)
        return y if kind.target is Distance.target else term.distance.target(_computed(y), axis)

    def plain(self, fake: Tensor, real: Tensor | None, targets: Sequence[Tensor], weight_map: Tensor | None) -> Tensor:
        """Returns the loss of each image, ``[N]``, as a differentiable function of ``fake``."""
        if real is not None:
            with torch.no_grad():
                targets = self.targets(real)
        maps = self.maps(fake)
        values = []
        for term, target in zip(self.terms(len(maps)), targets, strict=True):
            x = _computed(maps[term.tap])
            axis = channel_axis(x, self.channel_dim)
            target = _computed(target).to(x.dtype)
            _check_target(x, target, term)
            weight = _weight_at(weight_map, x, axis, term.distance)
            with torch.autocast(x.device.type, enabled=False):
                values.append(term.weight * term.distance.value(x, target, weight, axis))
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    def run(
        self,
        fake: Tensor,
        real: Tensor | None,
        targets: Sequence[Tensor],
        weight_map: Tensor | None,
        autocast: torch.dtype | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the loss of each image, ``[N]``, and if required its gradient with the shape of ``fake``.

        Args:
            fake: Inputs of the network, ``[N, ...]``.
            real: Target inputs, or None if ``targets`` are given.
            targets: What the terms compare with, for N images or for one.
            weight_map: Pixel weights ``[N, 1, H, W]``, or None.
            autocast: Autocast dtype, or None to disable autocast.
            with_gradient: Whether to compute the gradient.

        Raises:
            MemoryLimitError: If the memory limit is too low for one image.
            ValueError: If a mask is not possible.
            RuntimeError: If the network's outputs do not depend on its input by differentiable operations.
        """
        images, dtype = len(fake), wider(fake.dtype)
        losses = torch.zeros(images, dtype=dtype, device=fake.device)
        gradient = torch.empty_like(fake, dtype=dtype) if with_gradient else None
        if images == 0:
            return losses, gradient

        def run(first: int, end: int) -> tuple[Tensor, Tensor | None]:
            own = slice(first, end)
            precision = torch.autocast(fake.device.type, dtype=autocast, enabled=autocast is not None)
            with precision:
                return self._run_group(
                    fake[own],
                    None if real is None else real[own],
                    [target if len(target) == 1 else target[own] for target in targets],
                    None if weight_map is None else weight_map[own],
                    with_gradient,
                )

        size = images
        if self.memory_limit is not None:
            facts = (self.taps, self.channel_dim, self.checkpoint, fake.shape[1:], fake.dtype, autocast, with_gradient)
            kinds = tuple(type(term.distance) for term in self.terms(len(self.taps))) if self.taps else None
            given = [fake, *targets, *[x for x in (real, weight_map) if x is not None]]
            size = self._group_size(lambda: run(0, 1), images, (*facts, real is None, weight_map is None, kinds), given)
        for first in range(0, images, size):
            losses[first : first + size], own = run(first, min(first + size, images))
            if gradient is not None and own is not None:
                gradient[first : first + size] = own
        return losses, gradient

    def _group_size(self, run_one: Callable[[], Any], images: int, facts: Any, given: Sequence[Tensor]) -> int:
        """Returns how many images are evaluated at a time. The first call with these facts evaluates one to measure."""
        known = _measured.setdefault(self.network, {})
        if facts not in known:
            with _LiveBytes() as live:
                for tensor in (*self.network.parameters(), *self.network.buffers(), *given):
                    live.known(tensor)
                run_one()
            known[facts] = max(live.peak, 1)
        needed, limit = known[facts], self.memory_limit or 0
        if needed > limit:
            remedy = "raise the limit, or use checkpoint=True" if self.checkpoint is False else "raise the limit"
            raise MemoryLimitError(
                f"memory_limit is {limit / 2**20:.3g} MiB, but one image needs {needed / 2**20:.3g} MiB; {remedy}"
            )
        return min(images, limit // needed)

    def _run_group(
        self,
        fake: Tensor,
        real: Tensor | None,
        targets: list[Tensor],
        weight_map: Tensor | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if real is not None:
            targets = self.targets(real)
        with differentiable() if with_gradient else contextlib.nullcontext():
            leaf = fake.detach().requires_grad_(with_gradient)
            maps = self.maps(leaf)
        terms = self.terms(len(maps))
        if len(terms) != len(targets):
            raise ValueError(f"real must have as many feature maps as fake, {len(terms)}, got {len(targets)}")
        losses: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(maps)
        for term in terms:
            value, gradient = self._term(term, maps[term.tap].detach(), targets.pop(0), weight_map, with_gradient)
            losses = value * term.weight if losses is None else losses + value * term.weight
            if gradient is not None:
                gradient = gradient.mul_(term.weight)
                before = gradients[term.tap]
                gradients[term.tap] = gradient if before is None else before.add_(gradient)
        assert losses is not None
        return losses, self._backward(leaf, maps, gradients) if with_gradient else None

    def _term(
        self, term: Term, x: Tensor, target: Tensor, weight_map: Tensor | None, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = _computed(x)
        target = _computed(target).to(x.dtype)
        _check_target(x, target, term)
        axis = channel_axis(x, self.channel_dim)
        weight = _weight_at(weight_map, x, axis, term.distance)
        with torch.autocast(x.device.type, enabled=False):
            if with_gradient:
                value, gradient = term.distance.value_and_gradient(x, target, weight, axis)
                return value, _modifiable(gradient, x, target)
            return term.distance.value(x, target, weight, axis), None

    @staticmethod
    def _backward(leaf: Tensor, maps: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
        pairs = [(x, g) for x, g in zip(maps, gradients, strict=True) if g is not None and x.requires_grad]
        del maps[:], gradients[:]
        if not pairs:
            raise RuntimeError(
                "pix2pixhd: the compared outputs do not depend on the image by differentiable operations; remove "
                "torch.no_grad() and .detach() from the network's forward"
            )
        scale = None
        if any(x.dtype == torch.float16 for x in (leaf, *[x for x, _ in pairs])):
            scale = _scale_of([g for _, g in pairs], len(leaf))
        outputs = [x for x, _ in pairs]
        upstream = [(g if scale is None else g * _per_image(scale, g)).to(x.dtype) for x, g in pairs]
        del pairs
        with differentiable():
            (gradient,) = torch.autograd.grad(outputs, leaf, upstream)
        gradient = gradient.to(wider(gradient.dtype))
        return gradient if scale is None else gradient / _per_image(scale, gradient)


def _check_target(x: Tensor, target: Tensor, term: Term) -> None:
    if type(term.distance).target is Distance.target and x.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"real must give feature maps of the shape of fake's, {tuple(x.shape[1:])}, got {tuple(target.shape[1:])}"
        )
