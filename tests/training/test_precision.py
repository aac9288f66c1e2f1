"""Every precision and memory format trains, validates and resumes, or is rejected; optimizers share a loss scale."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pix2pixhd.cli.main import main
from pix2pixhd.errors import InputError
from pix2pixhd.reporting.metrics import build_metrics, update_metrics
from pix2pixhd.training.precision import SharedScalePrecision
from pix2pixhd.training.run import train

from .helpers import assert_identical, training_state, weights
from .settings_matrix import compile_eagerly

ENCODER = ["--model.instance_feat=true", "--model.nef=4", "--model.n_downsample_E=2"]
LOCAL = ["--model.netG=local", "--model.n_blocks_local=1"]


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision=bf16-mixed"],
        ["--compute.channels_last=true"],
        ["--trainer.precision=16-mixed", *ENCODER, "--optimizer.gradient_clip_val=0.1", "--optimizer.accumulate=2"],
        ["--trainer.precision=bf16-true", *ENCODER],
        ["--trainer.precision=bf16-true", *ENCODER, *LOCAL, "--optimizer.ema_decay=0.9"],
        ["--trainer.precision=bf16-mixed", *ENCODER, *LOCAL, "--optimizer.ema_decay=0.9", "--loss.pool_size=2"],
        ["--trainer.precision=64-true", *ENCODER, "--compute.channels_last=true"],
    ],
    ids=lambda options: " ".join(option.split(".")[-1] for option in options),
)
def test_a_run_in_any_precision_validates_saves_and_resumes(command_line, tmp_path, options):
    """Runs the command line with sample sheets, metrics, checkpoints, results page, and generates images."""
    options = ["--data.val_phase=test", "--optimizer.niter=2", "--run.display_freq=2", *options]
    assert main(command_line(*options, "--trainer.max_epochs=1")) == 0
    assert main(command_line(*options, "--resume")) == 0
    assert (tmp_path / "run" / "results" / "index.html").is_file()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert all(value.isfinite().all() for value in torch.load(last, weights_only=True)["state_dict"].values())


@pytest.mark.slow
def test_a_compiled_channels_last_run_with_encoder_and_average_saves_its_epoch(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    options = ["--data.val_phase=test", "--trainer.precision=bf16-mixed", *ENCODER, "--optimizer.ema_decay=0.9"]
    assert main(command_line(*options, "--compute.compile=true", "--run.save_epoch_freq=1")) == 0
    assert (tmp_path / "run" / "checkpoints" / "epoch_0000.ckpt").is_file()


def test_pure_float16_is_rejected_with_the_reason(make_config):
    config = make_config()
    config.trainer["precision"] = "16-true"
    with pytest.raises(InputError, match=r"one of .*16-mixed, .*got '16-true': Adam's second moments underflow"):
        train(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_metrics_accept_any_dtype_and_memory_format(dtype):
    torch.manual_seed(0)
    generated, real = torch.rand(2, 3, 16, 20) * 2.2 - 1.1, torch.rand(2, 3, 16, 20) * 2 - 1
    generated, real = (x.to(dtype).to(memory_format=torch.channels_last) for x in (generated, real))
    metrics = build_metrics(["l1", "psnr", "ssim"])
    update_metrics(metrics, generated, real)
    found = metrics.compute()
    a, b = generated.double().clamp(-1, 1).contiguous(), real.double().contiguous()
    assert found["val_L1"].item() == pytest.approx((a - b).abs().mean().item(), rel=1e-5)
    assert found["val_PSNR"].item() == pytest.approx(
        peak_signal_noise_ratio(a, b, data_range=(-1.0, 1.0)).item(), rel=1e-5
    )
    expected = structural_similarity_index_measure(a, b, data_range=(-1.0, 1.0))
    assert found["val_SSIM"].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


class TwoOptimizers(pl.LightningModule):
    """Two layers with one SGD optimizer each; the gradients of the first overflow in chosen steps."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(2))

    def losses(self, x, step):
        first, second = (F.mse_loss(layer(x).float(), torch.ones(4, 2)) for layer in self.layers)
        return (first * 1e30 if step in (1, 4) else first), second

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.layers]

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        for loss in self.losses(batch, batch_idx):
            self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()


def recipe(batches):
    """Trains with PyTorch's recipe for two optimizers and one scaler; returns weights and scale after every step."""
    module, scaler = TwoOptimizers(), torch.amp.GradScaler("cpu", growth_interval=1, init_scale=2.0**16)
    optimizers, history = module.configure_optimizers(), []
    for step, x in enumerate(batches):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            losses = module.losses(x, step)
        for loss in losses:
            scaler.scale(loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        history.append((weights(module), scaler.get_scale()))
    return history


def test_both_optimizers_share_a_loss_scale_that_is_updated_once_per_step(tmp_path):
    batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(k)) for k in range(6)]
    history = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            history.append((weights(module), trainer.precision_plugin.scaler.get_scale()))

    precision = SharedScalePrecision("cpu")
    precision.scaler.set_growth_interval(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        plugins=[precision],
        max_epochs=1,
        callbacks=[Spy()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(TwoOptimizers(), torch.utils.data.DataLoader(batches, batch_size=None))
    expected = recipe(batches)
    assert [scale for _, scale in history] == [scale for _, scale in expected]
    assert len({scale for _, scale in expected}) > 2  # it increased and decreased
    for (found, _), (wanted, _) in zip(history, expected, strict=True):
        assert_identical(wanted, found)
    # The overflow skipped only the step of the first optimizer.
    assert torch.equal(history[0][0]["layers.0.weight"], history[1][0]["layers.0.weight"])
    assert not torch.equal(history[0][0]["layers.1.weight"], history[1][0]["layers.1.weight"])


class Scales(pl.Callback):
    """Makes the scale change at every step, and records it."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        trainer.precision_plugin.scaler.set_growth_interval(2)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(trainer.precision_plugin.scaler.get_scale())


def test_a_float16_run_resumes_with_its_loss_scale(make_config, tmp_path):
    def config(output, **trainer):
        config = make_config(output, epochs=3)
        config.trainer |= {"precision": "16-mixed", **trainer}
        return config

    uninterrupted, interrupted = Scales(), Scales()
    train(config("uninterrupted"), callbacks=[uninterrupted])
    train(config("interrupted", max_steps=5), callbacks=[interrupted])
    train(config("interrupted"), resume=True, callbacks=[interrupted])
    assert len(uninterrupted.seen) == 9
    assert len(set(uninterrupted.seen)) > 3
    assert uninterrupted.seen == interrupted.seen
    assert_identical(training_state(tmp_path, "uninterrupted"), training_state(tmp_path, "interrupted"))
