"""Training on a limited number of images, in file order, and on images with any number of channels."""

import dataclasses

import numpy as np
import pytest

from pix2pixhd.cli.main import main
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.run import train

from .helpers import files


def test_max_dataset_size_and_serial_batches_select_the_first_images_in_order(make_config, tmp_path):
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


def test_images_with_five_input_and_two_output_channels_train(make_config, tmp_path, capsys):
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
    for array, dtype in ((np.zeros((16, 20, 5), np.float32), "float32"), (np.zeros((16, 20), np.uint8), "uint8")):
        np.save(tmp_path / "stacks" / "train_A" / "a.npy", array)
        with pytest.raises(InputError, match=rf"a\.npy: must contain an array .* of uint8, got \[.*\] of {dtype}"):
            train(make_config("wrong", **options))
    np.save(tmp_path / "stacks" / "train_A" / "a.npy", np.zeros((16, 20, 5), np.uint8))
    vgg = make_config("vgg", **options)
    vgg.loss = dataclasses.replace(vgg.loss, lambda_vgg=1.0, vgg="random")
    with pytest.raises(
        InputError, match=r"loss\.lambda_vgg: the perceptual loss needs color or grayscale images, got .*output_nc=2"
    ):
        train(vgg)
