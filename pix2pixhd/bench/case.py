"""One benchmark case: a function and its gradients in several implementations, and their errors against float64."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

import pix2pixhd
from pix2pixhd.bench.agreement import Agreement, Result, agreements
from pix2pixhd.bench.timing import capture

__all__ = [
    "BASIC",
    "GRAPHS",
    "Agreement",
    "Case",
    "Implementation",
    "Inputs",
    "Loss",
    "Result",
    "Setup",
    "TensorCase",
    "Variant",
    "autocast",
    "tf32",
]

Implementation = Callable[[], object]
# Tensors of the generated and of the real images.
Inputs = tuple[list[Tensor], list[Tensor]]
# The second argument is the real side, or what a variant prepared from it.
Loss = Callable[[list[Tensor], Any], Tensor]

BASIC = ("fused", "plain", "compiled")


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
        tf32: Whether float32 convolutions and matrix products on a GPU use TF32.
    """

    width: int = 1024
    height: int = 512
    batch: int = 1
    num_D: int = 2
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    sets: int = 1
    tf32: bool = False

    @property
    def precision(self) -> str:
        """The dtype as on the command line: ``float32``, ``tf32``, ``bfloat16`` or ``float16``."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def to_json(self) -> str:
        """Returns the setup as JSON, for child processes and results."""
        text = {"dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}
        return json.dumps({**dataclasses.asdict(self), **text})

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Reads what ``to_json`` returned."""
        fields = json.loads(text)
        return cls(**{**fields, "dtype": getattr(torch, fields["dtype"]), "device": torch.device(fields["device"])})


class Case(Protocol):
    """What the benchmark measures: the same work in several implementations.

    A case allocates nothing before its first implementation is made.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the implementations, ``fused`` and ``plain`` first."""

    def check(self) -> None:
        """Checks what can be checked before the measurement.

        Raises:
            InputError: If the case cannot be measured with these images.
        """

    def run_of(self, name: str, between: Callable[[], object] | None = None) -> Implementation:
        """Returns a function that computes forward and backward; ``between`` is called between them."""

    def exact(self) -> Result:
        """Returns the loss and the gradients of plain PyTorch in float64."""

    def agreement(self, names: Sequence[str], exact: Result) -> dict[str, Agreement]:
        """Returns the errors of implementations against ``exact``."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A further implementation of a case.

    Attributes:
        loss_of: Returns the function of the tensors of the generated and of the real images, from the case's network.
        backend: The backend under which it runs.
        prepare: Computes in advance, from the network and the tensors of the real images, what takes their place.
        package: The package that it needs, if any.
    """

    loss_of: Callable[[Any], Loss]
    backend: str = "reference"
    prepare: Callable[[Any, list[Tensor]], Any] | None = None
    package: str | None = None


DEFAULT = Setup()
NO_VARIANTS: Mapping[str, Variant] = {}
# The implementations that are also captured as CUDA graphs.
GRAPHS = {"fused-graph": "fused", "plain-graph": "plain"}


class TensorCase:
    """A scalar function of tensors, and its gradients, in several implementations.

    Args:
        loss_of: Returns the function of the tensors of the generated and of the real images, from the network.
        inputs: Makes one or several sets of tensors, used alternately. Gradients are computed for those that require
            them, and for the trainable parameters of the network.
        network: Makes a network, or a loss that contains one. It runs under autocast.
        setup: Dtype of autocast, and device.
        limit: Whether the unavoidable memory traffic is an implementation of its own.
        variants: Further implementations by name.
        graphs: Whether the CUDA graphs of two implementations are further implementations on a GPU.
    """

    def __init__(
        self,
        loss_of: Callable[[Any], Loss],
        inputs: Callable[[], Sequence[Inputs]],
        network: Callable[[], nn.Module] | None = None,
        setup: Setup = DEFAULT,
        limit: bool = False,
        variants: Mapping[str, Variant] = NO_VARIANTS,
        graphs: bool = False,
    ) -> None:
        self.loss_of, self.make_inputs, self.make_network = loss_of, inputs, network
        self.setup, self.limit, self.variants = setup, limit, variants
        self._variant_losses: dict[str, Loss] = {}
        self.graphs = GRAPHS if graphs and setup.device.type == "cuda" else {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the implementations, ``fused`` and ``plain`` first."""
        return (*BASIC, *(["limit"] if self.limit else []), *self.variants, *self.graphs)

    def check(self) -> None:
        """Accepts all images."""

    @property
    def traffic(self) -> int | None:
        """Bytes that every implementation reads and writes at least, if there is a limit."""
        return 3 * sum(x.nbytes for x in self.inputs[0][0]) if self.limit else None

    @functools.cached_property
    def inputs(self) -> Sequence[Inputs]:
        """The sets of tensors."""
        return self.make_inputs()

    @functools.cached_property
    def network(self) -> nn.Module | None:
        """The network, or the loss that contains one."""
        return None if self.make_network is None else self.make_network()

    @functools.cached_property
    def loss(self) -> Loss:
        """The function of the tensors."""
        return self.loss_of(self.network)

    @functools.cached_property
    def _compiled(self) -> Loss:
        compiled: Loss = torch.compile(self.loss, fullgraph=True, dynamic=False)
        return compiled

    def run_of(self, name: str, between: Callable[[], object] | None = None) -> Implementation:
        """Returns a function that computes value and gradients. ``between`` is called between forward and backward."""
        if name == "limit":
            return self._limit()
        if name in self.graphs:
            return _replayed(self._run_of(self.graphs[name], None))
        return self._run_of(name, between)

    def _loss(self, name: str) -> Loss:
        """Returns the loss of an implementation that is no variant."""
        return self._compiled if name == "compiled" else self.loss

    def _run_of(self, name: str, between: Callable[[], object] | None) -> Callable[[], Result]:
        if name in self.variants:
            variant = self.variants[name]
            if name not in self._variant_losses:  # the networks of other packages take seconds to initialise
                self._variant_losses[name] = variant.loss_of(self.network)
            return self._run(variant.backend, self._variant_losses[name], variant.prepare, between)
        # Compiled and called under the reference backend: the selected backend is a guard of the compiled code.
        return self._run("fused" if name == "fused" else "reference", self._loss(name), between=between)

    def _run(
        self,
        backend: str,
        loss: Loss,
        prepare: Callable[[Any, list[Tensor]], Any] | None = None,
        between: Callable[[], object] | None = None,
    ) -> Callable[[], Result]:
        setup = self.setup if self.network is not None else dataclasses.replace(self.setup, dtype=torch.float32)

        def prepared(real: list[Tensor]) -> Any:
            if prepare is None:
                return real
            with pix2pixhd.backend(backend), tf32(setup), autocast(setup):
                return prepare(self.network, real)

        sets = itertools.cycle([(fake, prepared(real), self._leaves(fake, real)) for fake, real in self.inputs])

        def run() -> Result:
            fake, real, leaves = next(sets)
            with pix2pixhd.backend(backend), tf32(setup):
                with autocast(setup):
                    value = loss(fake, real)
                if between is not None:
                    between()
                return value.detach(), *torch.autograd.grad(value, leaves)

        return run

    def exact(self) -> Result:
        """Returns value and gradients of plain PyTorch in float64, for the first set of inputs."""
        wide: list[list[Tensor]] = [
            [x.detach().double().requires_grad_(x.requires_grad) for x in side] for side in self.inputs[0]
        ]
        network = None if self.network is None else copy.deepcopy(self.network).double()
        leaves = [*(x for side in wide for x in side if x.requires_grad), *_trained(network)]
        with pix2pixhd.backend("reference"):
            value = self.loss_of(network)(*wide)
            return value.detach(), *torch.autograd.grad(value, leaves)

    def agreement(self, names: Sequence[str], exact: Result) -> dict[str, Agreement]:
        """Compares the results of implementations, for the first set of inputs and where needed for others."""
        return agreements(exact, self._result, names, self._redraw, self.setup.precision)

    def _result(self, name: str) -> Result:
        return cast(Result, self.run_of(name)())

    def _redraw(self, draw: int) -> Result:
        """Permutes the elements of the first set of inputs, which are independent, and returns the result in float64.

        In place, so that compiled code and CUDA graphs remain valid.
        """
        generator = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for x in itertools.chain(*self.inputs[0]):
                order = torch.randperm(x.numel(), generator=generator).to(x.device)
                x.copy_(x.flatten()[order].view_as(x))
        return self.exact()

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


def _replayed(run: Callable[[], Result]) -> Callable[[], Result]:
    """Returns the same work as a CUDA graph, without the overhead of Python and of launches."""
    graph, result = capture(run)

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def autocast(setup: Setup) -> contextlib.AbstractContextManager[object]:
    """Returns the context in which networks run: autocast to the setup's dtype, or none for float32."""
    if setup.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(setup.device.type, dtype=setup.dtype)


@contextlib.contextmanager
def tf32(setup: Setup) -> Iterator[None]:
    """Selects whether float32 convolutions and matrix products on a GPU use TF32, in forward and backward."""
    if setup.device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = setup.tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=setup.tf32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
