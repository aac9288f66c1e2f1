"""The rate of matrix products, and the operations of convolutions: what bounds the time of a network."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pix2pixhd.bench.timing import Ratio, Timing

__all__ = [
    "ComputeLimit",
    "convolution_flops",
    "count_convolution_flops",
    "matrix_product",
    "matrix_product_flops",
    "matrix_product_peak",
]

# Sides of the square matrices: large enough for the best rate.
_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclasses.dataclass(frozen=True)
class ComputeLimit:
    """The time that the convolutions of a case take at the rate of matrix products in the same dtype.

    Attributes:
        product: Times of one matrix product, from the same rounds as those of the implementations.
        product_flops: Floating-point operations of the product.
        convolution_flops: Floating-point operations of the convolutions, forward and backward.
    """

    product: Timing
    product_flops: float
    convolution_flops: float

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            "seconds of a product": list(self.product.rounds),
            "operations of a product": self.product_flops,
            "operations of the convolutions": self.convolution_flops,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ComputeLimit:
        """Reads what ``to_json`` returned."""
        return cls(
            Timing(tuple(found["seconds of a product"])),
            found["operations of a product"],
            found["operations of the convolutions"],
        )

    @property
    def timing(self) -> Timing:
        """The times of the convolutions at the rate of the matrix products."""
        factor = self.convolution_flops / self.product_flops
        return Timing(tuple(factor * seconds for seconds in self.product.rounds))

    def share(self, timing: Timing) -> Ratio:
        """Returns the share of the matrix-product peak that an implementation reaches."""
        return Ratio.of(self.timing, timing)


def matrix_product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """Returns a call of ``torch.mm`` with random square matrices."""
    side = _SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def matrix_product_flops(device: torch.device) -> float:
    """Returns the number of floating-point operations of ``matrix_product``."""
    return 2.0 * _SIDE[device.type] ** 3


def matrix_product_peak(dtype: torch.dtype, device: torch.device, seconds: float = 2.0) -> float:
    """Returns the best rate of ``matrix_product`` within some seconds, in operations per second."""
    product, calls = matrix_product(dtype, device), 3
    best, begin = 0.0, time.perf_counter()
    product()
    while time.perf_counter() - begin < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, calls * matrix_product_flops(device) / (time.perf_counter() - started))
    return best


def convolution_flops(event: Any) -> int:
    """Returns the floating-point operations of a convolution or its backward.

    Args:
        event: An event of ``torch.profiler`` with shapes. Those of other operators count as 0.
    """
    shapes, values = event.input_shapes, event.concrete_inputs
    if event.name == "aten::convolution":
        source, weight = shapes[0], shapes[1]
        stride, padding, dilation, transposed = values[3:7]
        if transposed:
            positions = source[2:]
        else:
            extents = zip(source[2:], weight[2:], stride, padding, dilation, strict=True)
            positions = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in extents]
        passes = 1
    elif event.name == "aten::convolution_backward":
        output, source, weight = shapes[:3]
        positions = source[2:] if values[7] else output[2:]
        passes = sum(values[10][:2])  # of the input and of the weight
    else:
        return 0
    return int(2 * source[0] * math.prod(positions) * math.prod(weight) * passes)


def count_convolution_flops(run: Callable[[], object]) -> int:
    """Returns the floating-point operations of all convolutions of a call, forward and backward."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or else it prints lines of its own to stderr
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        run()
    return sum(map(convolution_flops, recorded.events() or []))
