"""``pix2pixhd data check``: reports the contents and all problems of a dataset, without training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pix2pixhd.config.parser import parse_train
from pix2pixhd.config.schema import DataOptions, TrainConfig
from pix2pixhd.data.check import Survey, survey
from pix2pixhd.data.folders import check_command, match_files
from pix2pixhd.data.problems import Problem, display, grouped
from pix2pixhd.errors import InputError
from pix2pixhd.files import check_replaceable, write_text
from pix2pixhd.reporting.progress import check_progress

__all__ = ["main"]

_LISTED_SIZES = 10
_LISTED_IDS = 64


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pix2pixhd data", description="Commands for datasets. `pix2pixhd data check --help` lists the options."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    check = commands.add_parser(
        "check",
        help="report the contents and all problems of a dataset",
        description="Read every file of a dataset and report image sizes, label ids, instance ids and all problems: "
        "label ids outside label_nc, files without a partner, different sizes within a sample, unreadable files. Exit "
        "code: 0 without problems, 1 with problems, 2 for invalid options. Real images may be missing for phases that "
        "are not used for training or validation.",
    )
    check.add_argument(
        "dataroot", type=pathlib.Path, help="contains train_label, train_inst, train_img or train_A, train_B"
    )
    check.add_argument(
        "--config", metavar="FILE", help="training configuration, to check sizes after its scaling and cropping"
    )
    check.add_argument("--phase", action="append", help="prefix of the folders; may be repeated (default: train, test)")
    check.add_argument("--label-nc", "--label_nc", type=int, help="number of classes; 0 for images as input")
    check.add_argument(
        "--no-instance", "--no_instance", action="store_true", default=None, help="there are no instance maps"
    )
    check.add_argument("--multiple", type=int, help="required divisor of sizes (default: the configuration's)")
    check.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write the complete report to FILE; - for stdout"
    )
    check.add_argument("--force", action="store_true", help="replace FILE if it exists")
    return parser


def _config(arguments: argparse.Namespace) -> TrainConfig:
    given = ["--config", arguments.config] if arguments.config else []
    given += ["--data.dataroot", str(arguments.dataroot)]
    if arguments.label_nc is not None:
        given += ["--data.label_nc", str(arguments.label_nc)]
    if arguments.no_instance:
        given += ["--data.no_instance", "true"]
    return parse_train(given)[0]


@dataclasses.dataclass
class _Phase:
    """Report on one phase."""

    found: Survey
    notes: list[str] = dataclasses.field(default_factory=list)


def _check(phase: str, options: DataOptions, multiple: int, scaled: bool) -> _Phase:
    trained = phase in (options.phase, options.val_phase)
    try:
        pairs, unmatched = match_files(options, phase, images_optional=not trained)
    except InputError as error:
        return _Phase(Survey(problems=[Problem("missing folders", str(error), display(options.dataroot))]))
    with check_progress(phase, len(pairs)) as on_checked:
        found = survey(pairs, options, multiple, scaled and phase == options.phase, on_checked)
    found.problems[:0] = unmatched
    notes = [f"hint: {hint}" for hint in found.hints(options)]
    if pairs and all(pair.image is None for pair in pairs):
        folder = f"{phase}_{options.image_folder}"
        notes.append(f"there is no {folder}: images can be generated from this phase, but it cannot be validated on")
    return _Phase(found, notes)


def _counts(items: Sequence[tuple[str, int]], most: int) -> str:
    listed = ", ".join(f"{name} ({count})" for name, count in items[:most])
    return listed + (f", … and {len(items) - most} more" if len(items) > most else "")


def _lines(phase: str, result: _Phase, options: DataOptions) -> list[str]:
    """Formats the report on one phase as text."""
    found = result.found
    count = len(found.problems)
    lines = [f"{phase}: {found.count} images, {count or 'no'} problem{'s' * (count != 1)}"]
    lines += grouped(found.problems, check_command(options))
    if found.sizes:
        sizes = [(f"{width}x{height}", count) for (width, height), count in found.sizes.most_common()]
        lines.append(f"  sizes, width x height (images): {_counts(sizes, _LISTED_SIZES)}")
    if found.label_ids:
        ids = [(str(label), count) for label, count in sorted(found.label_ids.items())]
        lines.append(f"  label ids (images): {_counts(ids, _LISTED_IDS)}")
    if found.instance_ids is not None:
        low, high = found.instance_ids
        lines.append(f"  instance ids: {low} to {high}, at most {found.most_instances} in one image")
    return lines + [f"  {note}" for note in result.notes]


def _as_json(result: _Phase) -> dict[str, Any]:
    found = result.found
    return {
        "images": found.count,
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
        "sizes": {f"{width}x{height}": count for (width, height), count in found.sizes.most_common()},
        "label_ids": {str(label): count for label, count in sorted(found.label_ids.items())},
        "instance_ids": found.instance_ids,
        "most_instances": found.most_instances,
        "notes": result.notes,
    }


def main(argv: Sequence[str]) -> int:
    """Runs ``pix2pixhd data check``.

    Args:
        argv: The arguments after ``pix2pixhd data``.

    Returns:
        The exit code: 0 without problems, 1 with problems.

    Raises:
        InputError: If an option is invalid.

    Example:
        >>> main(["check", "datasets/cityscapes", "--label-nc", "35"])  # doctest: +SKIP
        0
    """
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        raise InputError("pix2pixhd data: the command is missing; use pix2pixhd data check DIR")
    if arguments.multiple is not None and arguments.multiple < 1:
        raise InputError(f"--multiple must be at least 1, got {arguments.multiple}")
    to_stdout = arguments.json == pathlib.Path("-")
    if arguments.json is not None and not to_stdout:
        if not arguments.json.parent.is_dir():
            raise InputError(f"--json: the folder {display(arguments.json.parent)} does not exist; create it first")
        check_replaceable([arguments.json], arguments.force, "--json")
    config = _config(arguments)
    options, multiple = config.data, arguments.multiple or config.model.multiple
    phases = arguments.phase or [
        phase for phase in ("train", "test") if phase == "train" or any(arguments.dataroot.glob("test_*"))
    ]
    results = {phase: _check(phase, options, multiple, bool(arguments.config)) for phase in phases}
    if arguments.json is not None:
        text = json.dumps({phase: _as_json(result) for phase, result in results.items()}, indent=2) + "\n"
        sys.stdout.write(text) if to_stdout else write_text(arguments.json, text, force=arguments.force)
    if not to_stdout:
        for phase, result in results.items():
            print("\n".join(_lines(phase, result, options)))
    return int(any(result.found.problems for result in results.values()))
