"""Keeping the perceptual loss's gradient within float16's range.

The gradient of a mean over millions of elements is below float16's smallest number, and that of a small image with
large weights, multiplied by one fixed factor, is above its largest. So each image's gradient carries a power of two of
its own. It is computed on the device, without synchronization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The largest element is brought to at least 2^4 and below 2^5. Up to the next pooling, four convolutions later, it may
# grow 2^11 times before it overflows; elements 2^18 times smaller are still normal numbers.
_LEVEL = 2.0**4
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_EXPONENT_BITS = 0x7F800000  # of a float32


def _per_image(scale: Tensor, dims: int) -> Tensor:
    return scale.view(-1, *[1] * (dims - 1))


class Float16Scale:
    """The factor of a float16 gradient on its way back through the network, one power of two per image.

    Args:
        peaks: For each convolution, in order, the magnitude ``[N]`` of the largest term that the loss adds to the
            gradient behind it, in float32; None where it adds none.
        device: Of the gradient.
        images: N.
    """

    def __init__(self, peaks: Sequence[Tensor | None], images: int, device: torch.device) -> None:
        # The largest term still to come when the gradient reaches each convolution. fmax ignores NaN: a NaN in one
        # pixel's weight must not turn the factor, and with it every pixel, into NaN.
        largest = torch.full((images,), _SMALLEST, device=device)
        self._to_come = []
        for peak in peaks:
            largest = largest if peak is None else torch.fmax(largest, peak)
            self._to_come.append(largest)
        self._value = self._factor(largest)

    @staticmethod
    def _factor(peak: Tensor) -> Tensor:
        exponents = peak.clamp(_SMALLEST, _LARGEST).view(torch.int32) & _EXPONENT_BITS
        return _LEVEL / exponents.view(torch.float32)

    def adapt(self, gradient: Tensor, convolution: int) -> Tensor:
        """Rescales the gradient to what it has grown or shrunk to, before it passes this convolution's pooling."""
        peak = torch.linalg.vector_norm(gradient, torch.inf, dim=(1, 2, 3), dtype=torch.float32) / self._value
        value = self._factor(torch.fmax(peak, self._to_come[convolution]))
        gradient = gradient.mul_(_per_image(value / self._value, 4))
        self._value = value
        return gradient

    def weigh(self, weight: Tensor | None, like: Tensor) -> Tensor:
        """The pixel weights ``[N, H, W]`` of a map like this, times the factor."""
        scale = _per_image(self._value, 3)
        if weight is not None:
            return weight * scale
        return scale.expand(-1, like.shape[2], like.shape[3]).contiguous()

    def undo(self, gradient: Tensor) -> Tensor:
        """The gradient in float32 without the factor."""
        return gradient.to(torch.float32).div_(_per_image(self._value, 4))
