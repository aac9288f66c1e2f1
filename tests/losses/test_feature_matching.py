"""FeatureMatchingLoss and L1Loss, compared with pix2pixHD's loop and ``nn.L1Loss``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2pixhd.functional import feature_matching_loss, l1_loss
from pix2pixhd.losses import FeatureMatchingLoss, L1Loss

from .conftest import predictions


def nvidia_loop(fake, real, n_layers_D, num_D):
    """Computes the loop of pix2pixHD's training script in float64."""
    loss = 0.0
    for i in range(num_D):
        for j in range(len(fake[i]) - 1):
            term = (fake[i][j].double() - real[i][j].detach().double()).abs().mean()
            loss = loss + 1.0 / num_D * 4.0 / (n_layers_D + 1) * term
    return loss


@pytest.mark.usefixtures("any_backend")
@pytest.mark.parametrize("num_D", [1, 2, 3])
@pytest.mark.parametrize("n_layers", [1, 3, 4])
def test_value_and_gradient_match_nvidia_loop(num_D, n_layers):
    fake = predictions(num_D, n_layers, requires_grad=True)
    real = predictions(num_D, n_layers, seed=1, requires_grad=True)
    with torch.no_grad():
        real[0][0][:, :2] = fake[0][0][:, :2]  # ties
    loss = FeatureMatchingLoss()(fake, real)
    expected = nvidia_loop(fake, real, n_layers, num_D)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    features = [x for scale in fake for x in scale[:-1]]
    (3.0 * loss).backward()
    for x, b in zip(features, torch.autograd.grad(3.0 * expected, features), strict=True):
        torch.testing.assert_close(x.grad, b, rtol=1e-6, atol=0)
    assert (fake[0][0].grad[:, :2] == 0).all()
    assert all(y.grad is None for scale in real for y in scale), "real features must be detached"
    assert all(scale[-1].grad is None for scale in fake), "the prediction must receive no gradient"


def test_single_scale_and_tuples_are_accepted():
    fake, real = predictions(1), predictions(1, seed=1)
    criterion = FeatureMatchingLoss()
    assert torch.equal(criterion(fake[0], real[0]), criterion(fake, real))
    assert torch.equal(criterion(tuple(map(tuple, fake)), real), criterion(fake, real))
    assert torch.equal(feature_matching_loss(fake, real, weight=2.0), 2.0 * criterion(fake, real))


@given(
    shapes=st.lists(
        st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=2, max_size=5), min_size=1, max_size=3
    ),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_structure_shape_and_dtype_matches_float64(shapes, dtype, ties):
    generator = torch.Generator().manual_seed(0)
    fake, real = ([[torch.randn(s, generator=generator).to(dtype) for s in scale] for scale in shapes] for _ in "fr")
    if ties:
        real = [[torch.where(x > 0, x, y) for x, y in zip(f, r, strict=True)] for f, r in zip(fake, real, strict=True)]
    expected = 0.0
    for f, r in zip(fake, real, strict=True):
        features = list(zip(f[:-1], r[:-1], strict=True))
        expected += sum((x.double() - y.double()).abs().mean() for x, y in features) * 4 / len(features) / len(shapes)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the loss of half-precision features is float32 under autocast
        loss = FeatureMatchingLoss()(fake, real)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-30)


def test_all_scales_and_layers_use_one_operator_call(monkeypatch):
    calls = []
    from pix2pixhd.losses import feature_matching

    monkeypatch.setattr(feature_matching, "multi_l1_loss", lambda *a: calls.append(a) or torch.zeros(()))
    FeatureMatchingLoss()(predictions(3), predictions(3, seed=1))
    assert len(calls) == 1
    assert [len(argument) for argument in calls[0]] == [12, 12, 12]


def test_scales_and_features_weightings_match_their_formulas():
    fake, real = predictions(2), predictions(2, seed=1)
    terms = [
        [(x - y).abs().double().mean() for x, y in zip(f[:-1], r[:-1], strict=True)]
        for f, r in zip(fake, real, strict=True)
    ]
    total = sum(sum(scale) for scale in terms)
    torch.testing.assert_close(FeatureMatchingLoss("scales")(fake, real).double(), total / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(FeatureMatchingLoss("features")(fake, real).double(), total * 4 / 8, rtol=1e-6, atol=0)
    for call in (FeatureMatchingLoss, lambda weighting: feature_matching_loss(fake, real, weighting)):
        with pytest.raises(ValueError, match="weighting must be one of pix2pixhd, scales, features, got 'mean'"):
            call("mean")


def test_mismatched_structures_are_rejected():
    fake, real = predictions(2), predictions(2, seed=1)
    criterion = FeatureMatchingLoss()
    with pytest.raises(ValueError, match="pred_real must have as many scales as pred_fake, 2, got 1"):
        criterion(fake, real[:1])
    with pytest.raises(ValueError, match=r"pred_real\[1\] must have as many layers as pred_fake\[1\], 5, got 4"):
        criterion(fake, [real[0], real[1][1:]])
    real[1][2] = real[1][2][:1]
    with pytest.raises(ValueError, match=r"pred_real\[1\]\[2\] \(scale 1, layer 2\) must have the shape"):
        criterion(fake, real)
    with pytest.raises(ValueError, match="getIntermFeat=True"):
        criterion([[torch.zeros(1)]], [[torch.zeros(1)]])


@pytest.mark.usefixtures("any_backend")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_l1_loss_matches_torch(reduction):
    x, y = torch.randn(3, 5, 7, requires_grad=True), torch.randn(3, 5, 7)
    ours, theirs = L1Loss(reduction)(x, y), torch.nn.L1Loss(reduction=reduction)(x, y)
    torch.testing.assert_close(ours, theirs)
    a, b = (torch.autograd.grad(loss.sum(), x)[0] for loss in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_l1_loss_of_empty_tensors_is_nan_and_invalid_arguments_are_rejected():
    x = torch.zeros(0, 3)
    assert torch.isnan(L1Loss()(x, x))
    assert L1Loss("sum")(x, x) == 0
    with pytest.raises(ValueError, match="reduction must be mean, sum or none, got 'avg'"):
        l1_loss(x, x, "avg")
    with pytest.raises(ValueError, match="broadcasting is not supported"):
        L1Loss("sum")(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="reduction must be mean, sum or none, got 'avg'"):
        L1Loss("avg")
