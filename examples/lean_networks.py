"""Save memory in networks of another project: a CycleGAN generator and a U-Net, made lean in place.

    python examples/lean_networks.py [--size 128] [--width 16]

`lean` finds the chains of norm, activation, padding and convolution in the `nn.Sequential`s of a network. It changes
neither parameters nor results, so checkpoints load both ways. For each network the example prints the memory that is
saved for backward, plain and lean, and the largest relative difference of a gradient.
"""

from __future__ import annotations

import argparse
import copy
import itertools

import torch
from torch import Tensor, nn

from pix2pixhd.nn import lean


class ResidualBlock(nn.Module):
    """Two convolutions with reflection padding, around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """From [N, C, H, W] to the same shape."""
        return x + self.block(x)


def cycle_generator(width: int = 64, blocks: int = 9) -> nn.Module:
    """The generator of CycleGAN (arXiv 1703.10593): [N, 3, H, W] to [N, 3, H, W], sides divisible by 4."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True)]
    for factor in (1, 2):
        inner, outer = width * factor, 2 * width * factor
        layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.InstanceNorm2d(outer), nn.ReLU(True)]
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for factor in (4, 2):
        inner, outer = width * factor, width * factor // 2
        layers += [nn.ConvTranspose2d(inner, outer, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(outer), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.InstanceNorm2d(outputs, affine=True)]
        layers += [nn.LeakyReLU(0.01, True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net with the layers of nnU-Net (arXiv 1809.10486) in two dimensions: [N, 1, H, W] to [N, 4, H, W].

    Args:
        width: Channels at full resolution.
        depth: Number of times that the resolution is halved; the sides must be divisible by ``2**depth``.
    """

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(depth + 1)]
        self.first = _two_convolutions(1, width)
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in itertools.pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in sizes[:-1])
        self.merge = nn.ModuleList(_two_convolutions(2 * a, a) for a in sizes[:-1])
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of four classes."""
        features = [self.first(x)]
        for block in self.down:
            features.append(block(nn.functional.max_pool2d(features[-1], 2)))
        x = features.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([features.pop(), up(x)], dim=1))
        return self.last(x)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Run forward and backward; return the size of all tensors that were saved for backward, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = network(x).square().mean()
    loss.backward()
    return sum(sizes.values())


def compare(network: nn.Module, x: Tensor) -> tuple[int, int, float]:
    """Return the bytes saved by the plain and the lean network, and the largest relative difference of a gradient."""
    slim = lean(copy.deepcopy(network))
    slim.load_state_dict(network.state_dict())
    plain, less = saved_bytes(network, x), saved_bytes(slim, x)
    largest = max(weight.grad.norm() for weight in network.parameters())
    pairs = zip(network.parameters(), slim.parameters(), strict=True)
    return plain, less, max(float((a.grad - b.grad).norm() / largest) for a, b in pairs)


def main(size: int, width: int) -> list[tuple[int, int, float]]:
    """Compare both networks."""
    torch.manual_seed(0)
    results = []
    for name, network, channels in (("CycleGAN generator", cycle_generator(width), 3), ("U-Net", UNet(width), 1)):
        plain, less, difference = compare(network, torch.rand(1, channels, size, size))
        print(f"{name:<20}{plain / 1e6:8.1f} MB saved, lean {less / 1e6:6.1f} MB; gradients differ by {difference:.1e}")
        results.append((plain, less, difference))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    main(options.size, options.width)
