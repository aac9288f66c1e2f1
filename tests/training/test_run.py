"""Complete runs on a tiny dataset."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.checkpoints.generators import load_generator
from pix2pixhd.cli.main import main
from pix2pixhd.data import PairedDataset, find_pairs
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train

from .helpers import assert_identical, files, weights


def test_a_run_writes_checkpoint_samples_and_logs(make_config, tmp_path):
    config = make_config(val_phase="test")
    module = train(config)
    run = tmp_path / "run"
    assert files(run / "checkpoints") == ["last.ckpt"]
    assert files(run / "samples") == ["step_000002.png", "step_000003.png"]
    sheet = Image.open(run / "samples" / "step_000002.png")
    assert sheet.size == (3 * 34 + 2, 2 * 26 + 2)  # label | generated | real of two images of 24x32
    with (run / "logs" / "run_0" / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"val_L1", "val_PSNR", "val_SSIM"} <= set(columns)
    assert any(name.startswith("events.out.tfevents") for name in files(run / "logs" / "run_0"))
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint.model == config.model
    assert checkpoint.data == config.data
    assert checkpoint.loss == config.loss
    assert checkpoint.optimizer == config.optimizer
    assert_identical(checkpoint.weights, weights(module))


def test_every_loss_term_is_logged(make_config, tmp_path):
    config = make_config()
    config.trainer["log_every_n_steps"] = 1
    train(config)
    with (tmp_path / "run" / "logs" / "run_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("G_total")]
    assert len(rows) == 3
    for row in rows:
        gan, feat, vgg, total = (float(row[name]) for name in ("G_GAN", "G_GAN_Feat", "G_VGG", "G_total"))
        assert gan + feat + vgg == pytest.approx(total, rel=1e-5)
        assert float(row["D_real"]) > 0
        assert float(row["D_fake"]) > 0


def test_the_same_seed_gives_the_same_weights(make_config):
    first = weights(train(make_config("one", epochs=2)))
    assert_identical(first, weights(train(make_config("two", epochs=2))))
    other = make_config("three", epochs=2)
    other.run.seed = 1
    assert not torch.equal(first["netG.model.1.weight"], weights(train(other))["netG.model.1.weight"])


def test_a_resumed_run_reaches_the_same_weights(make_config, tmp_path):
    uninterrupted = weights(train(make_config("uninterrupted", epochs=3)))
    config = make_config("interrupted", epochs=3)
    config.trainer["max_epochs"] = 1
    train(config)
    config.trainer["max_epochs"] = 3
    assert_identical(uninterrupted, weights(train(config, resume=True)))
    assert files(tmp_path / "interrupted" / "logs") == ["run_0", "run_1"]


def test_a_run_is_not_overwritten_and_resume_needs_a_run(make_config):
    config = make_config()
    with pytest.raises(InputError, match=r"there is no .*last\.ckpt to continue from"):
        train(config, resume=True)
    train(config)
    with pytest.raises(InputError, match=r"already contains a run .*--resume"):
        train(config)
    config.model.ngf = 8
    with pytest.raises(InputError, match=r"was trained with model\.ngf=4, the configuration has 8"):
        train(config, resume=True)


def test_max_steps_counts_steps(make_config, tmp_path):
    config = make_config(epochs=9)
    config.trainer["max_steps"] = 4
    config.run.display_freq = 1
    train(config)
    assert files(tmp_path / "run" / "samples")[-1] == "step_000004.png"


def test_the_learning_rate_decays_linearly(make_config):
    config = make_config(epochs=1)
    config.optimizer.niter_decay = 4
    rates = []

    from lightning.pytorch.callbacks import Callback

    class Spy(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    train(config, callbacks=[Spy()])
    lr = config.optimizer.lr
    np.testing.assert_allclose(rates, [[lr] * 2, [lr] * 2, [0.75 * lr] * 2, [0.5 * lr] * 2, [0.25 * lr] * 2])


def test_larger_batches_and_worker_processes_train(make_config, tmp_path):
    config = make_config(batchSize=2, nThreads=1)
    config.run.display_freq = 1
    train(config)
    assert files(tmp_path / "run" / "samples") == ["step_000001.png"]


def test_bfloat16_mixed_precision_keeps_float32_weights(make_config):
    config = make_config()
    config.trainer["precision"] = "bf16-mixed"
    for value in weights(train(config)).values():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()


def test_unsupported_trainer_options_are_rejected(make_config):
    config = make_config()
    config.trainer["accumulate_grad_batches"] = 2
    with pytest.raises(
        InputError, match=r"trainer\.accumulate_grad_batches is not .*set optimizer\.accumulate instead"
    ):
        train(config)


def test_unsupported_strategies_are_rejected(make_config):
    config = make_config()
    config.trainer |= {"devices": 2, "strategy": "fsdp"}
    with pytest.raises(InputError, match=r"trainer\.strategy must be .*'fsdp': .* do not support this training step"):
        train(config)


@pytest.mark.parametrize("preset", ["nvidia", "spade", "imaginaire", "mlops"])
def test_every_preset_trains(make_config, preset):
    config = make_config(preset)
    config.loss.preset = preset
    train(config)


def test_image_pairs_without_labels_train(tmp_path, make_config):
    rng = np.random.default_rng(0)
    for folder in ("train_A", "train_B"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        for name in "ab":
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pairs" / folder / f"{name}.png")
    train(make_config(dataroot=str(tmp_path / "pairs"), label_nc=0, no_instance=True))
    out = tmp_path / "out"
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    code = main(
        ["generate", "--checkpoint", f"{checkpoint}", "--input", f"{tmp_path}/pairs/train_A", "--output", f"{out}"]
    )
    assert code == 0
    assert files(out) == ["a.png", "b.png"]


def test_generate_reproduces_the_trained_generator(make_config, tmp_path, data_root):
    config = make_config()
    module = train(config)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    generator = load_generator(checkpoint)
    dataset = PairedDataset(find_pairs(config.data, "test"), config.data, 4, augment=False)
    batch = torch.utils.data.default_collate([dataset[0]])
    module.eval()
    with torch.no_grad():
        expected = module(module.encode(batch))
        assert torch.equal(generator.network(module.encode(batch)), expected)
    out = tmp_path / "out"
    assert main(["generate", "--checkpoint", f"{checkpoint}", "--input", f"{data_root}", "--output", f"{out}"]) == 0
    assert files(out) == ["x.png", "y.png"]
    written = np.asarray(Image.open(out / "x.png")).astype(int)
    wanted = ((expected[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert np.abs(written - wanted).max() <= 1
