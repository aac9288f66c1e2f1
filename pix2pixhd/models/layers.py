"""Building blocks shared by generators and discriminators: normalisation, initial weights, residual blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pix2pixhd.nn import InstanceNorm2d
from pix2pixhd.nn.lean import add_output

__all__ = ["InstanceNorm2d", "NormLayer", "ResnetBlock", "get_norm_layer", "init_weights"]

NormLayer = Callable[[int], nn.Module]

_PADDING: dict[str, tuple[type[nn.Module] | None, int]] = {
    "reflect": (nn.ReflectionPad2d, 0),
    "replicate": (nn.ReplicationPad2d, 0),
    "zero": (None, 1),
}


def get_norm_layer(norm_type: str = "instance") -> NormLayer:
    """Return the normalisation layer with a name of NVIDIA's ``--norm`` option.

    Args:
        norm_type: ``"instance"`` (no parameters, no running statistics; used by the published weights) or ``"batch"``.

    Returns:
        A function from the number of channels to a layer.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> get_norm_layer("instance")(64).affine
        False
    """
    if norm_type == "instance":
        return functools.partial(InstanceNorm2d, affine=False, track_running_stats=False)
    if norm_type == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True)
    raise ValueError(f"norm must be 'instance' or 'batch', got {norm_type!r}")


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02) and batch-norm scales from N(1, 0.02), as the paper's code does."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.weight.normal_(0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1.0, 0.02)
            layer.bias.zero_()


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions with a skip connection: ``x + conv_block(x)``; ``[N, dim, H, W]`` in and out.

    Args:
        dim: Number of channels.
        padding_type: ``"reflect"``, ``"replicate"`` or ``"zero"``.
        norm_layer: Function from the number of channels to a normalisation layer.
        activation: Activation between the convolutions; ReLU if None.
        use_dropout: Whether to drop half of the values between the convolutions.

    Raises:
        ValueError: If ``padding_type`` is unknown.

    Example:
        >>> ResnetBlock(8, "reflect", nn.InstanceNorm2d)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        dim: int,
        padding_type: str,
        norm_layer: NormLayer,
        activation: nn.Module | None = None,
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        if padding_type not in _PADDING:
            raise ValueError(f"padding_type must be one of {', '.join(_PADDING)}, got {padding_type!r}")
        make_pad, conv_padding = _PADDING[padding_type]

        def padded_conv() -> list[nn.Module]:
            pad = [] if make_pad is None else [make_pad(1)]
            return [*pad, nn.Conv2d(dim, dim, kernel_size=3, padding=conv_padding), norm_layer(dim)]

        middle = [activation or nn.ReLU(inplace=True), *([nn.Dropout(0.5)] if use_dropout else [])]
        # Positions in the Sequential are part of the checkpoint format: conv_block.1 and conv_block.5 with padding
        # layers and without dropout.
        self.conv_block = nn.Sequential(*padded_conv(), *middle, *padded_conv())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + conv_block(x)``."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = x + self.conv_block(x)
        else:
            output = add_output(x, self.conv_block, x)
        return output
