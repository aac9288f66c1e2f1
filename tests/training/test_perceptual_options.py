"""Training with each perceptual loss of the section ``loss``."""

import csv
import importlib.util
import urllib.error

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.config.schema import DataOptions, LossOptions
from pix2pixhd.errors import InputError
from pix2pixhd.losses import LPIPS, VGGLoss
from pix2pixhd.training.losses import generator_loss
from pix2pixhd.training.run import train
from tests.losses.helpers import narrow_vgg, random_images

from .helpers import assert_identical, make_batch, make_module, weights

LPIPS_OPTIONS = {"perceptual": "lpips", "perceptual_network": "squeeze", "vgg": "random", "lambda_vgg": 2.0}

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights")


@pytest.fixture
def narrow(monkeypatch):
    """Puts a VGG with a quarter of the channels in place of the one that would be loaded."""
    monkeypatch.setattr(
        "pix2pixhd.losses.perceptual.load_vgg", lambda vgg, network, layers: narrow_vgg(network, layers)
    )


@pytest.fixture
def lpips_config(make_config):
    def make(output="run", **loss):
        config = make_config(output, epochs=2, fineSize=20)
        config.loss = LossOptions(**{**LPIPS_OPTIONS, **loss})
        config.trainer["log_every_n_steps"] = 1
        config.run.loggers, config.run.results_count, config.run.display_freq = ["csv"], 0, 0
        return config

    return make


def test_lpips_trains_and_resumes_and_its_network_is_not_saved(lpips_config, tmp_path):
    expected = weights(train(lpips_config("uninterrupted")))
    config = lpips_config()
    config.trainer["max_steps"] = 2
    train(config)
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert {name.split(".")[0] for name in saved.weights} == {"netG", "netD"}
    assert saved.loss == config.loss
    del config.trainer["max_steps"]
    assert_identical(expected, weights(train(config, resume=True)))
    with (tmp_path / "run" / "logs" / "run_1" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("G_total")]
    for row in rows:
        parts = [float(row[name]) for name in ("G_GAN", "G_GAN_Feat", "G_LPIPS")]
        assert sum(parts) == pytest.approx(float(row["G_total"]), rel=1e-5)
        assert parts[2] > 0
        assert "G_VGG" not in row


def test_the_perceptual_loss_may_change_on_resume(lpips_config, narrow):
    config = lpips_config(perceptual="none", perceptual_network=None)
    for epochs, changed in enumerate((config.loss, LossOptions(**LPIPS_OPTIONS), LossOptions(), config.loss), 1):
        config.loss, config.optimizer.niter = changed, epochs
        module = train(config, resume=epochs > 1)
        expected = {"lpips": LPIPS, "vgg": VGGLoss, "none": type(None)}[changed.perceptual]
        assert isinstance(module.generator_loss.vgg, expected)


def test_a_run_of_an_older_version_is_resumed(make_config, tmp_path):
    config = make_config(epochs=2)
    config.trainer["max_epochs"] = 1
    train(config)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    options = content["hyper_parameters"]["loss"]
    content["hyper_parameters"]["loss"] = {
        name: value for name, value in options.items() if not name.startswith(("perceptual", "lpips"))
    }
    torch.save(content, path)
    assert read_checkpoint(path).loss == config.loss
    del config.trainer["max_epochs"]
    train(config, resume=True)


def test_options_reach_the_vgg_loss(narrow):
    options = LossOptions(
        preset="imaginaire",
        lambda_vgg=3.0,
        perceptual_network="vgg16",
        perceptual_layers=["relu_2_2", "relu1_1"],
        perceptual_weights=[2, 0.5],
        perceptual_distance="mse",
        perceptual_dtype="bfloat16",
        vgg_memory_limit=64,
    )
    loss = generator_loss(options)
    expected = VGGLoss(
        vgg=narrow_vgg("vgg16", ["relu2_2", "relu1_1"]),
        weights=[2, 0.5],
        criterion="mse",
        normalize="imagenet",
        dtype=torch.bfloat16,
        memory_limit=64 * 2**20,
    )
    fake, real = random_images(1, 3, 16, 16), random_images(1, 3, 16, 16, seed=1)
    assert repr(loss.vgg) == repr(expected)
    assert torch.equal(loss.perceptual(fake, real), 3.0 * expected(fake, real))
    defaults = generator_loss(LossOptions()).vgg
    assert repr(defaults) == repr(VGGLoss(vgg=narrow_vgg("vgg19", defaults.vgg.layers)))
    assert (defaults.vgg.network, defaults.vgg.layers) == ("vgg19", [f"relu{k}_1" for k in range(1, 6)])


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_the_mean_over_the_images(channels):
    module = make_module(DataOptions(label_nc=4, output_nc=channels), **LPIPS_OPTIONS)
    metric = LPIPS(net="squeeze", pnet_rand=True)
    fake, real = random_images(2, channels, 24, 24), random_images(2, channels, 24, 24, seed=1)
    expected = 2.0 * metric(fake.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1)).mean()
    torch.testing.assert_close(module.generator_loss.perceptual(fake, real), expected, rtol=1e-6, atol=0)
    batch = make_batch()
    batch = {**batch, "image": batch["image"][:, :channels]}
    batch = {name: torch.cat([x, x], dim=-2) for name, x in batch.items()}
    assert module.compute_gradients(module.encode(batch), batch["image"])["G_LPIPS"] > 0


def test_no_weights_are_loaded_for_a_disabled_loss():
    for options in ({"perceptual": "none"}, {"perceptual": "lpips", "lambda_vgg": 0.0}):
        assert generator_loss(LossOptions(vgg="/no/such/file", **options)).vgg is None


def test_layers_are_checked_before_the_data_and_the_weights(make_config):
    config = make_config(dataroot="/no/such/folder")
    config.loss = LossOptions(vgg="/no/such/file", perceptual_layers=["relu6_1"])
    with pytest.raises(InputError, match=r"loss\.perceptual_layers: vgg19 has no layer 'relu6_1'"):
        train(config)


def test_missing_weights_are_named_with_their_option(monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as caught:
        generator_loss(LossOptions(perceptual="lpips", perceptual_network="alex"))
    message = str(caught.value)
    assert message.startswith("loss.vgg: the ImageNet weights of ALEXNET could not be downloaded: <urlopen error no ")
    assert "pass its path, loss.vgg: /path/to/alexnet" in message
    assert message.endswith("Or train without the perceptual loss: loss.perceptual: none")
    assert not [name for name in ("LPIPS(", "trunk", "VGGLoss") if name in message]
    with pytest.raises(InputError, match=r"^loss\.lpips_weights: file /no\.pth does not exist"):
        generator_loss(LossOptions(**LPIPS_OPTIONS, lpips_weights="/no.pth"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install lpips.* as loss\.lpips_weights\.\nOr train without"):
        generator_loss(LossOptions(**LPIPS_OPTIONS))


def test_the_warning_of_random_weights_names_options():
    with pytest.warns(UserWarning, match=r"random weights \(loss\.vgg: random\).* use loss\.vgg: imagenet or the path"):
        generator_loss(LossOptions(**LPIPS_OPTIONS))


def test_images_and_memory_limits_that_are_too_small_are_reported(lpips_config):
    config = lpips_config("small")
    config.data.fineSize = 16
    with pytest.raises(
        InputError, match=r"^loss\.perceptual_network: squeeze needs images of at least 17x17, got 16x16; raise data\."
    ):
        train(config)
    config = lpips_config("limit", vgg_memory_limit=1)
    config.data.resize_or_crop, config.data.loadSize = "scale_width", 128
    with pytest.raises(
        InputError, match=r"^loss\.vgg_memory_limit is 1 MiB, but one image needs .* MiB; raise the limit$"
    ):
        train(config)
