"""Scaling that keeps the perceptual loss's gradient within float16's range.

The gradient of a mean over millions of elements is below float16's smallest number. That of a small image with large
weights, multiplied by one fixed factor, is above its largest. Each image's gradient is therefore multiplied by a power
of two of its own, which is computed on the device without synchronization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The largest element is scaled to at least 2^4 and below 2^5. Until the next pooling, four convolutions later, it may
# grow by 2^11 before it overflows; elements 2^18 times smaller are still normal numbers.
_LEVEL = 2.0**4
SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_EXPONENT_BITS = 0x7F800000  # of a float32


def power_of_two(peak: Tensor) -> Tensor:
    """Return the factor that scales numbers of this magnitude, ``[N]`` in float32, to the level for float16."""
    exponents = peak.clamp(SMALLEST, _LARGEST).view(torch.int32) & _EXPONENT_BITS
    return _LEVEL / exponents.view(torch.float32)


def _per_image(scale: Tensor, dims: int) -> Tensor:
    return scale.view(-1, *[1] * (dims - 1))


class Float16Scale:
    """The scale of a float16 gradient during the backward pass, one power of two per image.

    Args:
        peaks: For each convolution, in order, the magnitude ``[N]`` of the largest term that the loss adds to the
            gradient of its output, in float32; None where it adds none.
        images: Number of images, N.
        device: Device of the gradient.
    """

    def __init__(self, peaks: Sequence[Tensor | None], images: int, device: torch.device) -> None:
        # The largest term that is still to be added when the gradient reaches each convolution. fmax ignores NaN: a NaN
        # in one pixel's weight must not turn the scale, and with it every pixel, into NaN.
        largest = torch.full((images,), SMALLEST, device=device, dtype=torch.float32)
        self._remaining = []
        for peak in peaks:
            largest = largest if peak is None else torch.fmax(largest, peak)
            self._remaining.append(largest)
        self._value = power_of_two(largest)

    def adapt(self, gradient: Tensor, convolution: int) -> Tensor:
        """Rescale the gradient to its current magnitude, before it passes this convolution's pooling."""
        peak = torch.linalg.vector_norm(gradient, torch.inf, dim=(1, 2, 3), dtype=torch.float32) / self._value
        value = power_of_two(torch.fmax(peak, self._remaining[convolution]))
        gradient = gradient.mul_(_per_image(value / self._value, 4))
        self._value = value
        return gradient

    def weigh(self, weight: Tensor | None, like: Tensor) -> Tensor:
        """Return the scaled pixel weights ``[N, H, W]`` of a feature map with the shape of ``like``."""
        scale = _per_image(self._value, 3)
        if weight is not None:
            return weight * scale
        return scale.expand(-1, like.shape[2], like.shape[3]).contiguous()

    def undo(self, gradient: Tensor) -> Tensor:
        """Return the gradient in float32 without the scale."""
        return gradient.to(torch.float32).div_(_per_image(self._value, 4))
