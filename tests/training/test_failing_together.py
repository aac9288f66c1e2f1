"""A run ends with a single error message if one process fails, or if every step is skipped."""

import os
import pathlib
import subprocess
import sys

import lightning.pytorch as pl
import pytest

from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train

ROOT = pathlib.Path(__file__).resolve().parents[2]

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2"],
    "lightning": [],
}


def run(program, arguments, launcher):
    devices = ["--trainer.devices=2"] if launcher == "lightning" else []
    return subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], *program, *arguments, *devices],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "name"), [("lightning", "a"), ("lightning", "b"), ("torchrun", "b")])
def test_an_image_that_one_process_cannot_read_is_reported(command_line, data_root, launcher, name):
    # In order of their names, the first process reads a and c, and the second one b.
    (data_root / "train_img" / f"{name}.png").write_bytes(b"damaged")
    arguments = command_line("--data.check=false", "--run.display_freq=0", "--data.serial_batches=true")
    done = run(["-m", "pix2pixhd"], arguments, launcher)
    assert done.returncode != 0
    assert f"{name}.png: cannot be read" in done.stderr, done.stderr
    if launcher == "lightning":
        assert "Traceback" not in done.stderr, done.stderr
    else:  # torchrun prints its own traceback
        assert "RuntimeError" not in done.stderr, done.stderr


def poisoned():
    """Runs the command line with a loss that is NaN only in the second process."""
    from pix2pixhd.cli import main as cli
    from pix2pixhd.training.module import Pix2PixHD

    compute = Pix2PixHD.compute_gradients

    def with_nan(self, *args, **options):
        terms = compute(self, *args, **options)
        return terms | {"G_VGG": terms["G_VGG"] + (float("nan") if self.global_rank == 1 else 0.0)}

    Pix2PixHD.compute_gradients = with_nan
    return cli.main()


@pytest.mark.slow
def test_a_loss_that_is_nan_in_one_process_stops_all(command_line, tmp_path):
    done = run(["-m", __name__], command_line(), "lightning")
    assert done.returncode != 0
    assert done.stderr.count("epoch 0: G_VGG is no longer finite, so training was stopped") == 1, done.stderr
    assert "RuntimeError" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


class Poison(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch["image"].fill_(float("nan"))


def test_a_float16_run_that_skips_every_step_is_stopped(make_config, tmp_path):
    config = make_config(epochs=20)  # 60 steps, each of which halves the loss scale
    config.trainer["precision"] = "16-mixed"
    with pytest.raises(InputError, match=r"not finite in float16 even with a loss scale of .*optimizer\.lr"):
        train(config, callbacks=[Poison()])


if __name__ == "__main__":
    sys.exit(poisoned())
