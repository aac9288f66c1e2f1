"""The multi-scale PatchGAN discriminator of pix2pixHD (arXiv 1711.11585, section 3.2) with NVIDIA's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from pix2pixhd.models.layers import InstanceNorm2d, NormLayer, init_weights
from pix2pixhd.nn.concatenation import downsample

__all__ = ["MultiscaleDiscriminator", "NLayerDiscriminator"]

_MAX_CHANNELS = 512


def _stages(input_nc: int, ndf: int, n_layers: int, norm_layer: NormLayer, use_sigmoid: bool) -> list[nn.Sequential]:
    """Build the ``n_layers + 2`` stages of one PatchGAN; the last returns predictions, the others features."""

    def conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=2)

    # In-place activations are safe although the features are returned: the next stage only reads them.
    stages = [nn.Sequential(conv(input_nc, ndf, 2), nn.LeakyReLU(0.2, inplace=True))]
    channels = ndf
    for stage in range(1, n_layers + 1):
        previous, channels = channels, min(channels * 2, _MAX_CHANNELS)
        stride = 2 if stage < n_layers else 1
        stages.append(
            nn.Sequential(conv(previous, channels, stride), norm_layer(channels), nn.LeakyReLU(0.2, inplace=True))
        )
    # NVIDIA's code adds the sigmoid as a separate stage, which it never calls when features are requested.
    stages.append(nn.Sequential(conv(channels, 1, 1), *([nn.Sigmoid()] if use_sigmoid else [])))
    return stages


def _check(input_nc: int, ndf: int, n_layers: int, num_D: int = 1) -> None:
    for name, value in (("input_nc", input_nc), ("ndf", ndf), ("n_layers", n_layers), ("num_D", num_D)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class NLayerDiscriminator(nn.Module):
    """A PatchGAN: every output pixel classifies one patch of the input as real or fake.

    Args:
        input_nc: Channels of the input: condition and image, concatenated.
        ndf: Channels of the first convolution; doubled by each layer, up to 512.
        n_layers: Number of layers between the first layer and the prediction.
        norm_layer: Function from the number of channels to a normalisation layer.
        use_sigmoid: Whether predictions are probabilities, for a vanilla GAN loss that takes probabilities.
        getIntermFeat: Whether the features of all layers are returned, for feature matching.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import torch
        >>> discriminator = NLayerDiscriminator(39, ndf=8, n_layers=2, getIntermFeat=True)
        >>> [tuple(x.shape) for x in discriminator(torch.randn(1, 39, 32, 32))]
        [(1, 8, 17, 17), (1, 16, 9, 9), (1, 32, 10, 10), (1, 1, 11, 11)]
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm_layer: NormLayer = InstanceNorm2d,
        use_sigmoid: bool = False,
        getIntermFeat: bool = False,
    ) -> None:
        super().__init__()
        _check(input_nc, ndf, n_layers)
        self.getIntermFeat = getIntermFeat
        self.n_layers = n_layers
        stages = _stages(input_nc, ndf, n_layers, norm_layer, use_sigmoid)
        if getIntermFeat:
            for j, stage in enumerate(stages):
                self.add_module(f"model{j}", stage)
        else:
            self.model = nn.Sequential(*(layer for stage in stages for layer in stage))
        init_weights(self)

    def forward(self, input: Tensor) -> list[Tensor]:
        """Evaluate ``[N, input_nc, H, W]``; return a list whose last element is the prediction ``[N, 1, h, w]``."""
        if not self.getIntermFeat:
            return [self.model(input)]
        return _run_stages([self.get_submodule(f"model{j}") for j in range(self.n_layers + 2)], input)


def _run_stages(stages: list[nn.Module], x: Tensor) -> list[Tensor]:
    features = []
    for stage in stages:
        x = stage(x)
        features.append(x)
    return features


class MultiscaleDiscriminator(nn.Module):
    """``num_D`` PatchGANs on the image at full resolution and repeatedly halved.

    Parameters are named as in NVIDIA's ``latest_net_D.pth``: ``scale{i}_layer{j}.0.weight`` with ``getIntermFeat``,
    else ``layer{i}.N.weight``. Scale ``num_D − 1`` is the **full** resolution; scale 0 is the coarsest.

    Args:
        input_nc: Channels of the input: condition and image, concatenated.
        ndf: Channels of the first convolution; doubled by each layer, up to 512.
        n_layers: Number of layers between the first layer and the prediction, ``n_layers_D`` in NVIDIA's options.
        norm_layer: Function from the number of channels to a normalisation layer.
        use_sigmoid: Whether predictions are probabilities.
        num_D: Number of scales.
        getIntermFeat: Whether the features of all layers are returned, for feature matching. The default is
            that of NVIDIA's code.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import torch
        >>> discriminator = MultiscaleDiscriminator(39, ndf=8, n_layers=2, num_D=2, getIntermFeat=True)
        >>> [[tuple(x.shape[2:]) for x in scale] for scale in discriminator(torch.randn(1, 39, 32, 32))]
        [[(17, 17), (9, 9), (10, 10), (11, 11)], [(9, 9), (5, 5), (6, 6), (7, 7)]]
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm_layer: NormLayer = InstanceNorm2d,
        use_sigmoid: bool = False,
        num_D: int = 3,
        getIntermFeat: bool = False,
    ) -> None:
        super().__init__()
        _check(input_nc, ndf, n_layers, num_D)
        self.num_D = num_D
        self.n_layers = n_layers
        self.getIntermFeat = getIntermFeat
        for i in range(num_D):
            stages = _stages(input_nc, ndf, n_layers, norm_layer, use_sigmoid)
            if getIntermFeat:
                for j, stage in enumerate(stages):
                    self.add_module(f"scale{i}_layer{j}", stage)
            else:
                self.add_module(f"layer{i}", nn.Sequential(*(layer for stage in stages for layer in stage)))
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        init_weights(self)

    def forward(self, input: Tensor) -> list[list[Tensor]]:
        """Evaluate ``[N, input_nc, H, W]`` at every scale.

        Returns:
            A list over scales, full resolution first, of lists over layers, whose last element is the prediction.
            Without ``getIntermFeat``, each inner list contains only the prediction.
        """
        results = []
        for scale in reversed(range(self.num_D)):
            results.append(_run_stages(self._scale(scale), input))
            if scale:
                input = downsample(self.downsample, input)
        return results

    def _scale(self, i: int) -> list[nn.Module]:
        if not self.getIntermFeat:
            return [self.get_submodule(f"layer{i}")]
        return [self.get_submodule(f"scale{i}_layer{j}") for j in range(self.n_layers + 2)]
