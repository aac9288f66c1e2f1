"""Trainings of tiny networks that differ in their implementation or by one rounding, step by step.

``python -m tests.training.trajectories`` compares every combination of ``OPTIONS``, in a quarter of an hour; the tests
compare the combinations of ``rows()``, which contain every pair of values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from covertable import make as covering_rows
from torch import Tensor

import pix2pixhd
from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.nn import lean
from pix2pixhd.training.module import Pix2PixHD

Row = dict[str, Any]

STEPS = 20
ROUNDED = 2  # plain runs with changed weights per combination
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

OPTIONS: dict[str, list[Any]] = {
    "preset": ["paper", "nvidia", "spade", "imaginaire", "mlops"],
    "precision": list(DTYPES),
    "generator": ["global", "local", "instance features"],
    "discriminator": ["1 scale", "2 scales", "3 scales"],
    "norm": ["instance", "batch"],
    "perceptual": ["none", "vgg"],
    "gan_mode": [None, "vanilla", "wgan"],  # None is that of the preset, LSGAN or hinge
}

_GENERATORS: dict[str, Row] = {
    "global": {},
    "local": {"netG": "local"},
    "instance features": {"instance_feat": True},
}
_DISCRIMINATORS: dict[str, Row] = {
    "1 scale": {"num_D": 1, "n_layers_D": 3},
    "2 scales": {"num_D": 2, "n_layers_D": 2},
    "3 scales": {"num_D": 3, "n_layers_D": 1},
}


def rows() -> list[Row]:
    """Combinations that contain every pair of values."""
    # Indices of the values, because the library orders values by hash and some are None.
    positions = {name: list(range(len(values))) for name, values in OPTIONS.items()}
    return [{name: OPTIONS[name][row[name]] for name in OPTIONS} for row in covering_rows(positions, tolerance=0)]


def make_module(row: Row) -> Pix2PixHD:
    torch.manual_seed(0)
    perceptual: Row = {"lambda_vgg": 0.0}
    if row["perceptual"] == "vgg":
        perceptual = {"vgg": "random", "perceptual_layers": ["relu1_1", "relu2_1"]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*random weights")
        return Pix2PixHD(
            ModelOptions(
                **_GENERATORS[row["generator"]],
                **_DISCRIMINATORS[row["discriminator"]],
                norm=row["norm"],
                ngf=4,
                ndf=4,
                nef=4,
                n_downsample_global=1,
                n_blocks_global=1,
                n_blocks_local=1,
                n_downsample_E=1,
            ),
            DataOptions(label_nc=4),
            LossOptions(preset=row["preset"], gan_mode=row["gan_mode"], **perceptual),
            OptimizerOptions(),
        )


def make_batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "input": torch.randint(0, 4, (1, 16, 24), generator=generator, dtype=torch.int32),
        "instance": torch.randint(0, 5, (1, 16, 24), generator=generator, dtype=torch.int32),
        "image": torch.rand(1, 3, 16, 24, generator=generator) * 2 - 1,
    }


def change_by_one_rounding(module: Pix2PixHD, dtype: torch.dtype, seed: int) -> None:
    """Changes every trained weight by one unit in the last place of the dtype, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in itertools.chain(*(network.parameters() for network in module._networks())):
            sign = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + sign * torch.finfo(dtype).eps)


def train(row: Row, fused: bool, rounded: int = 0) -> Tensor:
    """Trains for ``STEPS`` steps as ``Pix2PixHD.training_step`` does.

    Args:
        row: The combination.
        fused: Whether to use the fused operators and lean networks.
        rounded: Seed of the changes of the initial weights; 0 changes nothing.

    Returns:
        All loss terms, ``[STEPS, terms]``.
    """
    dtype, module = DTYPES[row["precision"]], make_module(row)
    half = dtype is not torch.float32
    if rounded:
        change_by_one_rounding(module, dtype, rounded)
    for network in module._networks():
        network.to(memory_format=torch.channels_last if half else torch.contiguous_format)
        lean(network, fused)
    optimizers, _ = module.configure_optimizers()
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    module.manual_backward = lambda loss, **options: scaler.scale(loss).backward(**options)  # type: ignore[method-assign]
    history = []
    with pix2pixhd.backend("fused" if fused else "reference"):
        for step in range(STEPS):
            batch: Any = make_batch(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            autocast = torch.autocast("cpu", dtype) if half else contextlib.nullcontext()
            with autocast:
                terms = module.compute_gradients(module.encode(batch), batch["image"], module.encode_features(batch))
            for optimizer in optimizers:
                scaler.unscale_(optimizer) if scaler.is_enabled() else None
                scaler.step(optimizer)
            scaler.update()
            history.append(torch.stack([term.double() for term in terms.values()]))
    return torch.stack(history)


def growth(losses: Tensor, expected: Tensor) -> Tensor:
    """The largest difference of any term up to each step, relative to the largest value of the term, ``[STEPS]``."""
    difference = (losses - expected).abs() / expected.abs().amax(dim=0).clamp_min(1e-6)
    return difference.amax(dim=1).cummax(dim=0).values


@dataclasses.dataclass
class Comparison:
    """Growth of the differences from the plain run: of the fused run, and of plain runs with changed weights."""

    fused: Tensor
    rounded: Tensor  # [ROUNDED, STEPS]

    @property
    def excess(self) -> Tensor:
        """Logarithm of the growth of the fused run relative to the geometric mean of the rounded runs, ``[STEPS]``."""
        return _log(self.fused) - _log(self.rounded).mean(dim=0)


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(torch.float32).eps).log()  # smaller differences are those of the loss itself


def compare(row: Row) -> Comparison:
    plain = train(row, fused=False)
    assert torch.isfinite(plain).all(), row
    rounded = [growth(train(row, fused=False, rounded=1 + k), plain) for k in range(ROUNDED)]
    return Comparison(growth(train(row, fused=True), plain), torch.stack(rounded))


def tolerance(comparisons: Sequence[Comparison], sigmas: float = 5.0) -> float:
    """How far the growth of one more rounded run could exceed the mean of the others, as a logarithm.

    The growth varies from run to run. The standard deviation of its logarithm is measured on the rounded runs, at all
    steps of all combinations; the difference from the mean of n others varies by ``sqrt(1 + 1/n)`` times as much.
    """
    deviations = torch.stack([_log(found.rounded).var(dim=0) for found in comparisons])
    return float(sigmas * (deviations.mean() * (1 + 1 / ROUNDED)).sqrt())


def main(arguments: Sequence[str]) -> int:
    every = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
    chosen = rows() if list(arguments) == ["pairs"] else every
    found = []
    for number, row in enumerate(chosen, 1):
        found.append(compare(row))
        sizes = ", ".join(f"{float(x[-1]):.1e}" for x in (found[-1].fused, *found[-1].rounded))
        worst = float(found[-1].excess.max().exp())
        print(f"{number}/{len(chosen)}  {row}: {sizes}, at most {worst:.1f} times the mean", flush=True)
    allowed = tolerance(found)
    failed = [row for row, comparison in zip(chosen, found, strict=True) if comparison.excess.max() > allowed]
    largest = max(float(comparison.excess.max()) for comparison in found)
    print(f"fused: at most {math.exp(largest):.1f} times the mean of the rounded runs; allowed {math.exp(allowed):.1f}")
    for row in failed:
        print(f"FAILED {row}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
