"""The moving average of the weights: in every precision, on resume, in validation and when it is loaded."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import ModelOptions
from pix2pixhd.training.average import WeightAverage
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.run import train

from .helpers import assert_identical, training_state, weights

DECAY = 0.999


class Reference(pl.Callback):
    """Averages the weights in float64 after every step."""

    def __init__(self):
        self.average = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = {name: value.to(torch.float64, copy=True) for name, value in module.averaged().state_dict().items()}
        if self.average is None:
            self.average = now
        else:
            self.average = {name: DECAY * value + (1 - DECAY) * now[name] for name, value in self.average.items()}


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true"])
def test_the_average_follows_the_weights_and_resumes(make_config, tmp_path, precision):
    def config(output, **trainer):
        made = make_config(output, epochs=3, val_phase="test")
        made.model = ModelOptions(
            ngf=4,
            n_downsample_global=2,
            n_blocks_global=1,
            ndf=4,
            n_layers_D=2,
            label_feat=True,
            nef=4,
            n_downsample_E=2,
        )
        # Steps large enough that the weights themselves change in bfloat16.
        made.optimizer.lr, made.optimizer.ema_decay = 2e-2, DECAY
        made.trainer |= {"precision": precision, **trainer}
        return made

    reference = Reference()
    module = train(config("uninterrupted"), callbacks=[reference])
    average = weights(module.ema.module)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for value in average.values()} == {dtype}
    expected = {name: value.to(dtype) for name, value in reference.average.items()}
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    train(config("interrupted", max_steps=4))
    resumed = train(config("interrupted"), resume=True)
    assert_identical(average, weights(resumed.ema.module))
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))


@pytest.mark.parametrize("features", [False, True])
def test_bfloat16_run_generates_the_same_images_as_the_loaded_generator(make_config, tmp_path, features):
    config = make_config()
    config.model.label_feat, config.model.nef, config.model.n_downsample_E = features, 4, 2
    config.optimizer.ema_decay, config.trainer["precision"] = 0.5, "bf16-true"
    module = train(config)
    loaded = load_generator(tmp_path / "run" / "checkpoints" / "last.ckpt")
    own = module._inference_networks()["netG"]
    assert_identical(weights(own), weights(loaded.network))
    condition = torch.rand(1, loaded.network.model[1].in_channels, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(condition), loaded.network(condition))


def test_an_average_is_never_converted_to_half_precision():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    average = WeightAverage(module, DECAY)
    before = weights(average)
    for convert in (
        average.half,
        average.bfloat16,
        lambda: average.to(torch.bfloat16, memory_format=torch.channels_last),
    ):
        convert()
        assert_identical(before, weights(average))
    assert average.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert next(average.double().parameters()).dtype == torch.float64


def test_a_bfloat16_average_in_a_checkpoint_loads_as_float32(make_config):
    config = make_config()
    config.optimizer.ema_decay = DECAY
    module = Pix2PixHD(config.model, config.data, config.loss, config.optimizer).to(torch.bfloat16)
    assert {value.dtype for value in module.netG.state_dict().values()} == {torch.bfloat16}
    rounded = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in weights(module).items()
    }
    module.load_state_dict(rounded)
    assert {value.dtype for value in module.ema.module.state_dict().values()} == {torch.float32}


def test_ema_equals_the_average_computed_in_float64(make_config, tmp_path, data_root):
    seen = []

    class Spy(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.append(weights(module.netG))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(weights(module.netG))

    config = make_config(epochs=2, val_phase="test")
    config.optimizer.ema_decay = 0.9
    module = train(config, callbacks=[Spy()])
    # The first update copies the weights.
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


def test_a_resumed_average_equals_that_of_an_uninterrupted_run(make_config):
    def config(name):
        made = make_config(name, epochs=3)
        made.optimizer.ema_decay = 0.5
        return made

    interrupted = config("interrupted")
    interrupted.trainer["max_epochs"] = 1
    train(interrupted)
    interrupted.trainer["max_epochs"] = 3
    assert_identical(weights(train(config("uninterrupted"))), weights(train(interrupted, resume=True)))


def test_the_average_can_be_enabled_and_disabled_on_resume(make_config):
    def train_on(epochs, decay, resume=True):
        config = make_config(epochs=3)
        config.trainer["max_epochs"] = epochs
        config.optimizer.ema_decay = decay
        return train(config, resume=resume)

    before = weights(train_on(1, 0.0, resume=False).netG)
    module = train_on(2, 0.9)  # three steps: 0.729 of the initial weights
    now, average = weights(module.netG), weights(module.ema.module["netG"])
    name = "model.1.weight"
    assert (average[name] - before[name]).abs().max() < 0.5 * (now[name] - before[name]).abs().max()
    assert train_on(3, 0.0).ema is None
