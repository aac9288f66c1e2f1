"""Objectives: every preset compared with its formula, and a generator step compared with plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd.losses import (
    LPIPS,
    DiscriminatorLoss,
    FeatureMatchingLoss,
    FrozenFeatureLoss,
    GANLoss,
    GeneratorLoss,
    VGGLoss,
    adversarial,
    feature_matching,
    objective,
)
from pix2pixhd.losses.predictions import as_scales

from .conftest import predictions
from .helpers import WEIGHTS, plain_feature_maps, random_images

NUM_D, N_LAYERS = 2, 3


def mse(pred, label):
    return [((scale[-1].double() - label) ** 2).mean() for scale in pred]


def hinge(pred, sign):
    return [torch.clamp(1 - sign * scale[-1].double(), min=0).mean() for scale in pred]


def features(fake, real):
    pairs = zip(fake, real, strict=True)
    return [[(x.double() - y.double()).abs().mean() for x, y in zip(f[:-1], r[:-1], strict=True)] for f, r in pairs]


def perceptual(vgg, fake, real, imagenet=False):
    if imagenet:
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
        fake, real = (((x + 1) / 2 - mean) / std for x in (fake, real))
    layers = zip(WEIGHTS, *(plain_feature_maps(vgg.state_dict(), x.double()) for x in (fake, real)), strict=True)
    return sum(w * (x - y).abs().mean() for w, x, y in layers)


def expected(preset, mode, vgg, pred_fake, pred_real, fake, real):
    """Returns the terms gan, feat, vgg, d_fake and d_real by the formulas of the papers and code bases."""
    fm = sum(sum(scale) for scale in features(pred_fake, pred_real))
    if preset in ("paper", "nvidia"):
        gan = (0.5 if preset == "paper" else 1.0) * sum(mse(pred_fake, 1))
        d_fake, d_real = 0.5 * sum(mse(pred_fake, 0)), 0.5 * sum(mse(pred_real, 1))
        feat = 10 * fm * 4 / (N_LAYERS + 1) / NUM_D
        return gan, feat, 10 * perceptual(vgg, fake, real), d_fake, d_real
    if preset == "mlops":
        feat = 10 * fm * 4 / (NUM_D * (N_LAYERS + 1))
        perception = perceptual(vgg, fake, real)
        return sum(mse(pred_fake, 1)), feat, perception, sum(mse(pred_fake, 0)), sum(mse(pred_real, 1))
    feat = 10 * fm / NUM_D
    perception = 10 * perceptual(vgg, fake, real, imagenet=preset == "imaginaire")
    if mode == "hinge":
        gan = -sum(scale[-1].double().mean() for scale in pred_fake) / NUM_D
        return gan, feat, perception, sum(hinge(pred_fake, -1)) / NUM_D, sum(hinge(pred_real, 1)) / NUM_D
    half = 0.5 if preset == "imaginaire" else 1.0
    gan, d_fake, d_real = (half * sum(t) / NUM_D for t in (mse(pred_fake, 1), mse(pred_fake, 0), mse(pred_real, 1)))
    return gan, feat, perception, d_fake, d_real


@pytest.mark.parametrize(
    ("preset", "gan_mode"),
    [
        ("paper", None),
        ("nvidia", None),
        ("spade", None),
        ("spade", "lsgan"),
        ("imaginaire", None),
        ("imaginaire", "lsgan"),
        ("mlops", None),
    ],
)
def test_value_and_gradient_of_every_preset_match_the_formula(vgg, preset, gan_mode):
    pred_fake, pred_real = (predictions(NUM_D, N_LAYERS, seed=seed, requires_grad=True) for seed in (0, 1))
    # In float64, near ties of ReLU, pooling and sign are resolved the same way in both implementations.
    vgg = copy.deepcopy(vgg).double()
    fake, real = random_images(1, 3, 32, 32).double().requires_grad_(), random_images(1, 3, 32, 32, seed=1).double()
    mode = gan_mode or ("hinge" if preset in ("spade", "imaginaire") else "lsgan")
    gan, feat, perception, d_fake, d_real = expected(preset, mode, vgg, pred_fake, pred_real, fake, real)

    terms = GeneratorLoss(preset=preset, gan_mode=gan_mode, vgg=vgg)(pred_fake, pred_real, fake, real)
    for actual, wanted in zip(terms, (gan, feat, perception, gan + feat + perception), strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=2e-6, atol=1e-9)
    leaves = [x for scale in pred_fake for x in scale]
    *ours, image_gradient = torch.autograd.grad(terms.total, [*leaves, fake])
    *theirs, expected_image_gradient = torch.autograd.grad(gan + feat + perception, [*leaves, fake])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(image_gradient, expected_image_gradient, rtol=1e-8, atol=1e-14)

    d_terms = DiscriminatorLoss(preset, gan_mode=gan_mode)(pred_fake, pred_real)
    for actual, wanted in zip(d_terms, (d_fake, d_real, d_fake + d_real), strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-6, atol=1e-9)
    last = [scale[-1] for scale in (*pred_fake, *pred_real)]
    theirs = torch.autograd.grad(d_fake + d_real, last)
    for a, b in zip(torch.autograd.grad(d_terms.total, last), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gan_mode", ["vanilla", "wgan"])
def test_preset_factors_apply_to_other_modes(gan_mode):
    def score(pred, real):
        x = torch.stack([scale[-1].double().flatten() for scale in pred])
        label = torch.full_like(x, float(real))
        if gan_mode == "vanilla":
            return F.binary_cross_entropy_with_logits(x, label, reduction="none").mean(dim=1)
        return (-x if real else x).mean(dim=1)

    pred_fake, pred_real = ([[s[-1][:, :, :, :4]] for s in predictions(NUM_D, seed=seed)] for seed in (0, 1))
    for preset, generator, discriminator in [("paper", 0.5, 0.5), ("nvidia", 1.0, 0.5), ("mlops", 1.0, 1.0)]:
        terms = GeneratorLoss(preset=preset, gan_mode=gan_mode, lambda_feat=0.0, lambda_vgg=0.0)(pred_fake)
        torch.testing.assert_close(terms.gan.double(), generator * score(pred_fake, True).sum(), rtol=1e-6, atol=1e-9)
        d_terms = DiscriminatorLoss(preset, gan_mode=gan_mode)(pred_fake, pred_real)
        wanted = discriminator * (score(pred_fake, False) + score(pred_real, True)).sum()
        torch.testing.assert_close(d_terms.total.double(), wanted, rtol=1e-6, atol=1e-9)
    for preset in ("spade", "imaginaire"):
        d_terms = DiscriminatorLoss(preset, gan_mode=gan_mode)(pred_fake, pred_real)
        wanted = (score(pred_fake, False) + score(pred_real, True)).mean()
        torch.testing.assert_close(d_terms.total.double(), wanted, rtol=1e-6, atol=1e-9)


def test_explicit_weights_override_the_preset(vgg):
    pred, other = predictions(), predictions(seed=1)
    fake, real = random_images(1, 3, 32, 32), random_images(1, 3, 32, 32, seed=1)
    one = GeneratorLoss(1.0, 1.0, 1.0, vgg=vgg)(pred, other, fake, real)
    three = GeneratorLoss(lambda_gan=3.0, lambda_feat=5.0, lambda_vgg=7.0, vgg=vgg)(pred, other, fake, real)
    for a, b, factor in zip(three, one, (3, 5, 7), strict=False):
        torch.testing.assert_close(a, factor * b)


def test_nvidia_preset_uses_lambda_feat_for_the_vgg_loss(vgg):
    assert GeneratorLoss(lambda_feat=5.0, preset="nvidia", vgg=vgg).lambda_vgg == 5.0
    assert GeneratorLoss(lambda_feat=5.0, lambda_vgg=2.0, preset="nvidia", vgg=vgg).lambda_vgg == 2.0
    assert GeneratorLoss(lambda_feat=0.0, preset="nvidia", vgg=vgg).lambda_vgg == 10.0
    assert GeneratorLoss(lambda_feat=5.0, vgg=vgg).lambda_vgg == 10.0


@pytest.mark.usefixtures("any_backend")
@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [
        (torch.float64, False, torch.float64),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.float32),
    ],
)
def test_dtypes_match_plain_pytorch(dtype, autocast, expected):
    pred_fake, pred_real = (predictions(seed=seed, dtype=dtype, requires_grad=seed == 0) for seed in (0, 1))
    criterion = GeneratorLoss(lambda_vgg=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = criterion(pred_fake, pred_real)
        total_D = DiscriminatorLoss()(pred_fake, pred_real).total
    assert (terms.gan.dtype, terms.feat.dtype, total_D.dtype) == (expected,) * 3
    leaves = [x for scale in pred_fake for x in scale]
    gradients = torch.autograd.grad(terms.total, leaves)
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)
    wide = [[x.double() for x in scale] for scale in pred_fake], [[x.double() for x in scale] for scale in pred_real]
    torch.testing.assert_close(terms.total.double(), criterion(*wide).total, rtol=2e-2, atol=0)


def test_zero_weight_disables_a_term_and_its_inputs():
    criterion = GeneratorLoss(lambda_feat=0.0, lambda_vgg=0.0, vgg="/no/such/file")
    terms = criterion([[torch.zeros(1, 1, 2, 2)]])
    assert (terms.feat, terms.vgg) == (0.0, 0.0)
    assert terms.total == terms.gan == 0.5
    off = GeneratorLoss(lambda_gan=0.0, lambda_vgg=0.0)(predictions(), predictions(seed=1))
    assert off.gan == 0
    assert off.total == off.feat


@pytest.mark.parametrize("mode", ["lsgan", "hinge"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_disabled_term_does_not_change_the_dtype_of_the_total(dtype, mode):
    pred = predictions(dtype=dtype)
    for off in ({"lambda_feat": 0.0}, {"lambda_gan": 0.0}):
        terms = GeneratorLoss(lambda_vgg=0.0, gan_mode=mode, **off)(pred, predictions(seed=1, dtype=dtype))
        assert {term.dtype for term in terms} == {dtype}


def test_missing_inputs_and_unknown_presets_are_rejected(vgg):
    with pytest.raises(ValueError, match="pred_real is needed for feature matching; pass it or set lambda_feat=0"):
        GeneratorLoss(lambda_vgg=0.0)(predictions())
    with pytest.raises(
        ValueError, match="fake and real are needed for the perceptual loss; pass them or set lambda_vgg=0"
    ):
        GeneratorLoss(lambda_feat=0.0, vgg=vgg)(predictions())
    for criterion in (GeneratorLoss, DiscriminatorLoss):
        with pytest.raises(ValueError, match="preset must be one of paper, nvidia, spade, imaginaire, mlops, got 'hd'"):
            criterion(preset="hd")


def test_a_vgg_loss_can_be_shared_by_objectives(vgg):
    shared = VGGLoss(vgg=vgg)
    assert GeneratorLoss(vgg=shared).vgg is shared


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_any_perceptual_loss_is_the_term():
    fake, real = random_images(2, 3, 20, 20).requires_grad_(), random_images(2, 3, 20, 20, seed=1)
    lpips = LPIPS(net="squeeze", pretrained=False, pnet_rand=True)
    frozen = FrozenFeatureLoss(torch.nn.Conv2d(3, 4, 3))
    for loss in (lpips, frozen):
        criterion = GeneratorLoss(lambda_gan=0.0, lambda_feat=0.0, lambda_vgg=3.0, vgg=loss)
        terms = criterion(predictions(), predictions(seed=1), fake, real)
        expected = 3.0 * loss(fake, real).mean()
        torch.testing.assert_close(terms.total, expected, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(value, fake)[0] for value in (terms.total, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
        features = loss.features(real)
        torch.testing.assert_close(criterion.perceptual(fake, features), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r'vgg must be a FrozenFeatureLoss\(..., reduction="mean"\)'):
        GeneratorLoss(vgg=FrozenFeatureLoss(torch.nn.Conv2d(3, 4, 3), reduction="none"))


class TinyDiscriminator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [torch.nn.Conv2d(3, 8, 4, 2, 2), torch.nn.Conv2d(8, 8, 4, 2, 2), torch.nn.Conv2d(8, 1, 4, 1, 2)]
        )

    def forward(self, x):
        result = []
        for scale in (x, F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)):
            outputs = []
            for layer in self.layers:
                scale = F.leaky_relu(layer(scale), 0.2)
                outputs.append(scale)
            result.append(outputs)
        return result


def test_generator_step_matches_plain_pytorch(vgg):
    """Value and gradient of a float32 step match to a relative error of 1e-6."""
    torch.manual_seed(0)
    netD = TinyDiscriminator()
    generator = torch.nn.Conv2d(5, 3, 3, padding=1)
    condition, real = torch.rand(1, 5, 32, 32), random_images(1, 3, 32, 32)
    weights = list(generator.parameters())

    fake = torch.tanh(generator(condition))
    pred_fake, pred_real = netD(fake), netD(real)
    terms = GeneratorLoss(vgg=vgg)(pred_fake, pred_real, fake, real)
    ours = torch.autograd.grad(terms.total, weights)

    fake = torch.tanh(generator(condition))
    pred_fake = netD(fake)
    total = 0.0
    for f, r in zip(pred_fake, pred_real, strict=True):
        total = total + 0.5 * F.mse_loss(f[-1], torch.ones_like(f[-1]))
        for x, y in zip(f[:-1], r[:-1], strict=True):
            total = total + 10.0 * 4.0 / 2 / 2 * F.l1_loss(x, y.detach())
    state = vgg.state_dict()
    for w, x, y in zip(WEIGHTS, plain_feature_maps(state, fake), plain_feature_maps(state, real), strict=True):
        total = total + 10.0 * w * F.l1_loss(x, y)
    theirs = torch.autograd.grad(total, weights)

    torch.testing.assert_close(terms.total, total, rtol=1e-6, atol=0)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 1e-6


@pytest.mark.usefixtures("any_backend")
def test_gradient_signs_match_plain_pytorch_including_ties():
    torch.manual_seed(0)
    netD, real = TinyDiscriminator(), random_images(1, 3, 32, 32)
    fake = real.clone()
    fake[..., 16:] += 0.1  # the left halves are equal and give ties in every layer
    with torch.no_grad():
        pred_fake, pred_real = netD(fake), netD(real)
    leaves = [x.requires_grad_() for scale in pred_fake for x in scale]
    ours = torch.autograd.grad(GeneratorLoss(lambda_vgg=0.0)(pred_fake, pred_real).total, leaves)
    plain = sum(0.5 * F.mse_loss(f[-1], torch.ones_like(f[-1])) for f in pred_fake)
    pairs = [(x, y) for f, r in zip(pred_fake, pred_real, strict=True) for x, y in zip(f[:-1], r[:-1], strict=True)]
    plain = plain + sum(10.0 * F.l1_loss(x, y) for x, y in pairs)
    theirs = torch.autograd.grad(plain, leaves)
    assert all(torch.equal(a.sign(), b.sign()) for a, b in zip(ours, theirs, strict=True))
    assert all((x == y).any() and (x != y).any() for x, y in pairs)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (lambda fake, real: GANLoss()(fake, True), 1),
        (FeatureMatchingLoss(), 2),
        (feature_matching.feature_matching_loss, 2),
        (GeneratorLoss(lambda_vgg=0.0), 2),
        (GeneratorLoss(lambda_feat=0.0, lambda_vgg=0.0), 1),
        (GeneratorLoss(lambda_gan=0.0, lambda_feat=0.0, lambda_vgg=0.0), 1),
        (DiscriminatorLoss(), 2),
    ],
    ids=["gan", "feature_matching", "feature_matching_function", "generator", "gan_only", "all_off", "discriminator"],
)
def test_each_prediction_is_normalized_once(monkeypatch, criterion, expected):
    fake, real = (predictions(NUM_D, N_LAYERS) for _ in range(2))
    normalized = []

    def count(name, pred, *arguments):
        normalized.append(id(pred))
        return as_scales(name, pred, *arguments)

    for module in (adversarial, feature_matching, objective):
        monkeypatch.setattr(module, "as_scales", count)
    criterion(fake, real)
    assert len(normalized) == len(set(normalized)) == expected
