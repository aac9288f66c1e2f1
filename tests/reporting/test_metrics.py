"""Validation metrics: the weights they need, FID, and checkpoints without them."""

import functools

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.functional.image import lpips as functional
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.errors import InputError
from pix2pixhd.models.lpips_trunks import load_trunk
from pix2pixhd.reporting import metrics
from pix2pixhd.reporting.metrics import build_metrics, update_metrics
from pix2pixhd.training.run import train
from tests.losses.helpers import random_images


def test_weights_of_metrics_are_not_saved_and_metrics_may_change_on_resume(make_config, tmp_path, monkeypatch):
    from torchmetrics import MeanSquaredError

    class WithNetwork(MeanSquaredError):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(2, 2).requires_grad_(False)

    monkeypatch.setattr(metrics, "_LPIPS", WithNetwork)
    config = make_config(epochs=3, val_phase="test")
    for epochs, names in ((1, ["lpips"]), (2, ["l1", "lpips"]), (3, ["l1"])):
        config.run.metrics = names
        config.trainer["max_epochs"] = epochs
        train(config, resume=epochs > 1)
        saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").weights
        assert not [name for name in saved if name.startswith("val_metrics")]


def test_metrics_without_their_weights_are_rejected_with_a_remedy(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("<urlopen error no route>")

    for name, kind, needed in (
        ("lpips", "_LPIPS", "AlexNet's ImageNet weights"),
        ("fid", "_FID", "Inception's weights"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(metrics, kind, unreachable)
            with pytest.raises(InputError, match=rf"run\.metrics: {name} needs .*{needed}.*no route.*remove {name}"):
                build_metrics(["l1", name])


@pytest.mark.parametrize(
    ("name", "kind", "package"),
    [("lpips", "_LPIPS", "torchvision"), ("fid", "_FID", "torch-fidelity")],
)
def test_metrics_without_their_package_name_it(monkeypatch, name, kind, package):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError("needs another package")

    monkeypatch.setattr(metrics, kind, missing)
    with pytest.raises(InputError, match=rf"run\.metrics: {name} needs the package {package}; install it"):
        build_metrics([name])


def test_missing_weights_of_lpips_are_named_with_their_place(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("<urlopen error no route>")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as caught:
        build_metrics(["lpips"])
    message = str(caught.value)
    assert "no route>; Put the file alexnet-" in message
    assert f"at {tmp_path}/checkpoints/alexnet-" in message
    assert message.endswith("; fix this, or remove lpips")
    assert "trunk" not in message


@pytest.fixture
def lpips_metrics(monkeypatch):
    """The LPIPS metric with random weights, and torchmetrics' own with the same weights."""
    monkeypatch.setattr(
        "torchmetrics.image.lpip._NoTrainLpips", functools.partial(functional._NoTrainLpips, pnet_rand=True)
    )
    theirs = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    ours = metrics._LPIPS(load_trunk("alex", "random"))
    state = {name: value for name, value in ours.net.state_dict().items() if not name.startswith("scaling_layer.")}
    theirs.net.load_state_dict(state)
    return ours, theirs


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_lpips_equals_torchmetrics_in_every_precision(lpips_metrics):
    ours, theirs = lpips_metrics
    batches = [[random_images(n, 3, 33, 40, seed=seed).bfloat16() for seed in (n, n + 9)] for n in (1, 3)]
    with torch.inference_mode():
        for generated, real in batches:
            theirs.update(generated.float(), real.float())
    expected = theirs.compute()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        ours.reset()
        ours.to(dtype)
        collection = MetricCollection({"LPIPS": ours}, compute_groups=False)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for generated, real in batches:
                update_metrics(collection, generated.to(dtype), real.to(dtype))
        torch.testing.assert_close(collection.compute()["LPIPS"], expected, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_lpips_weighs_every_image_of_all_processes_equally():
    whole, *parts = (metrics._LPIPS(load_trunk("alex", "random")) for _ in range(3))
    for seed, count in enumerate((1, 3)):
        pair = random_images(count, 1, 33, 40, seed=seed), random_images(count, 1, 33, 40, seed=seed + 9)
        for metric in (whole, parts[seed]):
            update_metrics(MetricCollection({"LPIPS": metric}), *pair)
    assert {reduce.__name__ for reduce in whole._reductions.values()} == {"dim_zero_sum"}
    total = sum(part.distances for part in parts) / sum(part.images for part in parts)
    torch.testing.assert_close(whole.compute(), total, rtol=1e-6, atol=0)
    with pytest.raises(InputError, match=r"run\.metrics: lpips needs images of at least 31x31, got 24x32; use larger"):
        update_metrics(MetricCollection({"LPIPS": whole}), torch.zeros(1, 3, 24, 32), torch.zeros(1, 3, 24, 32))


def test_fid_receives_real_and_generated_images():
    """With a small network in Inception's place, whose weights cannot be had offline."""

    class Features(torch.nn.Module):
        num_features = 4

        def forward(self, x):
            assert x.min() >= 0
            assert x.max() <= 255
            return x.float().flatten(1)[:, :4]

    collection = MetricCollection({"FID": metrics._FID(feature=Features(), normalize=True, input_img_size=(3, 16, 16))})
    torch.manual_seed(0)
    real = torch.rand(8, 1, 16, 16) * 2 - 1
    update_metrics(collection, real[:1], real[:1])
    with pytest.warns(UserWarning, match="fid needs at least 2 validation images, got 1; val_FID is NaN"):
        assert torch.isnan(collection.compute()["FID"])
    collection.reset()
    update_metrics(collection, real.clone(), real)
    assert abs(float(collection.compute()["FID"])) < 1e-3
    update_metrics(collection, -torch.ones(8, 1, 16, 16), real)
    assert float(collection.compute()["FID"]) > 0.1
