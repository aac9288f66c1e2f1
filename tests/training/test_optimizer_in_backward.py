"""Optimizer steps within the backward pass: the same bits, gradients freed at once, rejected where not possible."""

import copy

import lightning.pytorch as pl
import pytest
import torch

from pix2pixhd.errors import InputError
from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.models import define_D, define_G
from pix2pixhd.nn import lean
from pix2pixhd.training.datamodule import PairedData
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.optimizer import Adam, stepping_in_backward
from pix2pixhd.training.run import train
from pix2pixhd.training.step import compute_gradients

from .settings_matrix import trace_only


def _with_batch_norm(config):
    config.model.norm = "batch"


def _with_all_networks(config):
    config.model.netG = "local"
    config.model.instance_feat, config.model.nef, config.model.n_downsample_E = True, 4, 1
    config.optimizer.ema_decay, config.loss.pool_size, config.compute.checkpoint_activations = 0.9, 2, True


def _in_half_precision(config):
    config.trainer["precision"] = "bf16-mixed"


def _in_pure_half_precision(config):
    config.trainer["precision"] = "bf16-true"


def _compiled(config):
    config.compute.compile = True


CHANGES = [_with_batch_norm, _with_all_networks, _in_half_precision, _in_pure_half_precision, _compiled]


@pytest.mark.parametrize("change", [lambda config: None, *CHANGES], ids=["default", *(c.__name__[1:] for c in CHANGES)])
def test_training_gives_the_same_bits_and_optimizer_state(make_config, tmp_path, monkeypatch, change):
    monkeypatch.setattr("torch.nn.Module.compile", trace_only)
    saved = []
    for enabled in (False, True):
        config = make_config(str(enabled), epochs=2)
        change(config)
        config.compute.optimizer_in_backward = enabled
        train(config)
        saved.append(torch.load(tmp_path / str(enabled) / "checkpoints" / "last.ckpt", weights_only=True))
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(saved[0][name], saved[1][name], rtol=0, atol=0, equal_nan=False)


def test_gradients_of_weights_are_freed_before_the_backward_ends(monkeypatch):
    netG, netD = define_G(4, 3, 4, "global", 1, 2), define_D(7, 4, 2, getIntermFeat=True)
    optimizers = [Adam(network.parameters(), fused=True) for network in (netG, netD)]
    weights = [weight for network in (netG, netD) for weight in network.parameters() if weight.dim() > 1]
    alive = []
    update = Adam.step_one

    def counting(self, group, parameter):
        alive.append(sum(weight.grad is not None for weight in weights))
        update(self, group, parameter)

    monkeypatch.setattr(Adam, "step_one", counting)
    x, real = torch.rand(1, 4, 32, 32), torch.rand(1, 3, 32, 32)
    with stepping_in_backward(optimizers):
        compute_gradients(lean(netG), lean(netD), GeneratorLoss(lambda_vgg=0.0), DiscriminatorLoss(), x, real)
    assert alive == [1] * len(weights)
    assert all(weight.grad is None for weight in weights)
    assert not any(weight._post_accumulate_grad_hooks for weight in weights)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_schedules_frozen_weights_and_several_groups_are_respected(fused, channels_last):
    def make():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 2, 1))
        network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        network[1].requires_grad_(False)
        groups = [{"params": network[0].parameters(), "lr": 1e-2}, {"params": network[1:].parameters(), "lr": 1e-3}]
        optimizer = Adam(groups, betas=(0.5, 0.9), fused=fused, weight_decay=0.1)
        return network, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    (plain, optimizer, schedule), (network, early, own_schedule) = make(), make()
    frozen = copy.deepcopy(network[1].state_dict())
    for seed in range(3):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        plain(x).square().sum().backward()
        optimizer.step()
        schedule.step()
        with stepping_in_backward([early]):
            network(x).square().sum().backward()
        early.step()
        early.zero_grad()
        own_schedule.step()
    for a, b in zip(plain.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(optimizer.state_dict(), early.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(frozen, network[1].state_dict(), rtol=0, atol=0)


def test_the_first_epochs_of_a_local_enhancer_keep_the_global_part(make_config, tmp_path):
    config = make_config("global")
    config.model.ngf *= 2
    train(config)
    weights = []
    for enabled in (False, True):
        config = make_config(f"local {enabled}", epochs=2)
        config.model.netG = "local"
        config.optimizer.niter_fix_global = 1
        config.run.load_pretrain = str(tmp_path / "global" / "checkpoints" / "last.ckpt")
        config.compute.optimizer_in_backward = enabled
        weights.append(train(config).state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


class _Watch(pl.Callback):
    """Records the share of the weights that have a gradient, at the end of each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        parameters = [*module.netG.parameters(), *module.netD.parameters()]
        self.found.append(sum(parameter.grad is not None for parameter in parameters) / len(parameters))


def test_a_callback_of_the_user_can_read_gradients(make_config):
    watch = _Watch()
    train(make_config(), callbacks=[watch])
    assert set(watch.found) == {1.0}


def test_a_subclass_of_the_user_can_read_gradients(make_config, monkeypatch):
    found = []

    class Module(Pix2PixHD):
        def on_before_optimizer_step(self, optimizer):
            found.append([p.grad is not None for group in optimizer.param_groups for p in group["params"]])

    monkeypatch.setattr("pix2pixhd.training.run.Pix2PixHD", Module)
    train(make_config())
    assert found
    assert all(map(all, found))


@pytest.mark.parametrize("value", [None, True, False])
def test_gradients_are_kept_only_if_configured(make_config, monkeypatch, value):
    found = []

    def read(self, optimizer):
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.dim() > 1]
        found.append({weight.grad is None for weight in weights})

    monkeypatch.setattr(Pix2PixHD, "on_before_optimizer_step", read)
    config = make_config()
    config.compute.optimizer_in_backward = value
    train(config)
    assert found == [{value is not False}] * len(found)


def test_float16_is_rejected_and_not_chosen_by_default(make_config):
    config = make_config("explicit")
    config.trainer["precision"] = "16-mixed"
    config.compute.optimizer_in_backward = True
    with pytest.raises(InputError, match=r"compute\.optimizer_in_backward .*16-mixed .*remove one of the two"):
        train(config)
    config = make_config("default")
    config.trainer["precision"] = "16-mixed"
    assert not train(config)._steps_in_backward


def test_a_trainer_of_the_user_cannot_sum_gradients_that_are_freed(make_config, tmp_path):
    config = make_config()
    config.compute.optimizer_in_backward, config.optimizer.accumulate = True, 2
    module = Pix2PixHD(config.model, config.data, config.loss, config.optimizer, config.compute)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match=r"compute\.optimizer_in_backward .*optimizer\.accumulate: 2"):
        trainer.fit(module, datamodule=PairedData(config.data, config.model.multiple, config.run.seed))
