"""The command line of ``pix2pixhd generate``."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import torch

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.checkpoint import load_generator
from pix2pixhd.training.generate import generate_folder
from pix2pixhd.training.options import ModelOptions

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd generate",
        description="Writes a picture for every label map or picture of a folder. A checkpoint of this package knows "
        "its networks; for NVIDIA's latest_net_G.pth give the options that it was trained with.",
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="a .ckpt, or NVIDIA's .pth")
    parser.add_argument("--input", type=pathlib.Path, required=True, help="folder of label maps or pictures")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the pictures")
    parser.add_argument("--instances", type=pathlib.Path, help="folder of instance maps; default: beside the input")
    parser.add_argument("--keep-size", action="store_true", help="do not scale the input to the size of the training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    nvidia = parser.add_argument_group("for NVIDIA's .pth files", "NVIDIA's option names and defaults")
    nvidia.add_argument("--netG", choices=["global", "local"], default="global")
    for name, default in _NUMBERS.items():
        nvidia.add_argument(f"--{name}", type=int, default=default)
    nvidia.add_argument("--norm", choices=["instance", "batch"], default="instance")
    nvidia.add_argument("--no_instance", action="store_true")
    scaling = ["scale_width", "scale_width_and_crop", "crop", "resize_and_crop", "none"]
    nvidia.add_argument("--resize_or_crop", choices=scaling, default="scale_width")
    return parser


_NUMBERS = {
    "label_nc": 35,
    "input_nc": 3,
    "output_nc": 3,
    "ngf": 64,
    "n_downsample_global": 4,
    "n_blocks_global": 9,
    "n_local_enhancers": 1,
    "n_blocks_local": 3,
    "loadSize": 1024,
    "fineSize": 512,
}


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
    model = ModelOptions(
        netG=options.netG,
        ngf=options.ngf,
        n_downsample_global=options.n_downsample_global,
        n_blocks_global=options.n_blocks_global,
        n_local_enhancers=options.n_local_enhancers,
        n_blocks_local=options.n_blocks_local,
        norm=options.norm,
    )
    data = DataOptions(
        label_nc=options.label_nc,
        input_nc=options.input_nc,
        output_nc=options.output_nc,
        no_instance=options.no_instance,
        resize_or_crop=options.resize_or_crop,
        loadSize=options.loadSize,
        fineSize=options.fineSize,
    )
    generator = load_generator(options.checkpoint, model, data)
    generator.network.to(_device(options.device))
    written = generate_folder(generator, options.input, options.output, options.instances, options.keep_size)
    print(f"wrote {len(written)} pictures to {options.output}")
    return 0
