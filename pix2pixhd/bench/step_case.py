"""The whole training step as a benchmark case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

import pix2pixhd
from pix2pixhd.bench.agreement import Agreement, Result, agreements
from pix2pixhd.bench.case import Implementation, Setup, autocast, tf32
from pix2pixhd.bench.shapes import discriminator_shapes
from pix2pixhd.bench.step_setup import StepSetup
from pix2pixhd.bench.steps import OurStep, batch, free_gradients, make_step
from pix2pixhd.errors import InputError

__all__ = ["StepCase"]


class StepCase:
    """A step of G and D with all losses and Adam: this package's, and NVIDIA's in plain PyTorch, with the same weights.

    The learning rate is 0, so that every step does the same. There is no ``compiled``: NVIDIA's
    step is compared as it is.

    Args:
        setup: Images and discriminator. The networks are those of the 512p setting; for images of less than a tenth of
            its pixels they have half as many channels, or else their weights would hide the rest.
        step_setup: Other networks, for tests.
    """

    def __init__(self, setup: Setup, step_setup: StepSetup | None = None) -> None:
        self.setup = setup
        width = 64 if 10 * setup.width * setup.height * setup.batch > 1024 * 512 else 32
        size = f"{setup.width}x{setup.height}"
        self.step_setup = step_setup or StepSetup(size, ngf=width, ndf=width, num_D=setup.num_D)
        self._draw = 0  # the number of the images

    names = ("fused", "plain")

    def check(self) -> None:
        """Checks that the networks accept the images.

        Raises:
            InputError: If they are too small, or if the generator would return another size.
        """
        width, height = self.setup.width, self.setup.height
        multiple = 2**self.step_setup.n_downsample
        if any(side % multiple or side < 2 * multiple for side in (width, height)):
            raise InputError(
                f"--size: the case 'training step' needs width and height in multiples of {multiple} and at least "
                f"{2 * multiple}, got {width}x{height}; change it, or choose other cases with --case"
            )
        if any(rows * columns == 1 for _, _, rows, columns in discriminator_shapes(self.setup)[0]):
            raise InputError(
                "--num-d: the images of the case 'training step' must have more than one pixel at the coarsest of "
                f"{self.setup.num_D} scales, got {width}x{height}; lower --num-d, or raise --size"
            )

    def run_of(self, name: str, between: Callable[[], object] | None = None) -> Implementation:
        """Returns one step of ``fused`` or ``plain``. Forward and backward are not apart: ``between`` is not called."""
        own, device = name == "fused", self.setup.device
        step = make_step(self._implementation(name), self.step_setup, device, self._channels_last, lr=0.0)
        condition, real = batch(self.step_setup, device, self.setup.batch)

        def run() -> None:
            with pix2pixhd.backend("fused" if own else "reference"), tf32(self.setup), autocast(self.setup):
                step(condition, real)
            free_gradients(step)

        return run

    def exact(self) -> Result:
        """Returns the loss terms and the gradients of both networks of NVIDIA's step in float64."""
        return self._gradients("plain", torch.float64)

    def agreement(self, names: Sequence[str], exact: Result) -> dict[str, Agreement]:
        """Compares the loss terms and the gradients of both networks, for the images and where needed for others."""

        def redraw(draw: int) -> Result:
            self._draw = draw
            return self.exact()

        try:
            return agreements(exact, self._gradients, names, redraw, self.setup.precision)
        finally:
            self._draw = 0

    @staticmethod
    def _implementation(name: str) -> str:
        return "ours" if name == "fused" else "original"

    @property
    def _channels_last(self) -> bool:
        return self.setup.dtype != torch.float32  # as in the training package

    def _gradients(self, name: str, weights: torch.dtype = torch.float32) -> Result:
        """Returns the sum of the losses of G and D, and the gradients of each network's own loss."""
        device, own = self.setup.device, name == "fused"
        step = make_step(self._implementation(name), self.step_setup, device, self._channels_last, dtype=weights)
        inputs = [x.to(weights) for x in batch(self.step_setup, device, self.setup.batch, self._draw)]
        precision = autocast(self.setup) if weights == torch.float32 else contextlib.nullcontext()
        parameters = [list(net.parameters()) for net in (step.netG, step.netD)]
        with pix2pixhd.backend("fused" if own else "reference"), tf32(self.setup):
            if isinstance(step, OurStep):
                with precision:
                    terms = step.gradients(*inputs)
                totals = [terms["G_total"], terms["D_real"] + terms["D_fake"]]
                gradients = [x.grad for network in parameters for x in network]
            else:
                with precision:
                    totals = list(step.totals(step.losses(*inputs)))
                gradients = [
                    gradient
                    for loss, network in zip(totals, parameters, strict=True)
                    for gradient in torch.autograd.grad(loss, network, retain_graph=True)
                ]
        return tuple(x.detach() for x in (totals[0] + totals[1], *gradients) if x is not None)
