"""Helpers of the tests that train."""

import os
import pathlib
import signal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions
from pix2pixhd.training.module import Pix2PixHD


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def files(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def training_state(tmp_path, output):
    saved = torch.load(tmp_path / output / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {
        f"{k}.{i}.{name}": value
        for k, optimizer in enumerate(saved["optimizer_states"])
        for i, state in optimizer["state"].items()
        for name, value in state.items()
    }
    rates = [group["lr"] for optimizer in saved["optimizer_states"] for group in optimizer["param_groups"]]
    return (
        saved["state_dict"] | moments | {"global_step": torch.tensor(saved["global_step"]), "lr": torch.tensor(rates)}
    )


class BatchRecorder(pl.Callback):
    """Records the images that a run trains on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch_idx, batch["name"][0]))


def make_module(data=None, **loss):
    torch.manual_seed(0)
    module = Pix2PixHD(
        ModelOptions(ngf=4, n_downsample_global=2, n_blocks_global=1, ndf=4, n_layers_D=2),
        data or DataOptions(label_nc=4),
        LossOptions(**{"lambda_vgg": 0.0, **loss}),
    )
    module.manual_backward = lambda loss, **options: loss.backward(**options)
    return module


def make_batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "input": torch.randint(0, 4, (2, 16, 24), generator=generator, dtype=torch.int32),
        "instance": torch.randint(0, 9, (2, 16, 24), generator=generator, dtype=torch.int32),
        "image": torch.rand(2, 3, 16, 24, generator=generator) * 2 - 1,
    }


def plain_step(module, condition, real, lambda_gan=0.5, lambda_feat=10.0):
    """Computes NVIDIA's step with the paper's weights: D runs three times, and the losses are summed layer by layer."""
    G, D = module.netG, module.netD
    fake = G(condition)
    pred_fake_detached = D(torch.cat([condition, fake.detach()], 1))
    pred_real = D(torch.cat([condition, real], 1))
    pred_fake = D(torch.cat([condition, fake], 1))
    d_fake = sum(0.5 * F.mse_loss(s[-1], torch.zeros_like(s[-1])) for s in pred_fake_detached)
    d_real = sum(0.5 * F.mse_loss(s[-1], torch.ones_like(s[-1])) for s in pred_real)
    gan = sum(lambda_gan * F.mse_loss(s[-1], torch.ones_like(s[-1])) for s in pred_fake)
    feat = 0.0
    for scale_fake, scale_real in zip(pred_fake, pred_real, strict=True):
        for a, b in zip(scale_fake[:-1], scale_real[:-1], strict=True):
            feat = feat + 4.0 / (len(scale_fake) - 1) / len(pred_fake) * F.l1_loss(a, b.detach()) * lambda_feat
    gradients_G = torch.autograd.grad(gan + feat, list(G.parameters()), retain_graph=True)
    gradients_D = torch.autograd.grad(d_fake + d_real, list(D.parameters()))
    return {"D_real": d_real, "D_fake": d_fake, "G_GAN": gan, "G_GAN_Feat": feat}, gradients_G, gradients_D


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


class SendSignal(pl.Callback):
    """Sends a signal to this process in a given step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.step:
            os.kill(os.getpid(), self.number)
