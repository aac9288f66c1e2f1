"""The integrations replace LPIPS in the lpips package and in torchmetrics."""

import functools
import sys

import lpips
import pytest
import torch
from torchmetrics.functional.image import lpips as functional
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from pix2pixhd.integrations.lpips import patch, use_in
from pix2pixhd.losses import LPIPS

from .helpers import random_images

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights", "ignore:The parameter 'pretrained'")


def test_patch_replaces_the_class_and_undo_restores_it():
    original = lpips.LPIPS
    with patch() as patched:
        assert lpips.LPIPS is lpips.lpips.LPIPS is LPIPS
        assert isinstance(lpips.LPIPS(net="alex", pnet_rand=True, verbose=False), LPIPS)
        assert patched.replaced == ["lpips.LPIPS", "lpips.lpips.LPIPS"]
    assert lpips.LPIPS is lpips.lpips.LPIPS is original


def test_patches_may_be_undone_in_any_order():
    original = lpips.LPIPS
    for order in (1, -1):
        for patched in [patch(), patch()][::order]:
            patched.undo()
        assert lpips.LPIPS is original


def test_patch_without_the_package_names_the_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "lpips")
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"lpips is not installed.*pip install lpips"):
        patch()


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_the_metric_of_torchmetrics_keeps_its_weights_and_results(monkeypatch, net):
    without_download = functools.partial(functional._NoTrainLpips, pnet_rand=True)
    monkeypatch.setattr("torchmetrics.image.lpip._NoTrainLpips", without_download)
    torch.manual_seed(0)
    metric = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)
    a, b = ((random_images(2, 3, 40, 33, seed=seed) + 1) / 2 for seed in (0, 1))
    expected, state = metric(a, b), metric.state_dict()
    assert isinstance(use_in(metric).net, LPIPS)
    assert metric.state_dict().keys() == state.keys()
    metric.load_state_dict(state)
    replaced = metric.net
    assert use_in(metric).net is replaced
    metric.reset()
    torch.testing.assert_close(metric(a, b), expected, rtol=1e-6, atol=0)
    metric.reset()
    x = a.clone().requires_grad_()
    metric(x, b).backward()
    assert x.grad.abs().sum() > 0


def test_another_module_is_rejected():
    with pytest.raises(TypeError, match="metric must be a torchmetrics LearnedPerceptualImagePatchSimilarity"):
        use_in(torch.nn.Linear(1, 1))
