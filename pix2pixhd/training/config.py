"""The YAML configuration and the command line that overrides it."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import yaml  # type: ignore[import-untyped]

import pix2pixhd
from pix2pixhd.data import DataOptions, InputError
from pix2pixhd.training.options import ComputeOptions, LossOptions, ModelOptions, OptimizerOptions, RunOptions
from pix2pixhd.training.run import TrainConfig

__all__ = ["build_parser", "config_text", "parse_train", "save_config"]

_SECTIONS = {
    "data": DataOptions,
    "model": ModelOptions,
    "loss": LossOptions,
    "optimizer": OptimizerOptions,
    "compute": ComputeOptions,
    "run": RunOptions,
}

# Made by this package, from the sections above.
_NOT_FROM_CONFIG = {"callbacks", "logger", "default_root_dir", "use_distributed_sampler"}


def build_parser() -> jsonargparse.ArgumentParser:
    """The parser of ``pix2pixhd train``: one group of options per section of the configuration."""
    parser = jsonargparse.ArgumentParser(
        prog="pix2pixhd train",
        description="Trains a generator on the pictures of a folder. Options come from a YAML file and the command "
        "line, which wins.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_argument("--resume", action="store_true", help="continue from run.output's last checkpoint")
    for name, kind in _SECTIONS.items():
        parser.add_class_arguments(kind, name)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=_NOT_FROM_CONFIG, instantiate=False)
    return parser


# The ways in which jsonargparse says that it does not know an option.
_UNKNOWN = (
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"[Kk]ey ['\"](?P<name>[\w.]+)['\"] is not expected"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<name>[\w.]+)"),
    re.compile(r"[Oo]ption ['\"](?P<name>[\w.]+)['\"] is not accepted"),
)


def _known_keys(parser: jsonargparse.ArgumentParser) -> list[str]:
    dotted = [action.dest for action in parser._actions if "." in action.dest]
    return [*_SECTIONS, "trainer", *dotted]


def _one_line(parser: jsonargparse.ArgumentParser, error: Exception, file: str) -> str:
    """The gist of jsonargparse's message, with the option that was probably meant."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    for pattern in _UNKNOWN:
        if unknown := pattern.search(text):
            name = ".".join(part for part in (unknown.groupdict().get("group"), unknown["name"]) if part)
            close = difflib.get_close_matches(name, _known_keys(parser), n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else "; see `pix2pixhd train --help` for the options"
            return f"configuration: there is no option {name}{hint}"
    text = text.replace("Problems parsing config", f"{file} is not valid YAML")
    return f"configuration: {_plain(text)}"


def _shipped(argument: str) -> str:
    """The path of a configuration that comes with the package, for its bare name; anything else as it is."""
    option, equals, name = argument.rpartition("=")
    path = pathlib.Path(pix2pixhd.__file__).with_name("configs") / f"{name.removesuffix('.yaml')}.yaml"
    named = option in ("", "--config") and re.fullmatch(r"\w+(\.yaml)?", name) is not None
    return f"{option}{equals}{path}" if named and path.is_file() and not pathlib.Path(name).exists() else argument


def _config_file(argv: Sequence[str]) -> str:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument.startswith("--config"):
            return argument.partition("=")[2] or following
    return "the configuration"


def _plain(text: str) -> str:
    """The parser's message without Python's way of writing types."""
    text = re.sub(r"Parser key \"([\w.]+)\":", r"\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r" a typing\.Literal\[([^\]]*)\]", r" one of \1", text)
    union = re.match(
        r"(?P<key>[\w.]+:) Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*)\] Errors: .*"
        r"Given value: (?P<value>.*)",
        text,
    )
    if union:
        types = union["types"].replace("typing.Literal", "one of ").replace("NoneType", "null")
        text = f"{union['key']} Expected {types}. Got value: {union['value']}"
    return text


def _instantiate(parser: jsonargparse.ArgumentParser, options: jsonargparse.Namespace) -> Any:
    # Renamed in jsonargparse 4.49.
    return getattr(parser, "instantiate", parser.instantiate_classes)(options)


def parse_train(argv: Sequence[str]) -> tuple[TrainConfig, bool]:
    """Reads the options of ``pix2pixhd train``.

    Args:
        argv: What follows ``pix2pixhd train``. ``--config`` takes a file, or the name of a configuration that comes
            with the package: ``cityscapes_512p``, ``cityscapes_1024p``, ``pairs``.

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
    argv = [_shipped(argument) for argument in argv]
    try:
        options = parser.parse_args(argv)
        sections: Any = _instantiate(parser, options)
    except jsonargparse.ArgumentError as error:
        raise InputError(_one_line(parser, error, _config_file(argv))) from None
    trainer = {name: value for name, value in vars(sections.trainer).items() if value is not None}
    given = {name: sections[name] for name in _SECTIONS}
    return TrainConfig(**given, trainer=trainer), bool(sections.resume)


def config_text(config: TrainConfig) -> str:
    """All options as YAML that ``pix2pixhd train --config`` reads."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    return text


def save_config(config: TrainConfig, path: pathlib.Path) -> None:
    """Writes all options as a YAML file that ``pix2pixhd train --config`` reads.

    Example:
        >>> save_config(TrainConfig(DataOptions(dataroot="a")), pathlib.Path("a.yaml"))  # doctest: +SKIP
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_text(config))
