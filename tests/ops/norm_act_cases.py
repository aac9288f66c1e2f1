"""Random cases of norm_act, and the float64 oracle that they are compared with."""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor

from pix2pixhd.ops import norm_act as fused
from pix2pixhd.ops import norm_act_reference as reference

from .oracle import in_layout

# A single rounding in the result's dtype, and the arithmetic's own error in float32 and float64.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced", "cropped", "expanded"]


def images(shape, dtype=torch.float32, layout="contiguous", seed=0, offset=0.0):
    """Random images; ``offset`` is their mean."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
    if layout == "cropped":  # not dense, innermost dimension first or second
        wide = torch.randn((*shape[:2], shape[2] + 3, shape[3] + 2), generator=generator, dtype=torch.float64) + offset
        wide = wide.to(dtype)
        wide = wide.contiguous(memory_format=torch.channels_last) if seed % 2 else wide
        return wide[:, :, 1 : 1 + shape[2], 2 : 2 + shape[3]]
    return in_layout(values.to(dtype), layout)


@dataclasses.dataclass
class Case:
    """Arguments of a forward and its backward."""

    x: Tensor
    per_image: bool
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    activation: int
    slope: float
    padding: list[int]
    mode: int
    grad: Tensor
    normalised: bool
    through_statistics: bool
    source_is_output: bool


def random_case(seed: int, dtype: torch.dtype) -> Case:
    choose = random.Random(seed)
    few = choose.random() < 0.7
    channels = choose.choice([1, 2, 3, 5, 8, 17, 33, 63] if few else [64, 65, 96, 130, 1030, 2100])
    size = [choose.randint(1, 9), choose.randint(1, 12)] if channels > 130 else [choose.randint(1, 40) for _ in "hw"]
    if choose.random() < 0.1:
        size = [choose.choice([1, 2, 3, 300]), choose.choice([700, 1200, 4500])]
        channels = choose.choice([1, 3, 4])
    shape = (choose.choice([1, 1, 2, 3]), channels, *size)
    x = images(shape, dtype, choose.choice(LAYOUTS), seed)
    mode = choose.randint(0, 2)
    most = [min(4, (size[k] - 1 if mode == reference.REFLECT else 4)) for k in (1, 1, 0, 0)]
    padding = [choose.choice([0, m, choose.randint(0, m)]) for m in most] if choose.random() < 0.7 else [0] * 4
    padded = (*shape[:2], size[0] + padding[2] + padding[3], size[1] + padding[0] + padding[1])
    affine_dtype = choose.choice([dtype, torch.float32])
    generator = torch.Generator().manual_seed(seed + 1)

    def parameter() -> Tensor | None:
        if choose.random() < 0.4:
            return None
        values = torch.rand(channels, generator=generator) + 0.5
        return (values * (-1) ** torch.arange(channels)).to(affine_dtype)

    activation = choose.randint(0, 2)
    through = choose.random() < 0.7
    return Case(
        x=x,
        per_image=choose.random() < 0.6,
        eps=choose.choice([1e-5, 1e-3]),
        weight=parameter(),
        bias=parameter(),
        residual=images(shape, dtype, choose.choice(LAYOUTS), seed + 2) if choose.random() < 0.4 else None,
        activation=activation,
        slope=choose.choice([0.2, 0.01]),
        padding=padding,
        mode=mode,
        grad=images(padded, dtype, choose.choice(LAYOUTS), seed + 3),
        normalised=choose.random() < 0.8,
        through_statistics=through,
        source_is_output=choose.random() < 0.3 and (activation != reference.RELU or not through),
    )


def statistics_of(case: Case, functions=fused) -> tuple[Tensor | None, Tensor | None]:
    if not case.normalised:
        return None, None
    mean, rstd, _ = functions.norm_statistics(case.x, case.per_image, case.eps)
    return mean, rstd


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def forward(case: Case, functions, mean, rstd, convert=lambda t: t, *, plain=False) -> Tensor:
    """The padded result; with ``plain`` the activated one without residual and padding."""
    return functions.norm_act(
        convert(case.x),
        convert(mean),
        convert(rstd),
        convert(case.weight),
        convert(case.bias),
        None if plain else convert(case.residual),
        case.activation,
        case.slope,
        [0, 0, 0, 0] if plain else case.padding,
        case.mode,
    )


def backward(case: Case, functions, source, mean, rstd, convert=lambda t: t) -> tuple[Tensor, ...]:
    return functions.norm_act_backward(
        convert(case.grad),
        convert(source),
        case.source_is_output,
        convert(mean),
        convert(rstd),
        convert(case.weight),
        convert(case.bias),
        case.activation,
        case.slope,
        case.padding,
        case.mode,
        case.through_statistics,
        True,
        True,
        True,
    )


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, terms: int = 1) -> None:
    """Compare with float64 up to one rounding in ``dtype`` and float32's error in sums of ``terms`` elements."""
    tolerance = TOLERANCE[dtype]
    wide = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    scale = expected.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=wide * max(scale, 1.0) * terms**0.5, equal_nan=True
    )
