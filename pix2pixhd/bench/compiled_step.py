"""The losses inside a step that ``torch.compile`` compiles as a whole.

``torch.compile`` does not see into the operators of this package. It can compute a plain loss in the same pass as the
layers before it, but not a fused one: this measures which is faster.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.bench.case import Inputs, Loss, Result, TensorCase

__all__ = ["SUFFIX", "CompiledStepCase"]

SUFFIX = ", in a compiled step"


class _Step(nn.Module):
    """The end of a network, and the criterion of the case if it has one.

    The network is one scale and shift per channel, as the affine part of a norm, and an activation. Its input stands
    for the output of a convolution, which torch.compile does not fuse with what follows.
    """

    def __init__(self, inputs: Inputs, criterion: nn.Module | None) -> None:
        super().__init__()
        self.criterion = criterion
        fake = inputs[0]
        self.scales = nn.ParameterList(torch.ones_like(x[0, :, :1, :1]) for x in fake)
        self.shifts = nn.ParameterList(torch.zeros_like(x[0, :, :1, :1]) for x in fake)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Returns the tensors that the loss compares with the real ones."""
        activation = F.leaky_relu if self.criterion is None else torch.tanh  # of a discriminator, of a generator
        return [activation(x * a + b) for x, a, b in zip(inputs, self.scales, self.shifts, strict=True)]


class CompiledStepCase(TensorCase):
    """Forward and backward of a small network and a loss, compiled together with the fused and with the plain loss.

    Args:
        case: The loss.
    """

    names = ("fused", "plain")

    def __init__(self, case: TensorCase) -> None:
        def loss_of(step: Any) -> Loss:
            loss = case.loss_of(step.criterion)
            return lambda fake, real: loss(step(fake), real)

        def step() -> nn.Module:
            return _Step(case.inputs[0], case.network)

        # Without a network of its own the case has inputs in its dtype, and no autocast.
        images = case.make_network is not None
        setup = case.setup if images else dataclasses.replace(case.setup, dtype=torch.float32)
        super().__init__(loss_of, lambda: case.inputs, step, setup)

    @functools.cached_property
    def _compiled_losses(self) -> dict[str, Loss]:
        return {name: torch.compile(self.loss, fullgraph=True, dynamic=False) for name in self.names}

    def _loss(self, name: str) -> Loss:
        return self._compiled_losses[name]

    def _result(self, name: str) -> Result:
        """Returns the result of an implementation. That of ``plain`` is not compiled: the baseline of the errors."""
        return cast(Result, (self._run("reference", self.loss) if name == "plain" else self.run_of(name))())
