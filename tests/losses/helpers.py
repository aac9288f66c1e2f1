"""Random images, a plain PyTorch VGG19 and other networks for the loss tests."""

import torch
import torch.nn.functional as F
from torch import nn

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


def conv_network(inplace=True):
    """Returns a network with outputs that the next layer modifies in place."""
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2), nn.Conv2d(12, 8, 1)
    block = nn.Sequential(nn.ReLU(inplace=inplace), second, nn.Sigmoid())
    return nn.Sequential(first, block, third, nn.ReLU(inplace=inplace))


TAPS = ["0", "1.1", "1", "2"]


def conv_maps(network, x):
    """Computes the outputs of the taps without operations in place."""
    first = network[0](x)
    second = network[1][1](F.relu(first))
    third = torch.sigmoid(second)
    return [first, second, third, network[2](third)]


class Tokens(nn.Module):
    """A transformer with token sequences [N, L, C]; returns a dict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 16, batch_first=True) for _ in range(2)])

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        tokens = {}
        for k, block in enumerate(self.blocks):
            tokens[f"block{k}"] = x = block(x)
        return tokens | {"pooled": x.mean(1)}


def pair(batch=3, size=(16, 20), dtype=torch.float64):
    fake, real = random_images(batch, 3, *size), random_images(batch, 3, *size, seed=1)
    return fake.to(dtype).requires_grad_(), real.to(dtype)


def same(ours, theirs, rtol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * theirs.abs().max().item(), check_dtype=False)
