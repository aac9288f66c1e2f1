"""NVIDIA's ``opt.txt``, which its code writes beside every checkpoint, as a configuration of this package."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

from pix2pixhd.config.nvidia_names import ELSEWHERE, FLAGS, RENAMED
from pix2pixhd.config.parser import SECTIONS, config_text
from pix2pixhd.config.schema import DataOptions, ModelOptions, OptimizerOptions, RunOptions, TrainConfig
from pix2pixhd.errors import InputError

__all__ = ["as_text", "read_options", "to_config"]

# Sections whose fields have NVIDIA's names.
_SAME: dict[str, type] = {"data": DataOptions, "model": ModelOptions, "optimizer": OptimizerOptions, "run": RunOptions}

# NVIDIA's code counts images where this package counts steps.
_COUNTED_IN_IMAGES = {
    "display_freq": "run.display_freq",
    "print_freq": RENAMED["print_freq"],
    "save_latest_freq": "run.save_latest_freq",
}

# When an option without counterpart matters at all.
_MATTERS: dict[str, Callable[[str], bool]] = {
    "continue_train": lambda value: value == "True",
    "debug": lambda value: value == "True",
    "load_features": lambda value: value == "True",
    "local_rank": lambda value: value not in ("0", "-1"),
    "use_dropout": lambda value: value == "True",
    "which_epoch": lambda value: value != "latest",
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


class _Options:
    """The options of one ``opt.txt`` as numbers and switches."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.given = read_options(path)

    def number(self, name: str, default: float) -> Any:
        """A number of the default's type; the default if the option is missing."""
        text = self.given.get(name, str(default))
        try:
            value = float(text)
            converted = type(default)(value)
        except (ValueError, OverflowError):
            self._refuse(name, "a number", text)
        if converted != value:
            self._refuse(name, "an integer", text)
        return converted

    def is_on(self, name: str) -> bool:
        """Whether a switch is on."""
        text = self.given.get(name, "False")
        if text not in ("True", "False"):
            self._refuse(name, "True or False", text)
        return text == "True"

    def gpus(self) -> list[int]:
        """The GPU ids, empty for the CPU."""
        text = self.given.get("gpu_ids", "0")
        try:
            ids = [int(index) for index in text.strip("[]").split(",") if index.strip()]
        except ValueError:
            self._refuse("gpu_ids", "a list of GPU ids, such as [0, 1]", text)
        return [index for index in ids if index >= 0]

    def like(self, name: str, default: object) -> Any:
        """The option as a value of the default's type."""
        if isinstance(default, bool):
            return self.is_on(name)
        return self.number(name, default) if isinstance(default, (int, float)) else self.given[name]

    def _refuse(self, name: str, expected: str, text: str) -> NoReturn:
        raise InputError(f"{self.path}: {name} should be {expected}, got {text!r}")


def to_config(path: pathlib.Path) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration that trains what an ``opt.txt`` trained.

    Args:
        path: The ``opt.txt``.

    Returns:
        The configuration, with the preset ``nvidia``; and notes by option: what has no counterpart and what to do, and
        what differs.

    Raises:
        InputError: If the file cannot be used.

    Example:
        >>> config, notes = to_config(pathlib.Path("checkpoints/label2city/opt.txt"))  # doctest: +SKIP
    """
    options = _Options(path)
    values = _same_names(options) | _other_names(options)
    notes = {
        name: ELSEWHERE[name]
        for name, matters in _MATTERS.items()
        if name in options.given and matters(options.given[name])
    }
    values |= _devices(options, notes)
    sections: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, "trainer")}
    for dotted, value in values.items():
        section, _, name = dotted.partition(".")
        sections[section][name] = value
    made = {name: kind(**sections[name]) for name, kind in SECTIONS.items()}
    return TrainConfig(**made, trainer=sections["trainer"]), notes


def _same_names(options: _Options) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"{section}.{field.name}": options.like(field.name, field.default)
        for section, kind in _SAME.items()
        for field in dataclasses.fields(kind)
        if options.given.get(field.name, "None") != "None" and field.name not in {"max_dataset_size", "load_pretrain"}
    }
    if options.given.get("max_dataset_size", "inf") not in ("inf", "None"):
        values["data.max_dataset_size"] = options.number("max_dataset_size", 1)
    if options.given.get("load_pretrain"):
        values["run.load_pretrain"] = options.given["load_pretrain"]
    batch = max(options.number("batchSize", 1), 1)
    for name, dotted in _COUNTED_IN_IMAGES.items():
        if name in options.given:
            # The original acts when the number of images is a multiple of both.
            images = options.number(name, 100)
            values[dotted] = images // math.gcd(images, batch)
    return values


def _other_names(options: _Options) -> dict[str, Any]:
    weight = options.number("lambda_feat", 10.0)
    values: dict[str, Any] = {
        RENAMED["name"]: str(
            pathlib.Path(options.given.get("checkpoints_dir", "runs")) / options.given.get("name", "pix2pixhd")
        ),
        "loss.preset": "nvidia",
        # The original weights both terms by lambda_feat.
        "loss.lambda_feat": weight,
        "loss.lambda_vgg": weight,
        "loss.pool_size": options.number("pool_size", 0),
    }
    if options.given.get("data_type") == "16":
        values[RENAMED["data_type"]] = "16-mixed"
    return values | dict(FLAGS[name] for name in FLAGS if options.is_on(name))


def _devices(options: _Options, notes: dict[str, str]) -> dict[str, Any]:
    """Devices and batch size: NVIDIA's ``DataParallel`` divides ``batchSize`` over the GPUs.

    It hands out chunks of ``ceil(batchSize / GPUs)`` images, the last of which may be smaller, and leaves the other
    GPUs idle.
    """
    batch, gpus = options.number("batchSize", 1), options.gpus()
    if not gpus:
        return {"trainer.accelerator": "cpu"}
    if batch < 1:
        return {}  # refused by the data section
    chunk = math.ceil(batch / len(gpus))
    used = math.ceil(batch / chunk)
    if batch % chunk:
        chunk = round(batch / used)
        notes["batchSize"] = (
            f"{batch} images are not divisible by {used} GPUs; data.batchSize: {chunk} on each of them makes "
            f"{chunk * used} per step. For {batch}, choose a number of trainer.devices that divides it"
        )
    elif used < len(gpus):
        notes["gpu_ids"] = f"a batch of {batch} occupied {used} of the {len(gpus)} GPUs; only those are listed"
    ids = gpus[:used]
    devices: dict[str, Any] = {"data.batchSize": chunk}
    if ids != [0]:
        devices[RENAMED["gpu_ids"]] = used if ids == list(range(used)) else ids
    return devices


def as_text(path: pathlib.Path) -> str:
    """The configuration as YAML, with a comment for every option that has no counterpart or differs.

    Raises:
        InputError: If the file cannot be used.
    """
    config, notes = to_config(path)
    comments = [f"# {name}: {note}" for name, note in notes.items()]
    return "\n".join([f"# from {path}", *comments, config_text(config)])
