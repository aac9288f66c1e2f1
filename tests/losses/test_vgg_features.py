"""Precomputed features are valid only for the VGG weights that computed them."""

import copy
import pickle

import pytest
import torch

from pix2pixhd.losses import VGGLoss
from pix2pixhd.losses import fingerprint as fingerprints

from .helpers import random_images

LAYERS = ("relu2_1",)
REJECTED = r"real contains features computed with other VGG weights.*recompute them with this loss's features\(\)"


@pytest.fixture
def criterion():
    with pytest.warns(UserWarning, match="random weights"):
        return VGGLoss(vgg="random", layers=LAYERS)


def images(dtype=torch.float32):
    return random_images(1, 3, 16, 16).to(dtype), random_images(1, 3, 16, 16, seed=1).to(dtype)


def with_other_weights(criterion):
    other = copy.deepcopy(criterion)
    with torch.no_grad():
        for parameter in other.vgg.parameters():
            parameter.mul_(1.5)
    return other


def test_features_of_other_weights_are_rejected(criterion, tmp_path):
    fake, real = images()
    torch.save(with_other_weights(criterion).vgg.state_dict(), tmp_path / "vgg19.pth")
    other = VGGLoss(vgg=tmp_path / "vgg19.pth", layers=LAYERS)
    features = criterion.features(real)
    with pytest.raises(ValueError, match=REJECTED):
        other(fake, features)
    with pytest.raises(
        ValueError, match="parts must come from the same loss, got features computed with different weights"
    ):
        type(features).cat([features, other.features(real)])


def test_features_are_rejected_after_a_weight_change_until_it_is_undone(criterion):
    fake, real = images()
    features, state = criterion.features(real), copy.deepcopy(criterion.vgg.state_dict())
    expected = criterion(fake, real)
    weight = criterion.vgg.features[0].weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match=REJECTED):
        criterion(fake, features)
    criterion.vgg.load_state_dict(state)
    torch.testing.assert_close(criterion(fake, features), expected)
    criterion.vgg.features[0].weight = torch.nn.Parameter(weight * 2, requires_grad=False)
    with pytest.raises(ValueError, match=REJECTED):
        criterion(fake, features)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_features_stay_valid_for_copies_and_dtype_conversions_of_the_loss(criterion, dtype):
    fake, real = images()
    features = criterion.features(real)
    for same in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(same(fake, pickle.loads(pickle.dumps(features))), criterion(fake, real))
    converted = copy.deepcopy(criterion).to(dtype)
    converted(fake.to(dtype), features.to(dtype))
    with pytest.raises(ValueError, match=REJECTED):
        with_other_weights(converted)(fake.to(dtype), features.to(dtype))


def test_fingerprint_reads_the_weights_only_after_a_change(criterion, monkeypatch):
    fake, real = images()
    features = criterion.features(real)
    monkeypatch.setattr(fingerprints, "_summary", lambda *_: pytest.fail("the weights were read"))
    criterion(fake, features)


def test_features_of_a_custom_module_depend_on_its_buffers(criterion):
    fake, real = images()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))

    class Custom(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return [self.net(x)]

    loss = VGGLoss(vgg=Custom(), weights=[1.0])
    features = loss.features(real)
    torch.testing.assert_close(loss(fake, features), loss(fake, real))
    net[1].running_mean.add_(1)
    with pytest.raises(ValueError, match=REJECTED):
        loss(fake, features)


def test_features_work_under_torch_func_and_torch_compile(criterion):
    fake, real = images()
    features, wrong = criterion.features(real), with_other_weights(criterion).features(real)
    (expected,) = torch.autograd.grad(criterion(fake.requires_grad_(), features), fake)
    fingerprints._cache.clear()
    torch.testing.assert_close(torch.func.grad(lambda x: criterion(x, features))(fake.detach()), expected)
    torch._dynamo.reset()
    for fullgraph in (True, False):
        compiled = torch.compile(criterion, fullgraph=fullgraph, backend="eager")
        torch.testing.assert_close(compiled(fake, features), criterion(fake, features))
    with pytest.raises(ValueError, match=REJECTED):
        compiled(fake, wrong)
