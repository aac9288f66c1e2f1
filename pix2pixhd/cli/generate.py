"""The command line of ``pix2pixhd generate``."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from pix2pixhd.checkpoints.generators import LoadedGenerator
from pix2pixhd.cli import generator_options
from pix2pixhd.data import input_folders
from pix2pixhd.data.problems import display
from pix2pixhd.errors import InputError
from pix2pixhd.inference.generate import StyleSource, generate_folder
from pix2pixhd.inference.instance_features import FeatureClusters
from pix2pixhd.reporting.progress import shows_progress

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd generate",
        description="Writes a picture for every label map or picture of a folder. A checkpoint of this package knows "
        "its networks; NVIDIA's latest_net_G.pth has them in the opt.txt beside it, or takes the options below.",
    )
    parser.add_argument(
        "--input",
        type=pathlib.Path,
        required=True,
        help="folder of label maps or images; if it contains test_label (or test_A), as a dataset does, that folder",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the pictures")
    parser.add_argument("--force", action="store_true", help="replace existing files that pix2pixhd did not write")
    parser.add_argument("--instances", type=pathlib.Path, help="folder of instance maps; default: beside the input")
    parser.add_argument("--keep-size", action="store_true", help="do not scale the input to the size of the training")
    parser.add_argument("--batch", type=int, default=1, help="pictures of one size generated together (default: 1)")
    parser.add_argument("--how_many", type=int, help="only the first so many pictures")
    generator_options.add_device(parser)
    parser.add_argument("--html", action="store_true", help="also write a results page, index.html")
    parser.add_argument("--real", type=pathlib.Path, help="folder of real pictures, for the page and its figures")
    looks = parser.add_argument_group("for generators trained with instance features")
    looks.add_argument("--features", type=pathlib.Path, help="looks to draw from, written by `pix2pixhd features`")
    looks.add_argument("--style-seed", type=int, help="seed of the draw from --features (default: 0)")
    looks.add_argument("--encode", type=pathlib.Path, help="or a folder of pictures whose looks are taken")
    generator_options.add_checkpoint(parser)
    generator_options.add_scaling(parser)
    return parser


def _check_combinations(options: argparse.Namespace) -> None:
    """Refuses options that would have no effect."""
    for name in ("batch", "how_many"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.features is not None and options.encode is not None:
        raise InputError("--features and --encode exclude each other: looks are drawn, or taken from pictures")
    if options.style_seed is not None and options.features is None:
        raise InputError("--style-seed is the seed of the draw from --features; add --features FILE, or leave it out")
    if options.real is not None and not options.html:
        raise InputError("--real is for the results page; add --html, or leave it out")
    if options.real is not None and options.encode is not None:
        raise InputError("--real and --encode exclude each other: the page shows the pictures of --encode as real ones")
    if options.keep_size and (options.resize_or_crop is not None or options.loadSize is not None):
        raise InputError("--keep-size and the options of scaling exclude each other; leave one of them out")


def _looks(generator: LoadedGenerator, options: argparse.Namespace) -> StyleSource:
    """Where the features come from, for a generator that takes them."""
    given = "--features" if options.features is not None else "--encode" if options.encode is not None else ""
    if given and not generator.model.has_features:
        raise InputError(
            f"{given}: {options.checkpoint} was trained without an encoder (model.instance_feat, model.label_feat), so "
            "it takes no features; leave it out"
        )
    if not given and generator.model.has_features:
        raise InputError(
            f"{options.checkpoint} takes features of every instance's look: give --features FILE (from `pix2pixhd "
            "features`) or --encode FOLDER with pictures to take them from"
        )
    if options.encode is not None and generator.encoder is None:
        raise InputError(
            f"--encode: {options.checkpoint} has no encoder; put NVIDIA's latest_net_E.pth beside latest_net_G.pth, or "
            "draw from --features FILE"
        )
    clusters = None if options.features is None else FeatureClusters.load(options.features)
    if clusters is not None:
        clusters.check(generator, options.features)
    return StyleSource(clusters, options.encode, options.style_seed or 0)


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd generate``; returns the exit code.

    Raises:
        InputError: For a checkpoint, folder or file that cannot be used.
    """
    options = _parser().parse_args(argv)
    _check_combinations(options)
    generator = generator_options.load(options)
    looks = _looks(generator, options)
    generator_options.move(generator, options.device)
    others = [options.features] if options.features is not None else []
    written = generate_folder(
        generator,
        options.input,
        options.output,
        options.instances,
        options.keep_size,
        batch=options.batch,
        how_many=options.how_many,
        looks=looks,
        real=options.real,
        page=options.html,
        force=options.force,
        files_read=[*generator_options.files_read(options.checkpoint), *others],
        progress=shows_progress(),
    )
    folder, _ = input_folders(options.input, generator.data, options.instances)
    count = f"{len(written)} image{'s' * (len(written) != 1)}"
    print(f"wrote {count} of {display(folder)} to {options.output}")
    if options.html:
        print(f"results page: {options.output / 'index.html'}")
    return 0
