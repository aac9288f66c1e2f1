"""NVIDIA's ``opt.txt``, which its code writes beside every checkpoint, as a configuration of this package."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.config import config_text
from pix2pixhd.training.options import LossOptions, ModelOptions, OptimizerOptions, RunOptions
from pix2pixhd.training.run import TrainConfig

__all__ = ["as_text", "read_options", "to_config"]

# Keys that say the same under the same name.
_SAME: dict[str, type] = {"data": DataOptions, "model": ModelOptions, "optimizer": OptimizerOptions, "run": RunOptions}

# Of these, what says "none" in a way of its own.
_SPECIAL = {"max_dataset_size", "load_pretrain"}

# What has no counterpart, and why; docs/migrate.md tells the same. A function says when the value matters at all.
_LEFT_OUT: dict[str, tuple[Callable[[str], bool], str]] = {
    "load_features": (
        lambda v: v == "True",
        "features computed beforehand cannot train the encoder; it is trained here",
    ),
    "use_dropout": (lambda v: v == "True", "read by the original's option parser and used nowhere"),
    "continue_train": (lambda v: v == "True", "pix2pixhd train --resume"),
    "which_epoch": (lambda v: v != "latest", "name a file of run.output/checkpoints"),
    "debug": (lambda v: v == "True", "--trainer.fast_dev_run=true, or --data.max_dataset_size"),
    "local_rank": (lambda v: v not in ("0", "-1"), "torchrun's own"),
}


def read_options(path: pathlib.Path) -> dict[str, str]:
    """The options in an ``opt.txt``, as text.

    Args:
        path: The file, of lines ``name: value`` between two rules.

    Raises:
        InputError: If the file is missing or holds no options.

    Example:
        >>> read_options(pathlib.Path("checkpoints/label2city/opt.txt"))["ngf"]  # doctest: +SKIP
        '64'
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name the opt.txt of a run of NVIDIA's code") from None
    pairs = (line.partition(": ") for line in lines if not line.startswith("--"))
    options = {name.strip(): value.strip() for name, colon, value in pairs if colon}
    if not {"netG", "label_nc", "ngf"} <= set(options):
        raise InputError(f"{path}: not an opt.txt of NVIDIA's code, which has lines such as 'ngf: 64'")
    return options


def _value(path: pathlib.Path, name: str, text: str, default: object) -> Any:
    """The text as a value of the default's kind."""
    if isinstance(default, bool):
        return text == "True"
    if isinstance(default, (int, float)):
        try:
            return type(default)(float(text))
        except (ValueError, OverflowError):
            raise InputError(f"{path}: {name} should be a number, got {text!r}") from None
    return text


def to_config(path: pathlib.Path) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration that trains what an ``opt.txt`` trained.

    Args:
        path: The ``opt.txt``.

    Returns:
        The configuration, with the preset ``nvidia``; and the options without counterpart, each with what to do.

    Raises:
        InputError: If the file cannot be used.

    Example:
        >>> config, left_out = to_config(pathlib.Path("checkpoints/label2city/opt.txt"))  # doctest: +SKIP
    """
    given = read_options(path)
    sections: dict[str, dict[str, Any]] = {}
    for section, kind in _SAME.items():
        sections[section] = {
            field.name: _value(path, field.name, given[field.name], field.default)
            for field in dataclasses.fields(kind)
            if field.name in given and given[field.name] != "None" and field.name not in _SPECIAL
        }
    if given.get("max_dataset_size", "inf") not in ("inf", "None"):
        sections["data"]["max_dataset_size"] = int(float(given["max_dataset_size"]))
    if given.get("load_pretrain"):
        sections["run"]["load_pretrain"] = given["load_pretrain"]
    sections["run"]["output"] = str(pathlib.Path(given.get("checkpoints_dir", "runs")) / given.get("name", "pix2pixhd"))
    trainer: dict[str, Any] = {}
    if given.get("fp16") == "True" or given.get("data_type") == "16":
        trainer["precision"] = "16-mixed"
    if given.get("gpu_ids") == "-1":
        trainer["accelerator"] = "cpu"
    elif len(gpus := [x for x in given.get("gpu_ids", "0").strip("[]").split(",") if x.strip()]) > 1:
        trainer["devices"] = len(gpus)
    left_out = {name: reason for name, (matters, reason) in _LEFT_OUT.items() if name in given and matters(given[name])}
    config = TrainConfig(
        data=DataOptions(**sections["data"]),
        model=ModelOptions(**sections["model"]),
        loss=_loss(path, given),
        optimizer=OptimizerOptions(**sections["optimizer"]),
        run=RunOptions(**sections["run"]),
        trainer=trainer,
    )
    return config, left_out


def _loss(path: pathlib.Path, given: Mapping[str, str]) -> LossOptions:
    weight = _value(path, "lambda_feat", given.get("lambda_feat", "10.0"), 10.0)
    return LossOptions(
        preset="nvidia",
        gan_mode="vanilla" if given.get("no_lsgan") == "True" else None,
        lambda_feat=0.0 if given.get("no_ganFeat_loss") == "True" else weight,
        # The original weighs both by lambda_feat.
        lambda_vgg=0.0 if given.get("no_vgg_loss") == "True" else weight,
        pool_size=int(given.get("pool_size", "0")),
    )


def as_text(path: pathlib.Path) -> str:
    """The configuration as YAML, with a comment for every option that has no counterpart.

    Raises:
        InputError: If the file cannot be used.
    """
    config, left_out = to_config(path)
    comments = [f"# {name}: {reason}" for name, reason in left_out.items()]
    return "\n".join([f"# from {path}", *comments, config_text(config)])
