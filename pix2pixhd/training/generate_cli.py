"""The command line of ``pix2pixhd generate``."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import torch

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.checkpoint import load_generator
from pix2pixhd.training.features import FeatureClusters
from pix2pixhd.training.generate import Looks, generate_folder
from pix2pixhd.training.nvidia_options import to_config
from pix2pixhd.training.options import ModelOptions

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd generate",
        description="Writes a picture for every label map or picture of a folder. A checkpoint of this package knows "
        "its networks; NVIDIA's latest_net_G.pth has them in the opt.txt beside it, or takes the options below.",
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="a .ckpt, or NVIDIA's .pth")
    parser.add_argument("--input", type=pathlib.Path, required=True, help="folder of label maps or pictures")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the pictures")
    parser.add_argument("--instances", type=pathlib.Path, help="folder of instance maps; default: beside the input")
    parser.add_argument("--keep-size", action="store_true", help="do not scale the input to the size of the training")
    parser.add_argument("--batch", type=int, default=1, help="pictures of one size generated together (default: 1)")
    parser.add_argument("--how_many", type=int, help="only the first so many pictures")
    parser.add_argument("--no-ema", action="store_true", help="the last weights instead of their moving average")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--html", action="store_true", help="also write a results page, index.html")
    parser.add_argument("--real", type=pathlib.Path, help="folder of real pictures, for the page and its figures")
    looks = parser.add_argument_group("for generators trained with instance features")
    looks.add_argument("--features", type=pathlib.Path, help="looks to draw from, written by `pix2pixhd features`")
    looks.add_argument("--style-seed", type=int, default=0, help="seed of the draw (default: 0)")
    looks.add_argument("--encode", type=pathlib.Path, help="or a folder of pictures whose looks are taken")
    nvidia = parser.add_argument_group(
        "for NVIDIA's .pth files", "NVIDIA's option names; default: its opt.txt beside the file, else its defaults"
    )
    nvidia.add_argument("--netG", choices=["global", "local"])
    for name in _NUMBERS:
        nvidia.add_argument(f"--{name}", type=int)
    nvidia.add_argument("--norm", choices=["instance", "batch"])
    for name in _FLAGS:
        nvidia.add_argument(f"--{name}", action="store_true", default=None)
    scaling = ["scale_width", "scale_width_and_crop", "crop", "resize_and_crop", "none"]
    nvidia.add_argument("--resize_or_crop", choices=scaling)
    return parser


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
    "loadSize",
    "fineSize",
)
_FLAGS = ("no_instance", "instance_feat", "label_feat")


def _for_nvidia(options: argparse.Namespace) -> tuple[ModelOptions, DataOptions]:
    """The networks of a .pth file: what the command line says, then its opt.txt, then NVIDIA's defaults."""
    beside = options.checkpoint.with_name("opt.txt")
    model, data = ModelOptions(), DataOptions()
    if options.checkpoint.suffix == ".pth" and beside.is_file():
        config, _ = to_config(beside)
        model, data = config.model, config.data
    given = {name: value for name, value in vars(options).items() if value is not None}

    def merged(section: Any) -> Any:
        own = {field.name for field in dataclasses.fields(section)}
        return dataclasses.replace(section, **{name: value for name, value in given.items() if name in own})

    return merged(model), merged(data)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name} cannot be used ({reason}); take auto or cpu") from None
    return device


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd generate``; returns the exit code.

    Raises:
        InputError: For a checkpoint, folder or file that cannot be used.
    """
    options = _parser().parse_args(argv)
    for name in ("batch", "how_many"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.features is not None and options.encode is not None:
        raise InputError("--features and --encode exclude each other: looks are drawn, or taken from pictures")
    model, data = _for_nvidia(options)
    generator = load_generator(options.checkpoint, model, data, averaged=not options.no_ema)
    device = _device(options.device)
    generator.network.to(device)
    if generator.encoder is not None:
        generator.encoder.to(device)
    clusters = None if options.features is None else FeatureClusters.load(options.features)
    written = generate_folder(
        generator,
        options.input,
        options.output,
        options.instances,
        options.keep_size,
        batch=options.batch,
        how_many=options.how_many,
        looks=Looks(clusters, options.encode, options.style_seed),
        real=options.real,
        page=options.html,
    )
    print(f"wrote {len(written)} pictures to {options.output}")
    if options.html:
        print(f"results page: {options.output / 'index.html'}")
    return 0
