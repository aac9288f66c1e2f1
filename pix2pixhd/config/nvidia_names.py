"""Counterparts of NVIDIA's options that do not have the same name in a section of the configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["ELSEWHERE", "FLAGS", "RENAMED", "hint"]

# Options that have a different name.
RENAMED: dict[str, str] = {
    "checkpoints_dir": "run.output",
    "data_type": "trainer.precision",
    "gpu_ids": "trainer.devices",
    "name": "run.output",
    "print_freq": "trainer.log_every_n_steps",
    "tf_log": "run.loggers",
}

# Flags that set one option to a fixed value.
FLAGS: dict[str, tuple[str, Any]] = {
    "fp16": ("trainer.precision", "16-mixed"),
    "no_ganFeat_loss": ("loss.lambda_feat", 0.0),
    "no_html": ("run.results_count", 0),
    "no_lsgan": ("loss.gan_mode", "vanilla"),
    "no_vgg_loss": ("loss.lambda_vgg", 0.0),
}

# Options without a counterpart in the configuration, with the replacement or the reason.
ELSEWHERE: dict[str, str] = {
    "cluster_path": "`pix2pixhd generate --features FILE.npz`",
    "continue_train": "`pix2pixhd train --resume`",
    "debug": "--trainer.fast_dev_run=true, or --data.max_dataset_size",
    "export_onnx": "`pix2pixhd export --output FILE.onnx`",
    "how_many": "`pix2pixhd generate --how_many`",
    "load_features": "not supported, the encoder is trained and cannot use precomputed features",
    "local_rank": "not needed, the process rank is read from the environment variables of torchrun or SLURM",
    "model": "not needed, there is only one model",
    "n_clusters": "`pix2pixhd features --n_clusters`",
    "ntest": "`pix2pixhd generate --how_many`",
    "results_dir": "`pix2pixhd generate --output`",
    "use_dropout": "not needed, NVIDIA's code parses it but never uses it",
    "use_encoded_image": "`pix2pixhd generate --encode FOLDER`",
    "verbose": "`pix2pixhd doctor` reports what is loaded",
    "which_epoch": "--run.load_pretrain=FILE starts from the weights of another checkpoint of run.output/checkpoints",
}


def hint(name: str) -> str | None:
    """Returns the replacement for an option of NVIDIA's code; None if NVIDIA's code has no such option.

    Example:
        >>> hint("gpu_ids")
        "NVIDIA's --gpu_ids is trainer.devices here"
    """
    if name in FLAGS:
        option, value = FLAGS[name]
        return f"NVIDIA's --{name} is {option}={value} here"
    if name in RENAMED:
        return f"NVIDIA's --{name} is {RENAMED[name]} here"
    return f"NVIDIA's --{name}: {ELSEWHERE[name]}" if name in ELSEWHERE else None
