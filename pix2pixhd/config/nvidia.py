"""Conversion of NVIDIA's ``opt.txt``, which its code writes beside every checkpoint, to a configuration."""

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

# Intervals that NVIDIA's code counts in images and this package counts in steps.
_COUNTED_IN_IMAGES = {
    "display_freq": "run.display_freq",
    "print_freq": RENAMED["print_freq"],
    "save_latest_freq": "run.save_latest_freq",
}

# Options without a counterpart that are worth a note only for certain values.
_MATTERS: dict[str, Callable[[str], bool]] = {
    "continue_train": lambda value: value == "True",
    "debug": lambda value: value == "True",
    "load_features": lambda value: value == "True",
    "local_rank": lambda value: value not in ("0", "-1"),
    "use_dropout": lambda value: value == "True",
    "which_epoch": lambda value: value != "latest",
}


_MAX_BYTES = 2**20  # NVIDIA's code writes 2 kB


def read_options(path: pathlib.Path) -> dict[str, str]:
    """Reads the options of an ``opt.txt`` as strings.

    Args:
        path: The file, which has lines ``name: value`` between a header and a footer line.

    Returns:
        The values by option name.

    Raises:
        InputError: If the file is missing or contains no options.

    Example:
        >>> read_options(pathlib.Path("checkpoints/label2city/opt.txt"))["ngf"]  # doctest: +SKIP
        '64'
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the opt.txt of a run of NVIDIA's code") from None
    if len(text) > _MAX_BYTES:
        raise InputError(
            f"{path}: not an opt.txt of NVIDIA's code, because it has more than 1 MiB; give the opt.txt of a run"
        )
    pairs = (line.partition(": ") for line in text.splitlines() if not line.startswith("--"))
    options = {name.strip(): value.strip() for name, colon, value in pairs if colon}
    if not {"netG", "label_nc", "ngf"} <= set(options):
        raise InputError(
            f"{path}: not an opt.txt of NVIDIA's code, which has lines such as 'ngf: 64'; give that of a run"
        )
    return options


class _Options:
    """Typed access to the options of one ``opt.txt``."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.given = read_options(path)

    def number(self, name: str, default: float) -> Any:
        """Returns an option as a number of the default's type, or the default if the option is missing."""
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
        """Returns whether a flag is set."""
        text = self.given.get(name, "False")
        if text not in ("True", "False"):
            self._refuse(name, "True or False", text)
        return text == "True"

    def gpus(self) -> list[int]:
        """Returns the GPU ids; the list is empty for the CPU."""
        text = self.given.get("gpu_ids", "0")
        try:
            ids = [int(index) for index in text.strip("[]").split(",") if index.strip()]
        except ValueError:
            self._refuse("gpu_ids", "a list of GPU ids, such as [0, 1]", text)
        return [index for index in ids if index >= 0]

    def run_name(self) -> str:
        """Returns the name of the run, which is a folder inside of ``checkpoints_dir``."""
        text = self.given.get("name", "pix2pixhd")
        parts = pathlib.PurePath(text).parts
        if not parts or pathlib.PurePath(text).is_absolute() or ".." in parts:
            self._refuse("name", "the name of a folder inside of checkpoints_dir", text)
        return text

    def like(self, name: str, default: object) -> Any:
        """Returns an option as a value of the default's type."""
        if isinstance(default, bool):
            return self.is_on(name)
        return self.number(name, default) if isinstance(default, (int, float)) else self.given[name]

    def _refuse(self, name: str, expected: str, text: str) -> NoReturn:
        raise InputError(f"{self.path}: {name} should be {expected}, got {text!r}; correct this line")


def to_config(path: pathlib.Path) -> tuple[TrainConfig, dict[str, str]]:
    """Converts an ``opt.txt`` to the equivalent configuration.

    Args:
        path: The ``opt.txt``.

    Returns:
        The configuration, with the preset ``nvidia``, and notes by option name. A note describes an option that has no
        counterpart, with its replacement, or a difference in behaviour.

    Raises:
        InputError: If the file cannot be read or has invalid values.

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
            # NVIDIA's code acts when the number of images is a multiple of both the interval and the batch size.
            images = options.number(name, 100)
            values[dotted] = images // math.gcd(images, batch)
    return values


def _other_names(options: _Options) -> dict[str, Any]:
    weight = options.number("lambda_feat", 10.0)
    values: dict[str, Any] = {
        RENAMED["name"]: str(pathlib.Path(options.given.get("checkpoints_dir", "runs")) / options.run_name()),
        "loss.preset": "nvidia",
        # NVIDIA's code weights both terms by lambda_feat.
        "loss.lambda_feat": weight,
        "loss.lambda_vgg": weight,
        "loss.pool_size": options.number("pool_size", 0),
    }
    if options.given.get("data_type") == "16":
        values[RENAMED["data_type"]] = "16-mixed"
    return values | dict(FLAGS[name] for name in FLAGS if options.is_on(name))


def _devices(options: _Options, notes: dict[str, str]) -> dict[str, Any]:
    """Converts the devices and the batch size, which NVIDIA's ``DataParallel`` splits across the GPUs.

    ``DataParallel`` assigns chunks of ``ceil(batchSize / GPUs)`` images. The last chunk may be smaller, and the
    remaining GPUs are idle.
    """
    batch, gpus = options.number("batchSize", 1), options.gpus()
    if not gpus:
        return {"trainer.accelerator": "cpu"}
    if batch < 1:
        return {}  # the data section rejects it
    chunk = math.ceil(batch / len(gpus))
    used = math.ceil(batch / chunk)
    if batch % chunk:
        chunk = round(batch / used)
        notes["batchSize"] = (
            f"{batch} images are not divisible by {used} GPUs; data.batchSize: {chunk} per GPU gives "
            f"{chunk * used} images per step. For {batch}, choose a number of trainer.devices that divides it"
        )
    elif used < len(gpus):
        notes["gpu_ids"] = f"a batch of {batch} used {used} of the {len(gpus)} GPUs; only those are listed"
    ids = gpus[:used]
    devices: dict[str, Any] = {"data.batchSize": chunk}
    if ids != [0]:
        devices[RENAMED["gpu_ids"]] = used if ids == list(range(used)) else ids
    return devices


def as_text(path: pathlib.Path) -> str:
    """Returns the configuration as YAML, with a comment for every option that has no counterpart or differs.

    Raises:
        InputError: If the file cannot be read or has invalid values.
    """
    config, notes = to_config(path)
    comments = [f"# {name}: {note}" for name, note in notes.items()]
    source = " ".join(str(path).splitlines())  # a line break in the name would end the comment
    return "\n".join([f"# from {source}", *comments, config_text(config)])
