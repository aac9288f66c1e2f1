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
        description="Generate an image for every label map or image of a folder. A checkpoint of this package contains "
        "the options of its networks. For NVIDIA's latest_net_G.pth, they are read from the opt.txt beside it, or "
        "given by the options below.",
    )
    parser.add_argument(
        "--input",
        type=pathlib.Path,
        required=True,
        help="folder of label maps or images, or a dataset with the folder test_label (or test_A)",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the generated images")
    parser.add_argument("--force", action="store_true", help="replace existing files that pix2pixhd did not write")
    parser.add_argument("--instances", type=pathlib.Path, help="folder of instance maps (default: beside the input)")
    parser.add_argument("--keep-size", action="store_true", help="do not scale the inputs to the size used in training")
    parser.add_argument("--batch", type=int, default=1, help="batch size, for images of equal size (default: 1)")
    parser.add_argument("--how_many", type=int, help="maximum number of images to generate")
    generator_options.add_device(parser)
    parser.add_argument("--html", action="store_true", help="also write a results page, index.html")
    parser.add_argument("--real", type=pathlib.Path, help="folder of real images, for the results page and its metrics")
    style = parser.add_argument_group("for generators trained with style features")
    style.add_argument("--features", type=pathlib.Path, help="file of `pix2pixhd features`, to select styles at random")
    style.add_argument("--style-seed", type=int, help="seed of the selection from --features (default: 0)")
    style.add_argument("--encode", type=pathlib.Path, help="folder of images whose style is transferred")
    generator_options.add_checkpoint(parser)
    generator_options.add_scaling(parser)
    return parser


def _check_combinations(options: argparse.Namespace) -> None:
    """Checks the ranges of options, and that no option is without effect."""
    for name in ("batch", "how_many"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.features is not None and options.encode is not None:
        raise InputError("--features and --encode are mutually exclusive; remove one of them")
    if options.style_seed is not None and options.features is None:
        raise InputError("--style-seed only affects --features; add --features FILE, or remove --style-seed")
    if options.real is not None and not options.html:
        raise InputError("--real only affects the results page; add --html, or remove --real")
    if options.real is not None and options.encode is not None:
        raise InputError(
            "--real and --encode are mutually exclusive: the results page shows the images of --encode as real images; "
            "remove one of them"
        )
    if options.keep_size and (options.resize_or_crop is not None or options.loadSize is not None):
        raise InputError("--keep-size and the scaling options are mutually exclusive; remove one of them")


def _style_source(generator: LoadedGenerator, options: argparse.Namespace) -> StyleSource:
    """Returns the source of the style features, after checking that it matches the generator."""
    given = "--features" if options.features is not None else "--encode" if options.encode is not None else ""
    if given and not generator.model.has_features:
        raise InputError(
            f"{given}: {options.checkpoint} was trained without an encoder (model.instance_feat, model.label_feat), so "
            f"it takes no features; remove {given}"
        )
    if not given and generator.model.has_features:
        raise InputError(
            f"{options.checkpoint} needs style features: give --features FILE (written by `pix2pixhd features`), or "
            "--encode FOLDER with images from which to extract them"
        )
    if options.encode is not None and generator.encoder is None:
        raise InputError(
            f"--encode: {options.checkpoint} has no encoder; put NVIDIA's latest_net_E.pth beside latest_net_G.pth, or "
            "use --features FILE"
        )
    clusters = None if options.features is None else FeatureClusters.load(options.features)
    if clusters is not None:
        clusters.check(generator, options.features)
    return StyleSource(clusters, options.encode, options.style_seed or 0)


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd generate`` and returns the exit code.

    Raises:
        InputError: If an option, checkpoint, folder or file cannot be used.
    """
    options = _parser().parse_args(argv)
    _check_combinations(options)
    generator = generator_options.load(options)
    style = _style_source(generator, options)
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
        style=style,
        real=options.real,
        page=options.html,
        force=options.force,
        files_read=[*generator_options.files_read(options.checkpoint), *others],
        progress=shows_progress(),
    )
    folder, _ = input_folders(options.input, generator.data, options.instances)
    count = f"{len(written)} image{'s' * (len(written) != 1)}"
    print(f"wrote {count} from {display(folder)} to {options.output}")
    if options.html:
        print(f"results page: {options.output / 'index.html'}")
    return 0
