"""How the step is computed, averages, loggers, metrics: each option does what it says and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.checkpoints.format import load_generator, read_checkpoint
from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import ComputeOptions, DataOptions
from pix2pixhd.errors import InputError
from pix2pixhd.reporting import metrics
from pix2pixhd.reporting.metrics import build_metrics, update_metrics
from pix2pixhd.training import loggers
from pix2pixhd.training.run import train

from .test_run import assert_identical, files, weights
from .test_step import make_batch, make_module


def trained_picture(config):
    """What a run in float64 ends with: another order of additions does not show in it."""
    config.trainer["precision"] = "64-true"
    module = train(config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        return module(torch.rand(1, 5, 16, 24, dtype=torch.float64))


def test_accumulated_gradients_are_those_of_the_larger_batch():
    module, batch = make_module(), make_batch()
    module.double()
    condition, real = module.encode(batch), batch["image"].double()
    module.compute_gradients(condition, real)
    expected = [p.grad.clone() for p in module.parameters() if p.requires_grad]
    module.zero_grad()
    for k in range(2):
        module.compute_gradients(condition[k : k + 1], real[k : k + 1], batches=2, last=k == 1)
    for found, gradient in zip((p.grad for p in module.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-14)


def test_the_last_batches_of_an_epoch_make_a_step_of_their_own(make_config):
    config = make_config()
    config.optimizer.accumulate = 2  # of three batches
    config.trainer["max_steps"] = 2
    module = train(config)
    assert module.trainer.global_step == 4  # of two optimisers
    assert not module.mid_accumulation


def test_ema_is_the_average_of_the_weights(make_config, tmp_path, data_root):
    import lightning.pytorch as pl

    seen = []

    class Spy(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.append(weights(module.netG))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(weights(module.netG))

    config = make_config(epochs=2, val_phase="test")
    config.optimizer.ema_decay = 0.9
    module = train(config, callbacks=[Spy()])
    # The first update takes the weights as they are.
    expected = {name: value.double() for name, value in seen[1].items()}
    for state in seen[2:]:
        expected = {name: 0.9 * expected[name] + 0.1 * state[name].double() for name in expected}
    found = module.ema.module["netG"].state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_identical(dict(load_generator(last).network.state_dict()), dict(found))
    assert_identical(dict(load_generator(last, averaged=False).network.state_dict()), weights(module.netG))
    for name, extra in (("ema", []), ("raw", ["--no-ema"])):
        arguments = ["--checkpoint", f"{last}", "--input", f"{data_root}", "--output", f"{tmp_path / name}", *extra]
        assert main(["generate", *arguments]) == 0
    first, second = (np.asarray(Image.open(tmp_path / name / "x.png")).astype(int) for name in ("ema", "raw"))
    assert np.abs(first - second).max() > 0


def test_a_resumed_average(make_config):
    def config(name):
        made = make_config(name, epochs=3)
        made.optimizer.ema_decay = 0.5
        return made

    broken = config("broken")
    broken.trainer["max_epochs"] = 1
    train(broken)
    broken.trainer["max_epochs"] = 3
    assert_identical(weights(train(config("unbroken"))), weights(train(broken, resume=True)))


def test_an_average_may_be_turned_on_and_off(make_config):
    def train_on(epochs, decay, resume=True):
        config = make_config(epochs=3)
        config.trainer["max_epochs"] = epochs
        config.optimizer.ema_decay = decay
        return train(config, resume=resume)

    before = weights(train_on(1, 0.0, resume=False).netG)
    module = train_on(2, 0.9)  # three steps: 0.729 of the weights that were there
    now, average = weights(module.netG), weights(module.ema.module["netG"])
    name = "model.1.weight"
    assert (average[name] - before[name]).abs().max() < 0.5 * (now[name] - before[name]).abs().max()
    assert train_on(3, 0.0).ema is None


def test_metrics_weights_stay_out_of_checkpoints_and_may_change(make_config, tmp_path, monkeypatch):
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


@pytest.mark.parametrize("options", [{"channels_last": True}, {"checkpoint_activations": True}])
def test_other_ways_to_compute_give_the_same(make_config, options):
    config = make_config("other")
    config.compute = ComputeOptions(**options)
    torch.testing.assert_close(trained_picture(make_config("plain")), trained_picture(config), rtol=1e-6, atol=1e-6)


def test_checkpointed_activations_give_the_same_gradients():
    from pix2pixhd.models import GlobalGenerator, LocalEnhancer

    for network in (
        GlobalGenerator(5, 3, 4, 2, 2),
        LocalEnhancer(5, 3, 2, 1, 1, 1, 1),
    ):
        network.double()
        x = torch.randn(1, 5, 16, 16, dtype=torch.float64)
        expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
        network.checkpoint_activations = True
        found = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_checkpointed_activations_and_batch_norm_exclude_each_other(make_config):
    config = make_config()
    config.model.norm = "batch"
    config.compute.checkpoint_activations = True
    with pytest.raises(InputError, match=r"compute\.checkpoint_activations .*batch norm's statistics"):
        train(config)


@pytest.mark.slow
def test_compiled_networks_train_to_the_same(make_config, tmp_path):
    def config(name, compiled):
        made = make_config(name)
        made.model.n_downsample_global = made.model.num_D = made.model.n_layers_D = 1  # generating C++ is slow
        made.compute.compile = compiled
        return made

    plain, compiled = trained_picture(config("plain", False)), trained_picture(config("compiled", True))
    torch.testing.assert_close(plain, compiled, rtol=1e-6, atol=1e-6)
    assert load_generator(tmp_path / "compiled" / "checkpoints" / "last.ckpt")  # the names are the same


def test_half_precision_takes_channels_last(make_config):
    for precision, expected in (("32-true", False), ("bf16-mixed", True)):
        config = make_config(precision)
        config.trainer["precision"] = precision
        weight = train(config).netG.model[4].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected


def test_max_dataset_size_and_order(make_config, tmp_path):
    import lightning.pytorch as pl

    names = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            names.extend(batch["name"])

    config = make_config(epochs=2, max_dataset_size=2, serial_batches=True)
    train(config, callbacks=[Spy()])
    assert names == ["a", "b"] * 2
    with pytest.raises(InputError, match="max_dataset_size must be at least 1"):
        DataOptions(max_dataset_size=0)


def test_loggers_by_config(make_config, tmp_path, monkeypatch):
    config = make_config()
    config.run.loggers = ["csv"]
    train(config)
    assert files(tmp_path / "run" / "logs" / "run_0") == ["metrics.csv"] or "hparams.yaml" in files(
        tmp_path / "run" / "logs" / "run_0"
    )
    assert not list((tmp_path / "run" / "logs").glob("**/events.*"))
    for name, kind in (("mlflow", "MLFlowLogger"), ("wandb", "WandbLogger")):

        def missing(*args, name=name, **kwargs):
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(loggers, kind, missing)
        other = make_config(name)
        other.run.loggers = [name]
        with pytest.raises(InputError, match=rf"run\.loggers: {name} is not installed .*pip install {name}"):
            train(other)


def test_a_logger_that_does_not_answer_is_told_before_training(make_config, monkeypatch):
    class Unreachable:
        def __init__(self, *args, **kwargs):
            pass

        @property
        def experiment(self):
            raise RuntimeError("the server does not answer\nat all")

    for name, kind in (("mlflow", "MLFlowLogger"), ("wandb", "WandbLogger")):
        monkeypatch.setattr(loggers, kind, Unreachable)
        config = make_config(name)
        config.run.loggers = [name]
        with pytest.raises(InputError, match=rf"run\.loggers: {name} cannot be used \(the server does not answer\)"):
            train(config)


def test_metrics_that_need_weights_say_which(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("<urlopen error no route>")

    for name, kind, needed in (
        ("lpips", "LearnedPerceptualImagePatchSimilarity", "AlexNet's ImageNet weights"),
        ("fid", "_FID", "Inception's weights"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(metrics, kind, unreachable)
            with pytest.raises(InputError, match=rf"run\.metrics: {name} needs .*{needed}.*no route.*leave {name} out"):
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


def test_fid_is_fed_real_and_generated_pictures():
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


def test_pictures_of_five_channels(make_config, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for folder, channels in (("train_A", 5), ("train_B", 2)):
        (tmp_path / "stacks" / folder).mkdir(parents=True)
        for name in "ab":
            np.save(tmp_path / "stacks" / folder / f"{name}.npy", rng.integers(0, 256, (16, 20, channels), np.uint8))
    options = {"dataroot": str(tmp_path / "stacks"), "label_nc": 0, "no_instance": True, "input_nc": 5, "output_nc": 2}
    train(make_config(**options))
    last, out = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out"
    arguments = ["--checkpoint", f"{last}", "--input", f"{tmp_path}/stacks/train_A", "--output", f"{out}"]
    assert main(["generate", *arguments]) == 0
    assert files(out) == ["a.npy", "b.npy"]
    written = np.load(out / "a.npy")
    assert written.shape == (16, 20, 2)
    assert written.dtype == np.uint8
    wrong = make_config("wrong", **{**options, "input_nc": 4})
    with pytest.raises(
        InputError, match=r"a\.npy: must contain an array \[height, width, 4\] of uint8, got \[16, 20, 5\]"
    ):
        train(wrong)
    for array, told in ((np.zeros((16, 20, 5), np.float32), "float32"), (np.zeros((16, 20), np.uint8), "uint8")):
        np.save(tmp_path / "stacks" / "train_A" / "a.npy", array)
        with pytest.raises(InputError, match=rf"a\.npy: must contain an array .* of uint8, got \[.*\] of {told}"):
            train(make_config("wrong", **options))
    np.save(tmp_path / "stacks" / "train_A" / "a.npy", np.zeros((16, 20, 5), np.uint8))
    vgg = make_config("vgg", **options)
    vgg.loss = dataclasses.replace(vgg.loss, lambda_vgg=1.0, vgg="random")
    with pytest.raises(
        InputError, match=r"loss\.lambda_vgg: the perceptual loss sees colour or gray, not .*output_nc=2"
    ):
        train(vgg)


def test_checkpoints_of_other_processes_pools(make_config, tmp_path):
    config = make_config()
    config.loss.pool_size = 3
    train(config)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["processes"]) == 1
    assert len(saved["processes"][0]["pool"]["kept"]) == 3
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").loss.pool_size == 3
