"""Parser for the YAML configuration and the command-line options that override it."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse
import yaml  # type: ignore[import-untyped]

from pix2pixhd.config.messages import readable_error
from pix2pixhd.config.schema import (
    ComputeOptions,
    DataOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    TrainConfig,
)
from pix2pixhd.config.schema.trainer import TrainerOptions
from pix2pixhd.config.yaml_file import check_file
from pix2pixhd.errors import InputError

__all__ = ["SECTIONS", "absolute_paths", "build_parser", "config_text", "parse_train"]

SECTIONS: dict[str, Any] = {
    "data": DataOptions,
    "model": ModelOptions,
    "loss": LossOptions,
    "optimizer": OptimizerOptions,
    "compute": ComputeOptions,
    "run": RunOptions,
}

_CONFIGS = pathlib.Path(__file__).with_name("shipped")


def build_parser() -> jsonargparse.ArgumentParser:
    """Builds the parser of ``pix2pixhd train``, with one group of options per section of the configuration."""
    parser = jsonargparse.ArgumentParser(
        prog="pix2pixhd train",
        description="Train a generator on a folder of paired images. Options are read from a YAML file; options on the "
        "command line override the file.",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    # The generated usage line would repeat all options of the help text.
    parser.usage = "pix2pixhd train --config FILE [--resume] [--SECTION.OPTION VALUE ...]"
    parser.add_argument("--help-all", action="help", help="show all options and exit")
    parser.add_argument("--config", action="config", help="YAML file with the sections below, or a shipped name")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in run.output")
    for name, kind in (SECTIONS | {"trainer": TrainerOptions}).items():
        parser.add_class_arguments(kind, name)
    return parser


def _shipped(name: str) -> str:
    """Resolves the name of a shipped configuration to its path; returns the path of an existing file unchanged.

    Raises:
        InputError: If there is no such file.
    """
    if pathlib.Path(name).is_file():
        return name
    path = _CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if re.fullmatch(r"\w+(\.yaml)?", name) and path.is_file():
        return str(path)
    known = ", ".join(sorted(path.stem for path in _CONFIGS.glob("*.yaml")))
    what = "is not a file" if pathlib.Path(name).exists() else "does not exist"
    raise InputError(f"--config: {name} {what}; give the path of a YAML file, or the name of a shipped one: {known}")


def _with_config(argv: Sequence[str]) -> tuple[list[str], str]:
    """Moves ``--config`` to the front so that all other options override it; also returns the file's name.

    ``--resume`` without ``--config`` reads the configuration that the run saved.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        found, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        raise InputError("--config needs a file, or the name of a shipped configuration") from None
    files = [_shipped(name) for name in found.config]
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--run.output", dest="output", default=RunOptions().output)
    if not files and "--resume" in others:
        saved = pathlib.Path(parser.parse_known_args(others)[0].output) / "config.yaml"
        files = [str(saved)] if saved.is_file() else []
    for file in files:
        check_file(file, (*SECTIONS, "trainer"))
    return [*(f"--config={file}" for file in files), *others], files[-1] if files else "the configuration"


def _instantiate(parser: jsonargparse.ArgumentParser, options: jsonargparse.Namespace) -> Any:
    # Renamed in jsonargparse 4.49.
    return getattr(parser, "instantiate", parser.instantiate_classes)(options)


def parse_train(argv: Sequence[str]) -> tuple[TrainConfig, bool]:
    """Parses the options of ``pix2pixhd train``.

    Args:
        argv: The arguments after ``pix2pixhd train``. ``--config`` accepts a file or the name of a shipped
            configuration: ``cityscapes_512p``, ``cityscapes_1024p`` or ``pairs``. ``--resume`` without ``--config``
            uses ``run.output/config.yaml``. All other options override the file's.

    Returns:
        The options, and whether to resume.

    Raises:
        InputError: For an unknown option, a wrong type or a value out of range. The message is a single line.

    Example:
        >>> config, resume = parse_train(["--data.dataroot", "datasets/a", "--optimizer.niter", "5"])
        >>> config.optimizer.niter
        5
    """
    parser = build_parser()
    argv, file = _with_config(argv)
    try:
        options = parser.parse_args(argv)
        sections: Any = _instantiate(parser, options)
    except jsonargparse.ArgumentError as error:
        raise InputError(readable_error(error, parser, file)) from None
    given = {name: sections[name] for name in SECTIONS}
    return TrainConfig(**given, trainer=_changed(sections.trainer)), bool(sections.resume)


def _changed(options: TrainerOptions) -> dict[str, Any]:
    """Returns the options that differ from their defaults."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """Makes the paths of a run's inputs absolute, so that the run can be resumed from any working directory.

    ``run.output`` is left unchanged: the run folder may be moved, and its path is given again when resuming.

    Example:
        >>> import os
        >>> config = absolute_paths(TrainConfig(DataOptions(dataroot="datasets/a")))
        >>> os.path.isabs(config.data.dataroot), config.loss.vgg
        (True, 'imagenet')
    """

    def absolute(path: str) -> str:
        # Symbolic links are not resolved: the path stays the one that the user gave.
        return str(pathlib.Path(path).absolute())

    data, loss, run = config.data, config.loss, config.run
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, dataroot=data.dataroot and absolute(data.dataroot)),
        loss=dataclasses.replace(
            loss,
            vgg=loss.vgg if loss.vgg in ("imagenet", "random") else absolute(loss.vgg),
            lpips_weights=loss.lpips_weights and absolute(loss.lpips_weights),
        ),
        run=dataclasses.replace(run, load_pretrain=run.load_pretrain and absolute(run.load_pretrain)),
    )


def config_text(config: TrainConfig) -> str:
    """Returns all options as YAML that ``pix2pixhd train --config`` reads."""
    sections = dataclasses.asdict(config) | {"trainer": dataclasses.asdict(config.check())}
    text: str = yaml.safe_dump(sections, sort_keys=False)
    return text
