"""Coarse-to-fine training: the global generator, then the enhancers around it, then the whole generator."""

import dataclasses

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.training.module import Pix2PixHD
from pix2pixhd.training.run import train

from .helpers import weights


@pytest.fixture
def make_local(make_config):
    """Makes configurations of an enhancer around the generator of ``make_config``."""

    def make(output, pretrain=None, epochs=3, fixed=2):
        config = make_config(output, epochs)
        config.model = dataclasses.replace(config.model, netG="local", ngf=2, num_D=3, n_blocks_local=1)
        config.data.fineSize = 16
        config.optimizer.niter_fix_global = fixed
        config.run.load_pretrain = pretrain and str(pretrain)
        return config

    return make


@pytest.fixture
def global_run(make_config, tmp_path):
    train(make_config("global"))
    return tmp_path / "global"


def is_fixed(name):
    return name.startswith("netG.model.")


def test_global_part_is_fixed_then_trained_with_the_enhancers(make_local, global_run, capsys):
    """The global part is fixed for two epochs and trained in the third, and the learning rate decays.

    NVIDIA's code does neither.
    """
    import lightning.pytorch as pl

    seen, rates = [], []

    class Spy(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(weights(module))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

        def on_train_start(self, trainer, module):
            seen.append(weights(module))

    config = make_local("local", global_run, epochs=3)
    config.optimizer.niter, config.optimizer.niter_decay = 1, 2
    train(config, callbacks=[Spy()])
    out = capsys.readouterr().out
    assert "the generator's global part (the enhancers from random weights)" in out
    assert "the discriminator (scale2 from random weights)" in out
    coarse = read_checkpoint(global_run / "checkpoints" / "last.ckpt").weights
    for name in filter(is_fixed, seen[0]):
        for epoch in (0, 1, 2):
            assert torch.equal(seen[epoch][name], coarse[name]), (name, epoch)
        if name.endswith("weight"):
            assert not torch.equal(seen[3][name], coarse[name]), name
    for name in ("netG.model1_1.1.weight", "netG.model1_2.0.conv_block.1.weight"):
        assert not torch.equal(seen[0][name], seen[1][name])
    for name in ("netD.scale0_layer0.0.weight", "netD.scale1_layer1.0.weight"):
        assert torch.equal(seen[0][name], coarse[name])
    lr = config.optimizer.lr
    assert rates[-1] == pytest.approx([lr * 0.5, lr * 0.5])


def test_resuming_while_the_global_part_is_fixed_reaches_the_same_weights(make_local, global_run):
    uninterrupted = train(make_local("uninterrupted", global_run))
    broken = make_local("broken", global_run)
    broken.trainer["max_epochs"] = 1
    train(broken)
    broken.trainer["max_epochs"] = 3
    resumed = train(broken, resume=True)
    for (name, a), (_, b) in zip(weights(uninterrupted).items(), weights(resumed).items(), strict=True):
        assert torch.equal(a, b), name


def test_global_part_computes_the_same_features_inside_the_enhancer(make_local, global_run):
    """The features inside the enhancer equal those of the global generator."""
    from pix2pixhd.checkpoints.generators import load_generator

    config = make_local("local", global_run)
    module = Pix2PixHD(config.model, config.data, config.loss)
    module.load_pretrained(global_run)
    coarse = load_generator(global_run / "checkpoints" / "last.ckpt").network
    x = torch.randn(1, 5, 16, 16)
    assert torch.equal(module.netG.model(x), coarse.model[:-3](x))


def test_nvidias_files_initialize_a_run(make_config, global_run, tmp_path, capsys):
    folder = tmp_path / "nvidia"
    last = global_run / "checkpoints" / "last.ckpt"
    assert main(["export", "--checkpoint", str(last), "--output", str(folder)]) == 0
    config = make_config("again")
    module = Pix2PixHD(config.model, config.data, config.loss)
    with pytest.raises(InputError, match=r"run\.load_pretrain: .*latest_net_G\.pth is one of .*; name its folder, "):
        module.load_pretrained(folder / "latest_net_G.pth")
    summary = module.load_pretrained(folder)
    assert summary.endswith("the generator, the discriminator")
    saved = read_checkpoint(last).weights
    for name, value in weights(module).items():
        if name.startswith(("netG", "netD")):
            assert torch.equal(value, saved[name])


@pytest.mark.parametrize(("ngf", "remedy"), [(4, "set model.ngf: 2"), (3, "with model.ngf: 8")])
def test_a_global_part_of_another_width_names_the_remedy(make_config, make_checkpoint, make_local, ngf, remedy):
    trained = make_checkpoint(model=dataclasses.replace(make_config().model, ngf=ngf))
    config = make_local("local")
    config.model.ngf = 4
    module = Pix2PixHD(config.model, config.data, config.loss)
    with pytest.raises(InputError, match=rf"model\.ngf: {ngf}, .* = 8 channels; .*{remedy}"):
        module.load_pretrained(trained)


def test_missing_initial_weights_are_reported(make_config, tmp_path):
    config = make_config()
    with pytest.raises(InputError, match=r"run\.load_pretrain: .*none does not exist"):
        Pix2PixHD(config.model, config.data, config.loss).load_pretrained(tmp_path / "none")


def test_pretrained_weights_that_do_not_fit_are_rejected(make_config, make_local, global_run, tmp_path):
    config = make_config("other")
    config.model.ngf = 8
    with pytest.raises(InputError, match=r"do not fit the network: .*of another shape"):
        Pix2PixHD(config.model, config.data, config.loss).load_pretrained(global_run)
    with pytest.raises(
        InputError, match=r"run\.load_pretrain: .* contains neither checkpoints/last\.ckpt nor latest_net_G"
    ):
        Pix2PixHD(config.model, config.data, config.loss).load_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"random without run\.load_pretrain"):
        train(make_local("local"))
    config = make_config("fixed")
    config.optimizer.niter_fix_global = 1
    config.run.load_pretrain = str(global_run)
    with pytest.raises(InputError, match=r"niter_fix_global needs model\.netG: local"):
        train(config)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("num_D", [1, 2])
def test_discriminator_trained_with_no_ganFeat_loss_is_loaded(make_config, tmp_path, norm, num_D):
    """NVIDIA's code uses other parameter names for discriminators trained without feature matching."""
    from pix2pixhd.models import define_D

    config = make_config()
    config.model.num_D, config.model.norm = 2, norm
    module = Pix2PixHD(config.model, config.data, config.loss)
    torch.manual_seed(3)
    flat = define_D(8, 4, 2, norm, num_D=num_D)
    torch.save(module.netG.state_dict(), tmp_path / "latest_net_G.pth")
    torch.save(flat.state_dict(), tmp_path / "latest_net_D.pth")
    summary = module.load_pretrained(tmp_path)
    assert summary.endswith("the discriminator" if num_D == 2 else "the discriminator (scale1 from random weights)")
    x = torch.randn(1, 8, 16, 24)
    coarse = x if num_D == 2 else flat.downsample(x)
    for ours, theirs in zip(module.netD(x)[2 - num_D :], flat(coarse if num_D == 1 else x), strict=True):
        torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-5, atol=1e-6)
    flat.layer0.add_module("11", torch.nn.Conv2d(1, 1, 1))
    torch.save(flat.state_dict(), tmp_path / "latest_net_D.pth")
    with pytest.raises(InputError, match=r"2 not known to this network \(layer0\.11\.bias"):
        module.load_pretrained(tmp_path)
