"""Validation metrics: the weights they need, FID, and checkpoints without them."""

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.errors import InputError
from pix2pixhd.reporting import metrics
from pix2pixhd.reporting.metrics import build_metrics, update_metrics
from pix2pixhd.training.run import train


def test_weights_of_metrics_are_not_saved_and_metrics_may_change_on_resume(make_config, tmp_path, monkeypatch):
    from torchmetrics import MeanSquaredError

    class WithNetwork(MeanSquaredError):
        def __init__(self, net_type):
            super().__init__()
            self.net = torch.nn.Linear(2, 2).requires_grad_(False)

    monkeypatch.setattr(metrics, "LearnedPerceptualImagePatchSimilarity", WithNetwork)
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
        ("lpips", "LearnedPerceptualImagePatchSimilarity", "AlexNet's ImageNet weights"),
        ("fid", "_FID", "Inception's weights"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(metrics, kind, unreachable)
            with pytest.raises(InputError, match=rf"run\.metrics: {name} needs .*{needed}.*no route.*remove {name}"):
                build_metrics(["l1", name])


@pytest.mark.parametrize(
    ("name", "kind", "package"),
    [("lpips", "LearnedPerceptualImagePatchSimilarity", "torchvision"), ("fid", "_FID", "torch-fidelity")],
)
def test_metrics_without_their_package_name_it(monkeypatch, name, kind, package):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError("needs another package")

    monkeypatch.setattr(metrics, kind, missing)
    with pytest.raises(InputError, match=rf"run\.metrics: {name} needs the package {package}; install it"):
        build_metrics([name])


def test_fid_receives_real_and_generated_images():
    """With a small network in Inception's place, whose weights cannot be had offline."""
    from torchmetrics import MetricCollection

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
