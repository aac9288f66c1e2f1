"""The command line of ``pix2pixhd export``."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from pix2pixhd.cli import generator_options
from pix2pixhd.cli.sizes import image_size
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_apart, check_writable
from pix2pixhd.inference.export import ExportedGenerator, export_nvidia, export_onnx, export_program

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd export",
        description="Export a trained generator to FILE.onnx, to FILE.pt2 (torch.export), or to a folder of "
        "latest_net_*.pth for NVIDIA's code. FILE.onnx and FILE.pt2 are run once and compared with the original.",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="FILE.onnx, FILE.pt2, or a folder")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument(
        "--size",
        type=image_size(1, 2**16),
        metavar="WIDTHxHEIGHT",
        help="size of the images, for FILE.onnx and FILE.pt2 (default: 1024x512)",
    )
    generator_options.add_checkpoint(parser)
    return parser


def _export_folder(options: argparse.Namespace) -> None:
    """Writes a folder for NVIDIA's code."""
    suffix = options.output.suffix
    # Digits are not a suffix, but the end of a version number, as in city_v1.5.
    if suffix and not suffix[1:].isdigit() and not options.output.is_dir():
        raise InputError(f"--output: must end with .onnx or .pt2, or be a folder, got {options.output}")
    if options.checkpoint.suffix == ".pth":
        raise InputError(
            f"--checkpoint: {options.checkpoint} is already in NVIDIA's format; copy it, or export to FILE.onnx"
        )
    if options.size is not None:
        raise InputError("--size: networks in NVIDIA's format are not limited to one image size; remove --size")
    generator_options.check_networks(options)
    check_writable(options.output, "--output")
    files = export_nvidia(options.checkpoint, options.output, not options.no_ema, force=options.force)
    print(f"wrote {', '.join(file.name for file in files)} and opt.txt to {options.output}")


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd export`` and returns the exit code.

    Raises:
        InputError: If the checkpoint, the size or the output cannot be used.
    """
    options = _parser().parse_args(argv)
    write = {".onnx": export_onnx, ".pt2": export_program}.get(options.output.suffix)
    if write is None:
        _export_folder(options)
        return 0
    size = options.size or (1024, 512)
    check_apart([options.output], {"checkpoint": generator_options.files_read(options.checkpoint)})
    check_writable(options.output.parent, "--output")
    generator = generator_options.load(options)
    difference = write(generator, options.output, size, force=options.force)
    names = ", ".join(ExportedGenerator(generator).names)
    print(
        f"wrote {options.output}: inputs {names} of {size[0]}x{size[1]}; largest difference from PyTorch's image "
        f"{difference:.1g} (in [−1, 1])"
    )
    return 0
