"""The YAML configuration and the command line that overrides it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse
import lightning.pytorch as pl

from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.options import LossOptions, ModelOptions, OptimizerOptions, RunOptions
from pix2pixhd.training.run import TrainConfig

__all__ = ["build_parser", "parse_train"]

_SECTIONS = {
    "data": DataOptions,
    "model": ModelOptions,
    "loss": LossOptions,
    "optimizer": OptimizerOptions,
    "run": RunOptions,
}

# Made by this package, from the sections above.
_NOT_FROM_CONFIG = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler"}


def build_parser() -> jsonargparse.ArgumentParser:
    """The parser of ``pix2pixhd train``: one group of options per section of the configuration."""
    parser = jsonargparse.ArgumentParser(
        prog="pix2pixhd train",
        description="Trains a generator on the pictures of a folder. Options come from a YAML file and the command line, "
        "which wins.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_argument("--resume", action="store_true", help="continue from run.output's last checkpoint")
    for name, kind in _SECTIONS.items():
        parser.add_class_arguments(kind, name)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=_NOT_FROM_CONFIG, instantiate=False)
    return parser


def _known_keys(parser: jsonargparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if "." in action.dest]


def _one_line(parser: jsonargparse.ArgumentParser, error: Exception) -> str:
    """The gist of jsonargparse's message, with the option that was probably meant."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    unknown = re.search(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected|[Uu]nrecognized arguments: --([\w.]+)", text)
    if unknown:
        name = unknown.group(1) or unknown.group(2)
        close = difflib.get_close_matches(name, _known_keys(parser), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else "; see `pix2pixhd train --help` for the options"
        return f"configuration: there is no option {name}{hint}"
    return f"configuration: {text}"


def parse_train(argv: Sequence[str]) -> tuple[TrainConfig, bool]:
    """Reads the options of ``pix2pixhd train``.

    Args:
        argv: What follows ``pix2pixhd train``.

    Returns:
        The options, and whether to resume.

    Raises:
        InputError: For unknown options, wrong types and values out of range, in one line.

    Example:
        >>> config, resume = parse_train(["--data.dataroot", "datasets/a", "--optimizer.niter", "5"])
        >>> config.optimizer.niter
        5
    """
    parser = build_parser()
    try:
        options = parser.parse_args(list(argv))
        sections: Any = parser.instantiate_classes(options)
    except jsonargparse.ArgumentError as error:
        raise InputError(_one_line(parser, error)) from None
    trainer = {name: value for name, value in vars(sections.trainer).items() if value is not None}
    given = {name: sections[name] for name in _SECTIONS}
    return TrainConfig(**given, trainer=trainer), bool(sections.resume)
