"""The instance feature encoder of pix2pixHD (arXiv 1711.11585, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pix2pixhd.models.generators import _check_counts, _check_input, _global_trunk, _to_image
from pix2pixhd.models.layers import InstanceNorm2d, NormLayer, init_weights

__all__ = ["Encoder", "instance_mean"]


def instance_mean(features: Tensor, instance: Tensor) -> Tensor:
    """Replaces every pixel's features by the mean over its instance: the paper's instance-wise average pooling.

    One sort and two scatters for the whole batch, however many instances there are, and no copy to the host; the
    original loops over instances and channels in Python. Sums are taken in at least float32.

    Args:
        features: ``[N, C, H, W]``, of any floating type.
        instance: Integer ids ``[N, H, W]`` or ``[N, 1, H, W]``; equal ids in one image are one instance, whatever
            their values are.

    Returns:
        ``[N, C, H, W]``; gradients flow to ``features``.

    Raises:
        ValueError: If the shapes do not agree.

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
    # Numbers the instances of each image 0, 1, …; there are at most as many as pixels, so no size depends on data.
    number = torch.empty_like(starts).scatter_(1, order, starts.cumsum(1))
    wide = features.reshape(n, channels, -1)
    wide = wide if wide.dtype == torch.float64 else wide.float()
    where = number[:, None].expand(-1, channels, -1)
    sums = torch.zeros_like(wide).scatter_add(2, where, wide)
    counts = torch.zeros_like(wide[:, :1]).scatter_add_(2, number[:, None], torch.ones_like(wide[:, :1]))
    means = (sums / counts.clamp(min=1)).gather(2, where)
    return means.to(features.dtype).view_as(features)


class Encoder(nn.Module):
    """From a real image to a few features per pixel, equal all over each instance.

    Parameters are named ``model.N…`` as in NVIDIA's ``latest_net_E.pth``. Trained together with the generator, which
    takes the features beside the labels; at generation other features give the instance another look.

    Args:
        input_nc: Channels of the image.
        output_nc: Number of features.
        ngf: Channels of the first convolution; each downsampling doubles them.
        n_downsampling: How often the image is halved.
        norm_layer: From the number of channels to a normalisation layer.

    Attributes:
        multiple: Height and width of the image must be multiples of this, and at least twice as large.

    Raises:
        ValueError: For counts that are too small; in ``forward`` for an image of another number of channels or a size
            that cannot be halved often enough.

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
        """Features ``[N, output_nc, H, W]`` in [−1, 1] of images ``[N, input_nc, H, W]`` with ids ``inst``."""
        _check_input(input, self.input_nc, self.multiple)
        return instance_mean(self.model(input), inst)
