"""The instance feature encoder of pix2pixHD (arXiv 1711.11585, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pix2pixhd.models.generators import _check_counts, _check_input, _global_trunk, _to_image
from pix2pixhd.models.layers import InstanceNorm2d, NormLayer, init_weights

__all__ = ["Encoder", "instance_mean"]


def instance_mean(features: Tensor, instance: Tensor) -> Tensor:
    """Replace the features of every pixel by the mean over its instance, the paper's instance-wise average pooling.

    The computation takes one sort and two scatters for the whole batch, for any number of instances, without a copy to
    the host; NVIDIA's code loops over instances and channels in Python. Sums are accumulated at least in float32.

    Args:
        features: ``[N, C, H, W]``, of any floating-point dtype.
        instance: Integer ids ``[N, H, W]`` or ``[N, 1, H, W]``; equal ids in one image are one instance. The values
            are arbitrary.

    Returns:
        ``[N, C, H, W]``; gradients flow to ``features``.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> instance_mean(torch.tensor([[[[1.0, 3.0, 8.0]]]]), torch.tensor([[[7, 7, 9]]]))
        tensor([[[[2., 2., 8.]]]])
    """
    n, channels, height, width = features.shape
    if instance.numel() != n * height * width:
        raise ValueError(f"instance must be {[n, height, width]} for these features, got {list(instance.shape)}")
    ids = instance.reshape(n, -1)
    ordered, order = ids.sort(dim=1)
    starts = torch.zeros_like(ids, dtype=torch.int64)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Numbers the instances of each image 0, 1, …. There are at most as many as pixels, so no shape depends on data.
    number = torch.empty_like(starts).scatter_(1, order, starts.cumsum(1))
    values = features.reshape(n, channels, -1)
    values = values if values.dtype == torch.float64 else values.float()
    where = number[:, None].expand(-1, channels, -1)
    sums = torch.zeros_like(values).scatter_add(2, where, values)
    counts = torch.zeros_like(values[:, :1]).scatter_add_(2, number[:, None], torch.ones_like(values[:, :1]))
    means = (sums / counts.clamp(min=1)).gather(2, where)
    return means.to(features.dtype).view_as(features)


class Encoder(nn.Module):
    """Encode a real image as a few features per pixel, which are constant within each instance.

    Parameters are named ``model.N…`` as in NVIDIA's ``latest_net_E.pth``. The encoder is trained
    together with the generator, which takes the features in addition to the labels. At inference, other features give
    an instance another appearance.

    Args:
        input_nc: Channels of the image.
        output_nc: Number of features.
        ngf: Channels of the first convolution; each downsampling doubles them.
        n_downsampling: Number of downsamplings, each by a factor of 2.
        norm_layer: Function from the number of channels to a normalisation layer.

    Attributes:
        multiple: Height and width of the image must be multiples of this, and at least twice as large.

    Raises:
        ValueError: If a count is too small; in ``forward``, if the number of channels differs or the size
            violates ``multiple``.

    Example:
        >>> encoder = Encoder(input_nc=3, output_nc=3, ngf=4, n_downsampling=2)
        >>> ids = torch.zeros(1, 16, 16, dtype=torch.int32)
        >>> encoder(torch.randn(1, 3, 16, 16), ids).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsampling: int = 4,
        norm_layer: NormLayer = InstanceNorm2d,
    ) -> None:
        super().__init__()
        _check_counts(input_nc=input_nc, output_nc=output_nc, ngf=ngf, n_downsampling=n_downsampling)
        self.input_nc = input_nc
        self.output_nc = output_nc
        self.multiple: int = 2**n_downsampling
        trunk = _global_trunk(input_nc, ngf, n_downsampling, 0, norm_layer, "reflect")
        self.model = nn.Sequential(*trunk, *_to_image(ngf, output_nc))
        init_weights(self)

    def forward(self, input: Tensor, inst: Tensor) -> Tensor:
        """Return features ``[N, output_nc, H, W]`` in [−1, 1] of images ``[N, input_nc, H, W]`` with ids ``inst``."""
        _check_input(input, self.input_nc, self.multiple)
        return instance_mean(self.model(input), inst)
