"""Checks of the images that losses on frozen networks receive: their range of values, dtype and device."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pix2pixhd.losses import FrozenFeatureLoss, StyleLoss, VGGLoss

from .helpers import random_images

RANGES = ((-1, 1), (0, 1))


class FeatureMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return [self.first(images)]


LOSSES = {
    "VGGLoss": lambda **options: VGGLoss(vgg=FeatureMaps(), weights=[1.0], **options),
    "StyleLoss": lambda **options: StyleLoss(FeatureMaps(), style_layers=["first"], **options),
    "FrozenFeatureLoss": lambda **options: FrozenFeatureLoss(FeatureMaps(), **({"normalize": "imagenet"} | options)),
}


@pytest.fixture
def reads(monkeypatch):
    """Counts how often a loss reads values of images."""
    found, aminmax = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: found.append(x.shape) or aminmax(x))
    return found


@pytest.mark.parametrize("kind", LOSSES)
def test_values_that_contradict_the_range_are_reported_on_the_first_call_only(kind, reads):
    images = random_images(1, 3, 16, 16)
    images_of_bytes = (images + 1) * 127.5
    loss, (fitting, of_unit_range) = LOSSES[kind](), (LOSSES[kind](input_range=values) for values in RANGES)
    bytes_expected = r"has values from .* to 25\d, but images in \[-1, 1\] are expected; pass input_range=\(0, 255\)"
    with pytest.warns(UserWarning, match=bytes_expected):
        loss(images_of_bytes, images_of_bytes)
    assert len(reads) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(images_of_bytes, images_of_bytes)
        assert len(reads) == 1
        fitting(images, images)
    with pytest.warns(UserWarning, match=r"images in \[0, 1\] are expected; pass input_range=\(-1, 1\)"):
        of_unit_range(images, images)


def test_the_default_range_of_any_network_is_not_checked(reads):
    images = 100 * random_images(1, 3, 16, 16)
    FrozenFeatureLoss(FeatureMaps())(images, images)
    FrozenFeatureLoss(nn.Linear(5, 5), input_range=(0, 1))(torch.rand(2, 5), torch.rand(2, 5))
    assert len(reads) == 1
    StyleLoss(FeatureMaps(), style_layers=["first"], normalize="none")(images / 100, images / 100)
    assert len(reads) == 2


def test_values_are_not_read_in_graphs(reads):
    images = (random_images(1, 3, 16, 16) + 1) * 127.5
    for make in LOSSES.values():
        loss = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            if isinstance(loss, FrozenFeatureLoss) and not isinstance(loss, StyleLoss):  # one: compilation is slow
                torch.compile(loss, backend="eager", fullgraph=True)(images, images)
            torch.func.vmap(loss)(images[None], images[None])
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                loss(mode.from_tensor(images), mode.from_tensor(images))
        assert not reads
        with pytest.warns(UserWarning, match="are expected"):  # the first call that can read them
            loss(images, images)
        reads.clear()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_integer_images_are_an_error_with_a_remedy(kind, dtype):
    loss, images = LOSSES[kind](dtype=dtype), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    message = r"must be float32, .*, got torch.uint8; convert it with .float\(\)"
    with pytest.raises(TypeError, match=message), torch.autocast("cpu", enabled=dtype is None):
        loss(images, images)
    with pytest.raises(TypeError, match=r"is torch.float64 and the .* torch.float32; convert the images"):
        LOSSES[kind]()(images.double(), images.double())


def test_inputs_that_are_no_batch_of_images_or_too_small_are_explained():
    images, network = random_images(2, 3, 8, 8), nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match="fake must be at least 16x16 for 5 scales, got 8x8; enlarge the images"):
        FrozenFeatureLoss(network, scale_weights=[1.0] * 5)(images, images)
    FrozenFeatureLoss(network, scale_weights=[1.0] * 4)(images, images)
    with pytest.raises(ValueError, match=r"the input has the shape \(3, 8, 8\), and a single image .*\.unsqueeze\(0\)"):
        FrozenFeatureLoss(network)(images[0], images[0])
    vectors = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"mask needs images \[N, C, H, W\], got an input of shape \(2, 3\); omit"):
        FrozenFeatureLoss(nn.Linear(3, 3))(vectors, vectors, torch.ones(2, 3))


@pytest.mark.parametrize("kind", LOSSES)
def test_images_on_another_device_are_an_error_that_names_the_class(kind):
    images = torch.zeros(1, 3, 16, 16, device="meta")
    with pytest.raises(ValueError, match=rf"is on meta and the .* on cpu; move the loss: {kind}\(...\).to\('meta'\)"):
        LOSSES[kind]()(images, images)
