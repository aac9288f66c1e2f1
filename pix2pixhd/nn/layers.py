"""Instance normalisation layers."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.nn import state
from pix2pixhd.nn.functions import NormSpec, Statistics, normalise
from pix2pixhd.ops.norm_act import LEAKY_RELU, NONE, REFLECT, RELU, REPLICATE, ZERO, norm_act, norm_statistics

__all__ = ["InstanceNorm2d", "InstanceNormAct2d"]

_ACTIVATIONS = {None: NONE, "relu": RELU, "leaky_relu": LEAKY_RELU}
_PADDING_MODES = {"zeros": ZERO, "reflect": REFLECT, "replicate": REPLICATE}


class InstanceNorm2d(nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d``, computed as the equivalent batch normalisation if the batch is one image.

    This preserves channels-last memory format, takes half the time, and gives correct gradients. In PyTorch 2.15,
    instance norm on the CPU computes wrong gradients for one image if the upstream gradient is in channels-last memory
    format. An empty batch has an empty result, also with affine parameters, where PyTorch raises an ``IndexError``.

    Example:
        >>> InstanceNorm2d(8)(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every channel of every image ``[N, C, H, W]`` to mean 0 and variance 1."""
        if input.dim() != 4 or input.shape[0] > 1 or self.track_running_stats:
            return super().forward(input)
        if input.shape[0] == 0:
            return self._empty_batch(input)
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def _empty_batch(self, input: Tensor) -> Tensor:
        if self.weight is None or input.shape[1] != self.num_features:
            return super().forward(input)
        y = F.instance_norm(input, eps=self.eps) * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value >= 0


class InstanceNormAct2d(InstanceNorm2d):
    """Instance norm, activation and padding in one layer: ``pad(act(norm(x)))`` in one pass.

    The layer saves one tensor for backward: its input, or, for leaky ReLU without affine parameters and padding, its
    output. Within an ``nn.Sequential``, after ``pix2pixhd.nn.lean``, the convolution that follows saves no copy of the
    result either. Parameters are named as in ``torch.nn.InstanceNorm2d``.

    Args:
        num_features: Number of channels.
        eps: Added to the variance.
        affine: Whether to learn a scale and a shift for each channel.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Slope of leaky ReLU for negative values.
        padding: Padding of all four sides, or ``(left, right, top, bottom)``.
        padding_mode: ``"zeros"``, ``"reflect"`` or ``"replicate"``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is unknown or negative; in ``forward``, if the input is not ``[N, C, H, W]``.

    Example:
        >>> layer = InstanceNormAct2d(8, activation="relu", padding=1, padding_mode="reflect")
        >>> layer(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        activation: str | None = "relu",
        slope: float = 0.2,
        padding: int | tuple[int, int, int, int] = 0,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine=affine, device=device, dtype=dtype)
        sides = (padding,) * 4 if isinstance(padding, int) else padding
        if activation not in list(_ACTIVATIONS):  # unlike a dictionary, a list can be asked for an unhashable value
            raise ValueError(f"activation must be 'relu', 'leaky_relu' or None, got {activation!r}")
        if not isinstance(slope, (int, float)):
            raise ValueError(f"slope must be a number, got {slope!r}")
        if padding_mode not in list(_PADDING_MODES):
            raise ValueError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}")
        if not isinstance(sides, (tuple, list)) or len(sides) != 4 or not all(_is_size(side) for side in sides):
            raise ValueError(f"padding must be one or four integers of at least 0, got {padding!r}")
        self.activation = activation
        self.slope = slope
        self.padding = cast("tuple[int, int, int, int]", tuple(sides))
        self.padding_mode = padding_mode

    @property
    def spec(self) -> NormSpec:
        """The layer's constants."""
        keep_output = self.activation == "leaky_relu" and self.slope > 0 and not self.affine and not any(self.padding)
        return NormSpec(
            Statistics.IMAGE,
            self.eps,
            _ACTIVATIONS[self.activation],
            self.slope,
            self.padding,
            _PADDING_MODES[self.padding_mode],
            keep_output,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[N, C, H + top + bottom, W + left + right]``."""
        if input.dim() != 4:
            raise ValueError(f"input must be [N, C, H, W], got {list(input.shape)}")
        unsupported = state.is_transformed() or not state.is_plain_image(input)
        if unsupported or input[0, 0].numel() < 2 or input.shape[1] != self.num_features:
            return self._plain(input)
        if torch.is_grad_enabled():
            return normalise(input, self.weight, self.bias, self.spec)[0]
        mean, rstd, _ = norm_statistics(input, True, self.eps)
        return norm_act(input, mean, rstd, self.weight, self.bias, None, *self.spec.constants)

    def _plain(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if self.activation == "relu":
            y = F.relu(y)
        elif self.activation == "leaky_relu":
            y = F.leaky_relu(y, self.slope)
        if not any(self.padding):
            return y
        return F.pad(y, self.padding, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def extra_repr(self) -> str:
        """Return the arguments."""
        own = f"activation={self.activation}, slope={self.slope}, padding={self.padding}, mode={self.padding_mode}"
        return f"{super().extra_repr()}, {own}"  # type: ignore[no-untyped-call]
