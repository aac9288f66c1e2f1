"""One benchmark case: a function and its gradients in several implementations, and their errors against float64."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import pix2pixhd

__all__ = ["Agreement", "Case", "Implementation", "Inputs", "Result", "Setup", "TensorCase", "agreements", "autocast"]

Implementation = Callable[[], object]
# Tensors of the generated and of the real images.
Inputs = tuple[list[Tensor], list[Tensor]]
Loss = Callable[[list[Tensor], list[Tensor]], Tensor]
# The loss and the gradients.
Result = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The images and the discriminator for which the cases are measured.

    Attributes:
        width: Width of the images.
        height: Height of the images.
        batch: Number of images.
        num_D: Number of discriminator scales.
        dtype: Dtype of the losses' inputs; networks run under autocast to it.
        device: Device of all tensors.
        sets: Number of independent sets of inputs, used alternately, so that a GPU's cache does not hold them.
    """

    width: int = 1024
    height: int = 512
    batch: int = 1
    num_D: int = 2
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    sets: int = 1

    def to_json(self) -> str:
        """Returns the setup as JSON, for child processes and results."""
        text = {"dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}
        return json.dumps({**dataclasses.asdict(self), **text})

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Reads what ``to_json`` returned."""
        fields = json.loads(text)
        return cls(**{**fields, "dtype": getattr(torch, fields["dtype"]), "device": torch.device(fields["device"])})


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Relative errors against float64, the larger of those of the value and of all gradients together, as 2-norms.

    Attributes:
        error: That of the implementation.
        plain: That of plain PyTorch in the same precision.
    """

    error: float
    plain: float

    @property
    def agrees(self) -> bool:
        """Whether the error is at most twice plain PyTorch's, or rounding of float32."""
        return self.error <= 2 * self.plain + 4 * torch.finfo(torch.float32).eps


class Case(Protocol):
    """What the benchmark measures: the same work in several implementations."""

    def implementations(self, with_compile: bool = True, with_limit: bool = True) -> dict[str, Implementation]:
        """Returns functions without arguments, which compute forward and backward."""

    def run_of(self, name: str, between: Callable[[], object] | None = None) -> Implementation:
        """Returns one implementation. ``between`` is called between forward and backward, if they are apart."""

    def agreement(self, names: Sequence[str]) -> dict[str, Agreement]:
        """Returns the errors of implementations against plain PyTorch in float64."""


class TensorCase:
    """A scalar function of tensors, and its gradients, in several implementations.

    Args:
        loss_of: Returns the function of the tensors of the generated and of the real images, from ``network``.
        inputs: One or several sets of tensors, used alternately. Gradients are computed for those that require them,
            and for the trainable parameters of ``network``.
        network: A network, or a loss that contains one. It runs under autocast.
        dtype: Dtype of autocast.
        limit: Whether the unavoidable memory traffic is an implementation of its own.
    """

    def __init__(
        self,
        loss_of: Callable[[Any], Loss],
        inputs: Sequence[Inputs],
        network: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
        limit: bool = False,
    ) -> None:
        self.loss_of, self.loss = loss_of, loss_of(network)
        self.inputs, self.network, self.dtype, self.limit = inputs, network, dtype, limit

    def implementations(self, with_compile: bool = True, with_limit: bool = True) -> dict[str, Implementation]:
        """Returns functions without arguments, which compute forward and backward."""
        functions: dict[str, Implementation] = {"fused": self.run_of("fused"), "plain": self.run_of("plain")}
        if with_compile:
            functions["compiled"] = self.run_of("compiled")
        if self.limit and with_limit:
            functions["limit"] = self._limit()
        return functions

    def run_of(self, name: str, between: Callable[[], object] | None = None) -> Callable[[], Result]:
        """Returns a function that computes value and gradients with ``fused``, ``plain`` or ``compiled``.

        ``between`` is called between forward and backward.
        """
        # Compiled and called under the reference backend: the selected backend is a guard of the compiled code.
        backend = "fused" if name == "fused" else "reference"
        loss: Loss = torch.compile(self.loss, fullgraph=True, dynamic=False) if name == "compiled" else self.loss
        sets = itertools.cycle([(fake, real, self._leaves(fake, real)) for fake, real in self.inputs])

        def run() -> Result:
            fake, real, leaves = next(sets)
            with pix2pixhd.backend(backend):
                with autocast(leaves[0].device, torch.float32 if self.network is None else self.dtype):
                    value = loss(fake, real)
                if between is not None:
                    between()
                return value.detach(), *torch.autograd.grad(value, leaves)

        return run

    def agreement(self, names: Sequence[str]) -> dict[str, Agreement]:
        """Compares implementations with plain PyTorch in float64, for the first set of inputs."""
        return agreements(self._exact(), lambda name: self.run_of(name)(), names)

    def _exact(self) -> Result:
        wide: list[list[Tensor]] = [
            [x.detach().double().requires_grad_(x.requires_grad) for x in side] for side in self.inputs[0]
        ]
        network = None if self.network is None else copy.deepcopy(self.network).double()
        leaves = [*(x for side in wide for x in side if x.requires_grad), *_trained(network)]
        with pix2pixhd.backend("reference"):
            value = self.loss_of(network)(*wide)
            return value.detach(), *torch.autograd.grad(value, leaves)

    def _leaves(self, fake: list[Tensor], real: list[Tensor]) -> list[Tensor]:
        return [*(x for x in (*fake, *real) if x.requires_grad), *_trained(self.network)]

    def _limit(self) -> Implementation:
        detached = [([x.detach() for x in fake], real) for fake, real in self.inputs]
        buffers = itertools.cycle([(fake, real, [torch.zeros_like(x) for x in fake]) for fake, real in detached])

        def limit() -> None:
            for x, y, z in zip(*next(buffers), strict=True):
                torch.add(x, y, out=z)

        return limit


def _trained(network: nn.Module | None) -> list[Tensor]:
    return [] if network is None else [x for x in network.parameters() if x.requires_grad]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Returns the context in which networks run: autocast to ``dtype``, or none for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def agreements(exact: Result, result_of: Callable[[str], Result], names: Sequence[str]) -> dict[str, Agreement]:
    """Compares the results of plain PyTorch and of implementations, one after another, with those in float64."""
    plain = relative_error(result_of("plain"), exact)
    errors = {name: relative_error(result_of(name), exact) for name in names if name != "plain"}
    return {name: Agreement(error, plain) for name, error in {"plain": plain, **errors}.items()}


def relative_error(found: Result, exact: Result) -> float:
    """Returns the larger relative error of the value and of all gradients together; infinite if one is not finite.

    Gradients that are zero, such as those of biases before a norm, would have no relative error of their own.
    """

    def distance(tensors: Result, others: Result) -> float:
        difference = math.hypot(*(float((x.double() - y).norm()) for x, y in zip(tensors, others, strict=True)))
        size = math.hypot(*(float(y.norm()) for y in others))
        return difference / size if size > 0 else difference

    errors = distance(found[:1], exact[:1]), distance(found[1:], exact[1:])
    return max(error if math.isfinite(error) else math.inf for error in errors)
