"""Shared options of ``generate``, ``features`` and ``export``: the checkpoint, its networks, its data, the device."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any, get_args

import torch

from pix2pixhd.checkpoints.format import last_checkpoint
from pix2pixhd.checkpoints.generators import LoadedGenerator, load_generator
from pix2pixhd.config.nvidia import to_config
from pix2pixhd.config.schema import DataOptions, GeneratorName, ModelOptions, NormName, ResizeOrCrop
from pix2pixhd.errors import InputError

__all__ = ["add_checkpoint", "add_device", "add_scaling", "check_networks", "files_read", "load", "move"]

_NUMBERS = (
    "label_nc",
    "input_nc",
    "output_nc",
    "ngf",
    "n_downsample_global",
    "n_blocks_global",
    "n_local_enhancers",
    "n_blocks_local",
    "feat_num",
    "nef",
    "n_downsample_E",
)
_FLAGS = ("no_instance", "instance_feat", "label_feat")
_NETWORK = ("netG", "norm", *_NUMBERS, *_FLAGS)
_SCALING = ("resize_or_crop", "loadSize", "fineSize")


def _checkpoint(text: str) -> pathlib.Path:
    """Returns the file that ``--checkpoint`` specifies; for a run folder, its last checkpoint."""
    path = pathlib.Path(text)
    return last_checkpoint(path) or path


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds ``--checkpoint``, ``--no-ema`` and, for NVIDIA's files, the options that define the networks."""
    parser.add_argument(
        "--checkpoint", type=_checkpoint, required=True, help="a .ckpt, a run folder, or NVIDIA's latest_net_G.pth"
    )
    parser.add_argument("--no-ema", action="store_true", help="use the last weights instead of their moving average")
    nvidia = parser.add_argument_group(
        "networks of NVIDIA's .pth files",
        "NVIDIA's option names. Defaults are read from the opt.txt beside the file, or are NVIDIA's. A .ckpt contains "
        "these options.",
    )
    nvidia.add_argument("--netG", choices=get_args(GeneratorName))
    for name in _NUMBERS:
        nvidia.add_argument(f"--{name}", type=int)
    nvidia.add_argument("--norm", choices=get_args(NormName))
    for name in _FLAGS:
        nvidia.add_argument(f"--{name}", action="store_true", default=None)


def add_scaling(parser: argparse.ArgumentParser) -> None:
    """Adds the scaling options."""
    group = parser.add_argument_group("scaling of the images", "NVIDIA's option names. Defaults are those of training.")
    modes = get_args(ResizeOrCrop)
    group.add_argument("--resize_or_crop", choices=modes, help="as in training, but images are never cropped")
    group.add_argument("--loadSize", type=int, help="width to scale to")
    group.add_argument("--fineSize", type=int, help=argparse.SUPPRESS)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")


def _opt_txt(checkpoint: pathlib.Path) -> pathlib.Path | None:
    beside = checkpoint.with_name("opt.txt")
    return beside if checkpoint.suffix == ".pth" and beside.is_file() else None


def files_read(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that are read when a checkpoint is loaded, including files that do not exist."""
    encoder = checkpoint.with_name(checkpoint.name.replace("net_G", "net_E"))
    return [checkpoint, checkpoint.with_name("opt.txt"), encoder]


def _merged(section: Any, given: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(section)}
    return dataclasses.replace(section, **{name: value for name, value in given.items() if name in names})


def _scaled(data: DataOptions, given: dict[str, Any]) -> DataOptions:
    """Returns the ``data`` section with the scaling options of the command line."""
    if "fineSize" in given:
        raise InputError("--fineSize: has no effect, since this command never crops images; remove it")
    data = _merged(data, {name: value for name, value in given.items() if name in _SCALING})
    if "loadSize" in given and data.resize_or_crop in ("crop", "none"):
        raise InputError(
            f"--loadSize: has no effect with resize_or_crop {data.resize_or_crop!r}, which does not scale to a width; "
            "add --resize_or_crop scale_width, or remove --loadSize"
        )
    return data


def check_networks(options: argparse.Namespace) -> None:
    """Checks that the options match the kind of checkpoint.

    Options of the networks are only for NVIDIA's files, since a ``.ckpt`` contains them. ``--no-ema`` is only for a
    ``.ckpt``.

    Raises:
        InputError: If an option does not match.
    """
    if options.no_ema and options.checkpoint.suffix == ".pth":
        raise InputError(f"--no-ema: {options.checkpoint} contains no moving average of the weights; remove --no-ema")
    refused = [f"--{name}" for name in _NETWORK if getattr(options, name) is not None]
    if refused and options.checkpoint.suffix != ".pth":
        raise InputError(
            f"{', '.join(refused)}: {options.checkpoint} contains the options of its networks; remove "
            f"{'it' if len(refused) == 1 else 'them'}, since these options are only for NVIDIA's .pth files"
        )


def load(options: argparse.Namespace) -> LoadedGenerator:
    """Loads the generator of ``--checkpoint`` on the CPU.

    Args:
        options: The parsed options of ``add_checkpoint`` and, optionally, ``add_scaling``.

    Raises:
        InputError: If the checkpoint cannot be used, or if the options do not match it.
    """
    check_networks(options)
    given = {name: value for name, value in vars(options).items() if value is not None}
    if options.checkpoint.suffix == ".pth":
        model, data = ModelOptions(), DataOptions()
        opt_txt = _opt_txt(options.checkpoint)
        if opt_txt is not None:
            config, _ = to_config(opt_txt)
            model, data = config.model, config.data
        network = {name: value for name, value in given.items() if name in _NETWORK}
        generator = load_generator(options.checkpoint, _merged(model, network), _merged(data, network))
    else:
        generator = load_generator(options.checkpoint, averaged=not options.no_ema)
    return dataclasses.replace(generator, data=_scaled(generator.data, given))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name} cannot be used ({reason}); use auto or cpu") from None
    return device


def move(generator: LoadedGenerator, name: str) -> None:
    """Moves a generator and its encoder to a device.

    Args:
        generator: The generator.
        name: The value of ``--device``.

    Raises:
        InputError: If the device cannot be used.
    """
    device = _device(name)
    generator.network.to(device)
    if generator.encoder is not None:
        generator.encoder.to(device)
