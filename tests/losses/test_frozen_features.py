"""FrozenFeatureLoss compared with its formula in plain PyTorch: distances, layouts, options, precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.losses import FrozenFeatureLoss
from pix2pixhd.losses.distances import Distance, base, register

from .helpers import TAPS, Tokens, conv_maps, conv_network, pair, random_images, same


def weighted_mean(distance, mask):
    if mask is not None:
        distance = distance * F.adaptive_avg_pool2d(mask.view(1, 1, *mask.shape), distance.shape[2:])
    return distance.flatten(1).mean(1)


def unit(x, dim, eps):
    return x / (x.square().sum(dim, keepdim=True).sqrt() + eps)


def grams(x, dim):
    x = x.movedim(dim, 1).reshape(len(x), x.shape[dim], -1)
    return torch.einsum("ncp,ndp->ncd", x, x) / x[0].numel()


# Per image, for feature maps with the channels in `dim`.
FORMULAS = {
    "l1": lambda x, y, dim, mask: weighted_mean((x - y).abs(), mask),
    "mse": lambda x, y, dim, mask: weighted_mean((x - y) ** 2, mask),
    "cosine": lambda x, y, dim, mask: weighted_mean((1 - F.cosine_similarity(x, y, dim)).unsqueeze(dim), mask),
    "lpips": lambda x, y, dim, mask: weighted_mean(
        (unit(x, dim, 1e-10) - unit(y, dim, 1e-10)).square().sum(dim, keepdim=True), mask
    ),
    "gram": lambda x, y, dim, mask: (grams(x, dim) - grams(y, dim)).square().flatten(1).mean(1),
}


def formula(distance, maps, others, weights, dims, mask=None):
    terms = zip(weights, maps, others, dims, strict=True)
    return sum(w * FORMULAS[distance](x, y.detach(), dim, mask) for w, x, y, dim in terms)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", FORMULAS)
def test_every_distance_matches_its_formula(distance, dtype, masked):
    if masked and distance == "gram":
        return
    network, weights = conv_network().to(dtype), [0.5, 1.0, 2.0, -1.0]
    fake, real = pair(dtype=dtype)
    mask = random_images(16, 20, seed=2).to(dtype) if masked else None
    wide = copy.deepcopy(network).double()
    x = fake.detach().double().requires_grad_()
    maps, others = conv_maps(wide, x), conv_maps(wide, real.double())
    expected = formula(distance, maps, others, weights, [1] * 4, None if mask is None else mask.double())
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    rtol = 1e-10 if dtype == torch.float64 else 1e-5 if distance == "gram" else 2e-6
    for options in ({}, {"checkpoint": True}, {"memory_limit": 2**20}, {"keep_activations": True}):
        criterion = FrozenFeatureLoss(network, TAPS, distance, weights=weights, reduction="none", **options)
        for target in (real, criterion.features(real)):
            loss = criterion(fake, target, mask)
            same(loss, expected, rtol)
            same(torch.autograd.grad(loss, fake, upstream.to(dtype))[0], wanted, rtol)
    criterion = FrozenFeatureLoss(network, TAPS, distance, weights=weights)
    same(criterion(fake, real, mask), expected.mean(), rtol)


@pytest.mark.parametrize("distance", FORMULAS)
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}])
def test_tokens_and_vectors_have_their_channels_last(distance, options):
    network = Tokens().double().eval()
    fake, real = pair(2, (16, 16))
    maps, others = (list(network(x).values()) for x in (fake, real))
    expected = formula(distance, maps, others, [1.0] * 3, [2, 2, 1]).mean()
    (wanted,) = torch.autograd.grad(expected, fake)
    loss = FrozenFeatureLoss(network, None, distance, **options)(fake, real)
    same(loss, expected)
    same(torch.autograd.grad(loss, fake)[0], wanted)


def test_lpips_applies_linear_weights_and_channel_dim():
    class Nhwc(nn.Module):
        def forward(self, x):
            return x.movedim(1, 3) * 2

    linear = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)
    fake, real = pair()
    mask = random_images(16, 20, seed=2).double()
    criterion = FrozenFeatureLoss(Nhwc(), None, "lpips", linear=[linear.float()], channel_dim=-1, reduction="none")
    criterion = criterion.double()
    squares = (unit(fake, 1, 1e-10) - unit(real, 1, 1e-10)).square() * linear.float().double().view(1, 3, 1, 1)
    expected = weighted_mean(squares.sum(1, keepdim=True), mask)
    loss = criterion(fake, real, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    same(torch.autograd.grad(loss.sum(), fake)[0], torch.autograd.grad(expected.sum(), fake)[0], 1e-9)
    assert criterion.state_dict() == {}
    assert list(criterion.buffers()) == []
    with pytest.raises(ValueError, match="linear must have one number per channel of its feature map, 3, got 2"):
        FrozenFeatureLoss(nn.Identity(), None, "lpips", linear=[torch.ones(2)])(fake.float(), real.float())


@pytest.mark.parametrize("distance", ["cosine", "lpips"])
@pytest.mark.parametrize("keep", [False, True])
def test_gradient_at_zero_vectors_is_zero_and_finite_elsewhere(distance, keep):
    fake, real = pair(1)
    fake.data[:, :, :4] = 0
    real[:, :, 2:6] = 0
    criterion = FrozenFeatureLoss(nn.Identity(), None, distance, keep_activations=keep)
    (gradient,) = torch.autograd.grad(criterion(fake, real), fake)
    assert gradient.isfinite().all()
    assert not gradient[:, :, :4].any()
    assert gradient[:, :, 6:].any()


@pytest.mark.parametrize("keep", [False, True])
def test_functions_and_custom_distances_are_differentiated(keep):
    class Huber(Distance):
        name, masked = "huber", False

        def value(self, x, target, weight, axis):
            return F.huber_loss(x, target, reduction="none", delta=0.1).flatten(1).mean(1)

    network, (fake, real) = conv_network().double(), pair()
    expected = sum(
        F.huber_loss(x, y.detach(), delta=0.1)
        for x, y in zip(conv_maps(network, fake), conv_maps(network, real), strict=True)
    )
    (wanted,) = torch.autograd.grad(expected, fake)
    register(Huber)
    try:
        scalar = lambda x, y: F.huber_loss(x, y, delta=0.1)  # noqa: E731
        per_image = lambda x, y: torch.stack([scalar(a, b) for a, b in zip(x, y, strict=True)])  # noqa: E731
        for distance in (scalar, per_image, Huber(), "huber", [scalar, "huber", per_image, Huber()]):
            loss = FrozenFeatureLoss(network, TAPS, distance, keep_activations=keep)(fake, real)
            same(loss, expected)
            same(torch.autograd.grad(loss, fake)[0], wanted)
    finally:
        del base._registry["huber"]


def test_scales_ranges_and_normalization_match_the_formula():
    network, (fake, real) = conv_network().double(), pair(2, (32, 36))
    criterion = FrozenFeatureLoss(
        network, ["1"], scale_weights=(1.0, 0.0, 0.5), input_range=(0, 1), normalize="imagenet"
    )
    expected, means, stds = 0.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def prepared(x):
        return (x - torch.tensor(means).view(3, 1, 1).double()) / torch.tensor(stds).view(3, 1, 1).double()

    for factor, weight in ((1, 1.0), (4, 0.5)):
        x, y = prepared(fake), prepared(real)
        for _ in range(factor.bit_length() // 2 * 2 if factor > 1 else 0):
            x, y = (F.interpolate(z, size=[s // 2 for s in z.shape[2:]], mode="bilinear") for z in (x, y))
        expected = expected + weight * F.l1_loss(network[1](network[0](x)), network[1](network[0](y)))
    loss = criterion(fake, real)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(criterion(fake, criterion.features(real)), loss, rtol=1e-12, atol=0)
    gray = random_images(2, 1, 32, 36).double()
    torch.testing.assert_close(
        criterion(gray, gray * 0.5), criterion(*[x.expand(-1, 3, -1, -1) for x in (gray, gray * 0.5)])
    )


def gradient_error(criterion, fake, real, exact, scaled=False):
    for exponent in range(16, -40, -4) if scaled else [0]:
        loss = criterion(fake, real)
        (gradient,) = torch.autograd.grad(loss * 2.0**exponent, fake)
        if gradient.isfinite().all():
            return (gradient.double() / 2.0**exponent - exact).norm() / exact.norm()
    return pytest.fail("no scale gives a finite gradient")


@pytest.mark.parametrize("factor", [1.0, 1e5, 1e-6])
@pytest.mark.parametrize("distance", ["l1", "mse", "cosine", "lpips", "gram"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_at_most_twice_that_of_autograd(distance, dtype, factor):
    network, (fake, real) = conv_network(), pair(2, (16, 16), torch.float32)
    options = {"taps": TAPS, "distance": distance, "weights": [factor] * 4}
    wide = FrozenFeatureLoss(copy.deepcopy(network).double(), keep_activations=True, **options)
    x = fake.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(wide(x, real.double()), x)
    ours = gradient_error(FrozenFeatureLoss(network, dtype=dtype, **options), fake, real, exact)
    plain = FrozenFeatureLoss(network, dtype=dtype, keep_activations=True, **options)
    theirs = gradient_error(plain, fake, real, exact, scaled=True)
    assert ours <= 2 * theirs + 1e-6
    assert ours < 0.5


def test_half_network_and_autocast_follow_pytorch():
    network, (fake, real) = conv_network(), pair(2, (16, 16), torch.float32)
    criterion = FrozenFeatureLoss(network, TAPS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(fake, real)
    torch.testing.assert_close(loss, FrozenFeatureLoss(network, TAPS, dtype=torch.bfloat16)(fake, real))
    half = FrozenFeatureLoss(copy.deepcopy(network), TAPS).half()
    x = fake.detach().half().requires_grad_()
    loss = half(x, real.half())
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.float16
    (wide,) = torch.autograd.grad(criterion(fake, real), fake)
    assert (gradient.float() - wide).norm() < 0.2 * wide.norm()
    with pytest.raises(TypeError, match=r"fake is torch.float16 and the network torch.float32; convert the images"):
        criterion(x, real.half())
