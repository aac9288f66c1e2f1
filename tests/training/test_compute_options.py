"""Memory format, compilation and activation checkpointing do not change what is computed."""

import pytest
import torch
import torch._inductor.config as inductor

from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.config.schema import ComputeOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train


def trained_image(config):
    """Trains in float64, where the order of summation has no visible effect, and generates an image."""
    config.trainer["precision"] = "64-true"
    module = train(config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        return module(torch.rand(1, 5, 16, 24, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"channels_last": True}, {"checkpoint_activations": True}])
def test_memory_format_and_checkpointing_do_not_change_the_result(make_config, options):
    config = make_config("other")
    config.compute = ComputeOptions(**options)
    torch.testing.assert_close(trained_image(make_config("plain")), trained_image(config), rtol=1e-6, atol=1e-6)


def test_activation_checkpointing_gives_the_same_gradients():
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


def test_activation_checkpointing_with_batch_norm_is_rejected(make_config):
    config = make_config()
    config.model.norm = "batch"
    config.compute.checkpoint_activations = True
    with pytest.raises(InputError, match=r"compute\.checkpoint_activations .*batch norm's statistics"):
        train(config)


@pytest.mark.slow
def test_compiled_networks_train_to_the_same_weights(make_config, tmp_path):
    def config(name, compiled):
        made = make_config(name)
        made.model.n_downsample_global = made.model.num_D = made.model.n_layers_D = 1  # generating C++ is slow
        made.run.display_freq = made.run.results_count = 0  # images of other sizes would need graphs of their own
        made.trainer["precision"] = "64-true"
        made.compute.compile = compiled
        return made

    with inductor.patch({"cpp.simdlen": 1}):  # scalar code compiles faster
        plain, compiled = (train(config(name, name == "compiled")).state_dict() for name in ("plain", "compiled"))
    torch.testing.assert_close(plain, compiled, rtol=1e-6, atol=1e-6)
    assert load_generator(
        tmp_path / "compiled" / "checkpoints" / "last.ckpt"
    )  # compiling does not change parameter names


def test_half_precision_uses_channels_last_by_default(make_config):
    for precision, expected in (("32-true", False), ("bf16-mixed", True)):
        config = make_config(precision)
        config.trainer["precision"] = precision
        weight = train(config).netG.model[4].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
