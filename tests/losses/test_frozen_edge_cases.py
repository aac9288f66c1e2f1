"""Losses on frozen networks with unusual networks, distances and arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.losses import LPIPS, FrozenFeatureLoss, StyleLoss, VGGLoss
from pix2pixhd.losses.distances import Distance

from .helpers import random_images


class Doubling(nn.Module):
    """A network that modifies its input in place."""

    def __init__(self, channels=(4,)):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(3, count, 3) for count in channels)

    def forward(self, images):
        images.mul_(2)
        return [layer(images) for layer in self.layers]


class RandomDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, training=True)


IN_PLACE = {
    "outputs": lambda: FrozenFeatureLoss(Doubling()),
    "taps": lambda: FrozenFeatureLoss(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), ["0", "1"]),
    "checkpoint": lambda: FrozenFeatureLoss(nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(3, 4, 3)), checkpoint=True),
    "autograd": lambda: FrozenFeatureLoss(Doubling(), keep_activations=True),
    "vgg": lambda: VGGLoss(vgg=Doubling(), weights=[1.0]),
    "vgg, autograd": lambda: VGGLoss(vgg=Doubling(), weights=[1.0], keep_activations=True),
    "style": lambda: StyleLoss(Doubling(), style_layers=["layers.0"], normalize="none"),
    "lpips": lambda: LPIPS(net="alex", version="0.0", pretrained=False, trunk=Doubling((64, 192, 384, 256, 256))),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_networks_may_modify_their_input_in_place(kind):
    loss, images = IN_PLACE[kind]().double(), random_images(2, 3, 32, 32).double()
    fake, real = images.clone().requires_grad_(), images.flip(0)
    with torch.no_grad():
        loss(fake, real)
    loss.features(real)
    value = loss(fake, real).sum()
    (gradient,) = torch.autograd.grad(value, fake)
    assert torch.equal(fake, images)
    assert torch.equal(real, images.flip(0))
    step = torch.randn(images.shape, dtype=images.dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ahead, behind = (loss(images + sign * 1e-6 * step, real).sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * step).sum(), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-9)


def test_random_layers_are_recomputed_with_the_same_numbers():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), RandomDropout(), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()).double()
    fake, real = (random_images(2, 3, 8, 8, seed=seed).double().requires_grad_() for seed in (0, 1))
    gradients = []
    for options in ({"checkpoint": True}, {"keep_activations": True}):
        criterion = FrozenFeatureLoss(network, distance="mse", **options)
        torch.manual_seed(0)
        gradients += torch.autograd.grad(criterion(fake, real), fake)
    torch.testing.assert_close(*gradients)


class Product(Distance):
    """A distance whose closed gradient is the target itself."""

    name, masked = "product", False

    def value(self, x, target, weight, axis):
        return (x * target).flatten(1).sum(1)

    def value_and_gradient(self, x, target, weight, axis):
        return self.value(x, target, weight, axis), target


@pytest.mark.parametrize("distance", [lambda x, y: x.sum(), lambda x, y: x.flatten(1).mean(1), Product()])
@pytest.mark.parametrize("images", [1, 2])
def test_gradients_of_distances_may_be_expanded_or_alias_the_target(distance, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).double()
    fake, real = (random_images(images, 3, 8, 8, seed=seed).double().requires_grad_() for seed in (0, 1))
    options = {"taps": ["0", "1"], "distance": distance, "weights": [2.0, 3.0]}
    lean, plain = (FrozenFeatureLoss(network, keep_activations=keep, **options) for keep in (False, True))
    features = lean.features(real)
    expected = torch.autograd.grad(plain(fake, real), fake)
    for target in (real, features, features):
        torch.testing.assert_close(torch.autograd.grad(lean(fake, target), fake), expected)


class Returning(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize("keep_activations", [False, True])
@pytest.mark.parametrize(
    ("function", "shape"),
    [(lambda x: x[:1], r"\(1, 3, 8, 8\)"), (lambda x: x.flatten(2).permute(2, 0, 1), r"\(64, 2, 3\)")],
    ids=["first image", "batch second"],
)
def test_outputs_without_one_entry_per_image_are_rejected(function, shape, keep_activations):
    images = random_images(2, 3, 8, 8)
    for network, taps in ((Returning(function), None), (nn.Sequential(Returning(function)), ["0"])):
        criterion = FrozenFeatureLoss(network, taps, keep_activations=keep_activations)
        with pytest.raises(ValueError, match=rf"must have the shape \[N, C, ...\] with N = 2 images, got {shape}"):
            criterion(images, images)


shared = nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize(
    ("network", "options", "error", "message"),
    [
        (Returning(lambda x: []), {}, ValueError, "network must return at least one tensor, got an empty list"),
        (nn.Identity(), {"distance": lambda x, y: 0.5}, TypeError, "distance must return .* tensor, got float; .*item"),
        (nn.Identity(), {"distance": lambda x, y: (x, 1)}, TypeError, "distance must return .* tensor, got tuple"),
        (nn.Identity(), {"channel_dim": "1"}, TypeError, "channel_dim must be the number of a dimension.*got '1'"),
        (nn.Identity(), {"channel_dim": 4, "distance": "gram"}, ValueError, "channel_dim must be a dim.*got 4 for"),
        (nn.Identity(), {"channel_dim": -4, "distance": "gram"}, ValueError, "channel_dim must be .* the batch's"),
        (nn.Identity(), {"distance": "lpips", "linear": [[1, 1, 1]]}, TypeError, r"linear\[0\] must be a tensor"),
        (
            nn.Identity(),
            {"distance": "lpips", "linear": [torch.ones(3, requires_grad=True)]},
            ValueError,
            r"linear\[0\] requires a gradient.*pass linear\[0\].detach\(\)",
        ),
        (nn.Sequential(nn.Identity()), {"taps": [0]}, TypeError, r"taps must be a list of module names, got 0 \(int\)"),
        (nn.Sequential(shared, shared), {"taps": ["1"]}, ValueError, "module '1' is called more than once"),
        (nn.Sequential(shared, shared), {"taps": ["0", "1"]}, ValueError, "'0' and '1' are the same module"),
    ],
)
def test_other_mistakes_are_explained(network, options, error, message):
    images = random_images(2, 3, 8, 8)
    with pytest.raises(error, match=message):
        FrozenFeatureLoss(network, **options)(images, images)


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_trunk_of_lpips_with_other_channels_is_an_error(per_layer):
    metric, images = LPIPS(net="alex", pretrained=False, trunk=Doubling((5,) * 5)), random_images(1, 3, 32, 32)
    with pytest.raises(ValueError, match="one number per channel of its feature map, 5, got 64; pass other weights"):
        metric(images, images, retPerLayer=per_layer)


@pytest.mark.parametrize("target", [None, [1.0]])
@pytest.mark.parametrize("kind", ["outputs", "vgg", "style", "lpips"])
def test_targets_that_are_neither_images_nor_features_are_rejected(kind, target):
    loss, images = IN_PLACE[kind](), random_images(1, 3, 32, 32)
    with pytest.raises(TypeError, match=rf"must be a tensor, or \w*Features from .*, got {type(target).__name__}"):
        loss(images, target)
    with pytest.raises(TypeError, match=r"(fake|in0) must be a tensor, got ndarray"):
        loss(images.numpy(), images)


def test_the_error_of_a_second_derivative_names_a_deleted_loss():
    fake = random_images(1, 3, 8, 8).requires_grad_()
    value = FrozenFeatureLoss(nn.Conv2d(3, 4, 3))(fake, fake.detach() + 1)  # nothing else refers to the loss
    (gradient,) = torch.autograd.grad(value, fake, create_graph=True)
    with pytest.raises(RuntimeError, match=r"FrozenFeatureLoss was differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("lean", [FrozenFeatureLoss, VGGLoss])
def test_only_a_loss_with_the_option_suggests_checkpoints(lean):
    loss = lean(Doubling(), memory_limit=1) if lean is FrozenFeatureLoss else lean(vgg=Doubling(), memory_limit=1)
    loss.weights = [1.0]
    with pytest.raises(ValueError, match=r"one image needs .*; raise the limit") as caught:
        loss(random_images(1, 3, 16, 16), random_images(1, 3, 16, 16))
    assert ("checkpoint=True" in str(caught.value)) == (lean is FrozenFeatureLoss)
