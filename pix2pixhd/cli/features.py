"""The command line of ``pix2pixhd features``."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from pix2pixhd.cli import generator_options
from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data import PairedDataset, check_pairs, find_pairs
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_apart, check_replaceable, check_writable
from pix2pixhd.inference.instance_features import NO_ENCODER, check_cluster_count, cluster_features
from pix2pixhd.reporting.progress import progress_bar, shows_progress

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd features",
        description="Cluster the style features of a dataset's instances per class, for pix2pixhd generate --features.",
    )
    parser.add_argument("--dataroot", help="dataset (default: the training data)")
    parser.add_argument("--phase", default="train", help="prefix of the folders (default: train)")
    parser.add_argument("--n_clusters", type=int, default=10, help="maximum number of styles per class (default: 10)")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the .npz file to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    generator_options.add_device(parser)
    generator_options.add_checkpoint(parser)
    generator_options.add_scaling(parser)
    return parser


def _data_options(trained: DataOptions, options: argparse.Namespace) -> DataOptions:
    """Returns the options of the data to cluster. ``max_dataset_size`` only applies to the training data."""
    if options.dataroot is None and options.phase == trained.phase:
        return trained
    return dataclasses.replace(trained, dataroot=options.dataroot or trained.dataroot, max_dataset_size=None)


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd features`` and returns the exit code.

    Raises:
        InputError: If the checkpoint or the data cannot be used.
    """
    options = _parser().parse_args(argv)
    check_cluster_count(options.n_clusters)
    check_replaceable([options.output], options.force)
    generator = generator_options.load(options)
    if generator.encoder is None:
        raise InputError(NO_ENCODER.format(options.checkpoint))
    data = _data_options(generator.data, options)
    pairs = find_pairs(data, options.phase)
    read = [path for pair in pairs for path in (pair.input, pair.instance, pair.image)]
    check_apart([options.output], {"data": read, "checkpoint": generator_options.files_read(options.checkpoint)})
    check_writable(options.output.parent, "--output")
    generator_options.move(generator, options.device)
    shown = shows_progress()
    with progress_bar("checking", len(pairs), shown) as advance:
        check_pairs(pairs, data, generator.model.multiple, training=False, on_checked=advance, trained=True)
    dataset = PairedDataset(pairs, data, generator.model.multiple, augment=False)
    with progress_bar("encoding", len(pairs), shown) as advance:
        clusters = cluster_features(generator, dataset, options.n_clusters, advance)
    clusters.save(options.output, force=options.force)
    styles = sum(len(center) for center in clusters.centers.values())
    print(f"wrote {styles} styles of {len(clusters.centers)} classes to {options.output}")
    return 0
