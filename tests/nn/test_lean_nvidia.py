"""``lean`` for networks of other repositories: stand-ins with the layers and names of their code."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.nn import lean

from .helpers import differentiate, error, images, kept_bytes, plain_and_lean, randomised

norm_layer = functools.partial(nn.InstanceNorm2d, affine=False)


class ResnetBlock(nn.Module):
    """NVIDIA's pix2pixHD, models/networks.py; CycleGAN's and CUT's are the same but for the names."""

    def __init__(self, dim, dropout):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), norm_layer(dim)]
        middle = [nn.ReLU(True), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*half, *middle, *copy.deepcopy(half))

    def forward(self, x):
        return x + self.conv_block(x)


class GlobalGenerator(nn.Module):
    """NVIDIA's pix2pixHD."""

    def __init__(self, dropout=False):
        super().__init__()
        activation = nn.ReLU(True)  # one layer at many positions
        model = [nn.ReflectionPad2d(3), nn.Conv2d(4, 8, 7), norm_layer(8), activation]
        for width in (8, 16):
            model += [nn.Conv2d(width, width * 2, 3, 2, 1), norm_layer(width * 2), activation]
        model += [ResnetBlock(32, dropout) for _ in range(2)]
        for width in (32, 16):
            up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1)
            model += [up, norm_layer(width // 2), activation]
        model += [nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*model)

    def forward(self, x):
        return self.model(x)


class Discriminator(nn.Module):
    """NVIDIA's pix2pixHD with features: two scales of stages, each an nn.Sequential."""

    def __init__(self):
        super().__init__()
        for scale in range(2):
            stages = [[nn.Conv2d(7, 8, 4, 2, 2), nn.LeakyReLU(0.2, True)]]
            for stride, width in ((2, 8), (1, 16)):
                stages.append([nn.Conv2d(width, width * 2, 4, stride, 2), norm_layer(width * 2)])
                stages[-1].append(nn.LeakyReLU(0.2, True))
            stages.append([nn.Conv2d(32, 1, 4, 1, 2)])
            for k, stage in enumerate(stages):
                setattr(self, f"scale{scale}_layer{k}", nn.Sequential(*stage))

    def forward(self, x):
        results = []
        for scale in (1, 0):
            features = [x]
            for k in range(4):
                features.append(getattr(self, f"scale{scale}_layer{k}")(features[-1]))
            results.append(features[1:])
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return results


class UNet(nn.Module):
    """nnU-Net's blocks, affine norms and leaky ReLU within nn.Sequentials, with skip connections."""

    def __init__(self):
        super().__init__()

        def block(inputs, outputs, stride):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
            return nn.Sequential(conv, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.01, True))

        self.down = nn.ModuleList([nn.Sequential(block(4, 8, 1), block(8, 8, 1)), block(8, 16, 2), block(16, 16, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.join = nn.ModuleList([nn.Sequential(block(32, 16, 1), block(16, 16, 1)), block(16, 3, 1)])

    def forward(self, x):
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        return x


@pytest.mark.parametrize("build", [GlobalGenerator, Discriminator, UNet])
def test_networks_of_other_repositories_have_the_plain_gradients(build):
    plain, ours = plain_and_lean(randomised(build()).double())
    x = images(2, 7 if build is Discriminator else 4, 32, 24)
    (expected, wanted), (found, grads) = differentiate(plain, x), differentiate(ours, x)
    assert error(found, expected) < 1e-12
    assert error(grads, wanted) < 1e-12
    kept, before = (kept_bytes(lambda network=network: network(x)) for network in (ours, plain))
    assert kept < {GlobalGenerator: 0.6, Discriminator: 0.8, UNet: 0.75}[build] * before


def test_dropout_between_layers_is_unchanged():
    plain, ours = plain_and_lean(randomised(GlobalGenerator(dropout=True)).double())
    results = []
    for network in (plain, ours):
        torch.manual_seed(0)
        results.append(differentiate(network, images(1, 4, 16, 16))[1])
    assert error(results[1], results[0]) < 1e-12


def step(netG, netD, optimizers, x, real):
    """A step of NVIDIA's model: three passes of D, LSGAN and feature matching."""
    fake = netG(x)
    pool, true = netD(torch.cat([x, fake.detach()], 1)), netD(torch.cat([x, real], 1))
    pred = netD(torch.cat([x, fake], 1))

    def lsgan(scales, label):
        return sum((scale[-1] - label).square().mean() for scale in scales)

    pairs = [(a, b) for f, r in zip(pred, true, strict=True) for a, b in zip(f[:-1], r[:-1], strict=True)]
    loss_G = lsgan(pred, 1.0) + 10 * sum(F.l1_loss(a, b.detach()) for a, b in pairs)
    loss_D = (lsgan(pool, 0.0) + lsgan(true, 1.0)) * 0.5
    for optimizer, loss in zip(optimizers, (loss_G, loss_D), strict=True):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack([loss_G, loss_D]).detach()


def test_nvidias_model_trains_to_the_same_losses_and_checkpoints_load_both_ways():
    pairs = []
    for make in (lambda network: network, lean):
        torch.manual_seed(0)
        netG, netD = make(GlobalGenerator().double()), make(Discriminator().double())
        optimizers = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (netG, netD)]
        losses = [
            step(netG, netD, optimizers, images(1, 4, 32, 32, seed=k), images(1, 3, 32, 32, seed=k + 9).tanh())
            for k in range(20)
        ]
        pairs.append((netG, netD, torch.stack(losses)))
    (plain_G, plain_D, expected), (lean_G, lean_D, found) = pairs
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for plain, ours in ((plain_G, lean_G), (plain_D, lean_D)):
        ours.load_state_dict(plain.state_dict())
        plain.load_state_dict(ours.state_dict())
