"""Random images and a plain PyTorch VGG19 for the loss tests."""

import torch
import torch.nn.functional as F

from pix2pixhd.models.vgg import FrozenVGG

WEIGHTS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0]
CONVOLUTIONS = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28]
POOLS = [4, 9, 18, 27]


def plain_feature_maps(state, x):
    """Computes VGG19 up to relu5_1 in the dtype of ``x`` and returns the five compared feature maps."""
    feature_maps = []
    for index in range(30):
        if index in CONVOLUTIONS:
            x = F.conv2d(x, state[f"features.{index}.weight"].to(x), state[f"features.{index}.bias"].to(x), padding=1)
        elif index in POOLS:
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(x)
            if index in (1, 6, 11, 20, 29):
                feature_maps.append(x)
    return feature_maps


def random_images(*shape, seed=0):
    """Returns random images in [−1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) * 2 - 1


def narrow_vgg(network, layers):
    """Returns a random VGG with a quarter of the channels, which convolves ten times faster in float64."""
    vgg, channels = FrozenVGG(network, layers), 3
    generator = torch.Generator().manual_seed(0)
    for index, layer in enumerate(vgg.features):
        if isinstance(layer, torch.nn.Conv2d):
            narrow = torch.nn.Conv2d(channels, max(32, layer.out_channels // 4), 3, padding=1)  # operators need 32
            torch.nn.init.normal_(narrow.weight, std=(2 / (9 * channels)) ** 0.5, generator=generator)
            torch.nn.init.normal_(narrow.bias, std=0.1, generator=generator)
            vgg.features[index], channels = narrow, narrow.out_channels
    return vgg.requires_grad_(False).eval().to(memory_format=torch.channels_last)
