"""``pix2pixhd data check``: all that is wrong with a data set, without training."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

from pix2pixhd.data.check import checking, find_problems
from pix2pixhd.data.folders import match_files
from pix2pixhd.data.options import DataOptions
from pix2pixhd.errors import InputError
from pix2pixhd.training.config import parse_train
from pix2pixhd.training.options import TrainConfig

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd data check",
        description="Reads every file of a data set once and tells all that is wrong: labels outside label_nc, missing "
        "partners, sizes that differ, files that cannot be read. Exit code 0 when all is well, else 1.",
    )
    parser.add_argument(
        "dataroot", type=pathlib.Path, help="holds train_label, train_inst, train_img or train_A, train_B"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a training configuration: sizes are checked as it scales and crops"
    )
    parser.add_argument(
        "--phase", action="append", help="prefix of the folders; repeat for more (default: train, test)"
    )
    parser.add_argument("--label-nc", type=int, help="number of label ids; 0 for pictures as input")
    parser.add_argument("--no-instance", action="store_true", default=None, help="there are no instance maps")
    parser.add_argument("--multiple", type=int, help="what the generator needs of sizes (default: the configuration's)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _config(arguments: argparse.Namespace) -> TrainConfig:
    given = ["--config", arguments.config] if arguments.config else []
    given += ["--data.dataroot", str(arguments.dataroot)]
    if arguments.label_nc is not None:
        given += ["--data.label_nc", str(arguments.label_nc)]
    if arguments.no_instance:
        given += ["--data.no_instance", "true"]
    return parse_train(given)[0]


def _check(phase: str, options: DataOptions, multiple: int, scaled: bool, quiet: bool) -> tuple[int, list[str]]:
    try:
        pairs, missing = match_files(options, phase)
    except InputError as error:
        return 0, [str(error)]
    with checking(phase, len(pairs), quiet) as on_checked:
        return len(pairs), missing + find_problems(
            pairs, options, multiple, training=scaled and phase == options.phase, on_checked=on_checked
        )


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd data check``.

    Args:
        argv: What follows ``pix2pixhd data``.

    Returns:
        0 when all is well, 1 when something is wrong.

    Raises:
        InputError: For options that cannot be.

    Example:
        >>> main(["check", "datasets/cityscapes", "--label-nc", "35"])  # doctest: +SKIP
        0
    """
    if argv and argv[0] in ("-h", "--help"):
        _parser().print_help()
        return 0
    if not argv or argv[0] != "check":
        raise InputError(
            f"pix2pixhd data: the one thing to do is check, got {argv[0] if argv else 'nothing'}; "
            "pix2pixhd data check DIR"
        )
    arguments = _parser().parse_args(argv[1:])
    config = _config(arguments)
    options, multiple = config.data, arguments.multiple or config.model.multiple
    phases = arguments.phase or [
        phase for phase in ("train", "test") if phase == "train" or any(arguments.dataroot.glob("test_*"))
    ]
    found = {phase: _check(phase, options, multiple, bool(arguments.config), arguments.json) for phase in phases}
    if arguments.json:
        print(json.dumps({phase: {"pictures": n, "problems": p} for phase, (n, p) in found.items()}, indent=2))
    else:
        for phase, (count, problems) in found.items():
            for problem in problems:
                print(f"{phase}: {problem}")
            print(f"{phase}: {count} pictures, {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return int(any(problems for _, problems in found.values()))
