"""Discriminator outputs, VGG weights and backend fixtures for the loss tests."""

import pytest
import torch

import pix2pixhd
from pix2pixhd.models.vgg import FrozenVGG, load_vgg


def predictions(num_D=2, n_layers=3, size=24, seed=0, dtype=torch.float32, requires_grad=False):
    """Returns a random discriminator output: per scale, n_layers + 1 feature maps and the prediction."""
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for k in range(num_D):
        side = size >> k
        shapes = [(2, 4 << i, max(side >> i, 2), max(side >> i, 3)) for i in range(n_layers + 1)] + [(2, 1, 5, 4 + k)]
        scales.append([torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes])
    return scales


@pytest.fixture(scope="session")
def vgg() -> FrozenVGG:
    with pytest.warns(UserWarning, match="random weights"):
        return load_vgg("random")


@pytest.fixture(scope="session")
def vgg_file(vgg, tmp_path_factory):
    """A state dict file with torchvision's names and a classifier entry, like the pretrained file."""
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({**vgg.state_dict(), "classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(params=["auto", "reference"])
def any_backend(request):
    with pix2pixhd.backend(request.param):
        yield request.param
