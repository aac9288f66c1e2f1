"""Checkpoints that describe themselves, and NVIDIA's, which do not."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard, TypeVar, Union

from torch import Tensor, nn

from pix2pixhd.config.schema import DataOptions, LossOptions, ModelOptions, OptimizerOptions
from pix2pixhd.errors import InputError
from pix2pixhd.models.build import build_encoder, build_generator
from pix2pixhd.models.weights import read_weights

__all__ = [
    "Checkpoint",
    "Generator",
    "generator_of",
    "last_checkpoint",
    "load_generator",
    "load_strictly",
    "read_checkpoint",
    "read_state_dict",
]

_FORMAT = 1
_Section = TypeVar("_Section", DataOptions, ModelOptions, LossOptions, OptimizerOptions)

# What a checkpoint must say of itself: a default in place of one of these would be a guess. Options that later versions
# add have defaults under which an older checkpoint means what it meant.
_REQUIRED: dict[type, set[str]] = {
    ModelOptions: {
        *("netG", "ngf", "n_downsample_global", "n_blocks_global", "n_local_enhancers", "n_blocks_local", "norm"),
        *("ndf", "n_layers_D", "num_D", "instance_feat", "label_feat", "feat_num", "nef", "n_downsample_E"),
    },
    DataOptions: {"label_nc", "input_nc", "output_nc", "no_instance", "resize_or_crop", "loadSize", "fineSize"},
}

# Written by PyTorch before 0.4, whose instance norm carried statistics that it never used. NVIDIA's published weights
# are that old.
_UNUSED_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        path: The file.
        weights: All weights by name, ``netG.…`` and ``netD.…``.
        model: The networks' options.
        data: The data's encoding.
        loss: Weights of the loss terms it was trained with.
        optimizer: Settings of the optimisers it was trained with.
        epochs: Number of finished epochs.
        position: Where in an epoch it was written, as ``ResumableLoader.state_dict`` says; empty if it does not.
    """

    path: pathlib.Path
    weights: dict[str, Tensor]
    model: ModelOptions
    data: DataOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    epochs: int = 0
    position: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def batches(self) -> int:
        """Batches of an unfinished epoch that it was trained on; 0 between two epochs."""
        return int(self.position.get("batches", 0))

    def network(self, name: str, averaged: bool = False) -> dict[str, Tensor]:
        """One network's weights, ``netG`` say; their moving average when asked for and kept. Empty if there is none."""
        average = _with_prefix(self.weights, f"ema.module.{name}.") if averaged else {}
        return average or _with_prefix(self.weights, f"{name}.")


@dataclasses.dataclass
class Generator:
    """A trained generator and what it needs to know.

    Attributes:
        network: The generator, in evaluation mode.
        model: Its options.
        data: How its input is encoded.
        encoder: What it takes instance features from, in evaluation mode; None where it takes none, or where NVIDIA's
            ``latest_net_E.pth`` is not beside it.
    """

    network: nn.Module
    model: ModelOptions
    data: DataOptions
    encoder: nn.Module | None = None


def last_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """``checkpoints/last.ckpt`` of a run's folder; None if there is none."""
    path = folder / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def _read(path: pathlib.Path, remedy: str = "choose another file", mapped: bool = False) -> Any:
    if path.is_dir():
        raise InputError(f"{path}: is a folder without checkpoints/last.ckpt; name a checkpoint file or a run's folder")
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint")
    try:
        return read_weights(path, mapped)
    except ValueError as error:
        raise InputError(f"{path}: the checkpoint cannot be read: {error}; {remedy}") from None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of an option's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, hint)


def _section(path: pathlib.Path, options: Mapping[str, Any], name: str, kind: type[_Section]) -> _Section:
    values = options.get(name)
    if not isinstance(values, dict):
        raise InputError(f"{path}: the options {name!r} are missing in the checkpoint; it was altered, use another")
    hints = typing.get_type_hints(kind)
    unknown = sorted(str(key) for key in set(values) - set(hints))
    if unknown:
        raise InputError(f"{path}: unknown options {unknown}; the checkpoint was written by a newer version, upgrade")
    missing = sorted(_REQUIRED.get(kind, set()) - set(values))
    if missing:
        raise InputError(f"{path}: {name}.{missing[0]} is missing in the checkpoint; it was altered, use another")
    for key, value in values.items():
        if not _fits(value, hints[key]):
            hint = hints[key]
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise InputError(
                f"{path}: {name}.{key} should be of type {expected} in the checkpoint, got {value!r}; it was altered, "
                "use another"
            )
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{path}: the checkpoint's options are invalid: {error}") from None


def read_checkpoint(path: str | pathlib.Path, remedy: str = "choose another file", mapped: bool = False) -> Checkpoint:
    """Reads a checkpoint of this package, weights and options only, never code.

    Args:
        path: A ``.ckpt`` file.
        remedy: What to do if it is damaged, for the message.
        mapped: Whether tensors are mapped into memory, which reads only those that are used.

    Raises:
        InputError: If the file is missing, damaged, or not one of this package's.

    Example:
        >>> read_checkpoint("runs/cityscapes/checkpoints/last.ckpt").data.label_nc  # doctest: +SKIP
        35
    """
    path = pathlib.Path(path)
    content = _read(path, remedy, mapped)
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(options, dict) or "format" not in options or not _is_state(content.get("state_dict")):
        raise InputError(
            f"{path}: not a checkpoint of pix2pixhd, which holds weights and the networks' options; NVIDIA's weights "
            "are recognised by the ending .pth"
        )
    if options["format"] != _FORMAT:
        raise InputError(
            f"{path}: written in format {options['format']}, this version reads {_FORMAT}; upgrade pix2pixhd"
        )
    return Checkpoint(
        path,
        content["state_dict"],
        _section(path, options, "model", ModelOptions),
        _section(path, options, "data", DataOptions),
        _section(path, options, "loss", LossOptions),
        _section(path, options, "optimizer", OptimizerOptions),
        _epochs(content),
        _position(path, content),
    )


def _epochs(content: Mapping[str, Any]) -> int:
    """Lightning's count of finished epochs; 0 where there is none.

    Of its two counters "completed" is updated too late for a checkpoint at the end of an epoch.
    """
    place: Any = content
    for name in ("loops", "fit_loop", "epoch_progress", "current", "processed"):
        place = place.get(name) if isinstance(place, dict) else None
    return place if type(place) is int else 0


def _position(path: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What ``ResumableLoader.state_dict`` wrote, where Lightning puts it; empty where nothing was written.

    Raises:
        InputError: If there is something else in its place.
    """
    place: Any = content
    for name in ("loops", "fit_loop", "state_dict", "combined_loader"):
        place = place.get(name, {}) if isinstance(place, dict) else None
    if place in ({}, []):
        return {}
    position = place[0] if isinstance(place, list) else None
    batches = position.get("batches", 0) if isinstance(position, dict) else None
    if not isinstance(position, dict) or type(batches) is not int or batches < 0:
        raise InputError(
            f"{path}: the number of batches trained on ('loops') cannot be read from the checkpoint; it was altered, "
            "use another"
        )
    return position


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], path: pathlib.Path) -> None:
    """Loads all weights or none.

    Raises:
        InputError: For missing keys, extra keys and other shapes.
    """
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    other = [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = []
    for what, names in (("missing", missing), ("not known to this network", extra), ("of another shape", other)):
        if names:
            problems.append(f"{len(names)} {what} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})")
    if problems:
        raise InputError(
            f"{path}: the weights do not fit the network: {'; '.join(problems)}; give the options it was trained with"
        )
    network.load_state_dict(weights)


def read_state_dict(path: pathlib.Path) -> dict[str, Tensor]:
    """A bare state dict, as NVIDIA's ``latest_net_G.pth`` is, without what no network has any longer.

    Raises:
        InputError: If the file is missing, damaged, or something else.
    """
    weights = _read(path)
    if not _is_state(weights):
        raise InputError(f"{path}: a .pth file must be a state dict, as NVIDIA's latest_net_G.pth is")
    if _has_batch_norm(weights):
        return dict(weights)
    return {k: v for k, v in weights.items() if not k.endswith(_UNUSED_STATISTICS)}


def _is_state(weights: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )


def _has_batch_norm(weights: Mapping[str, Tensor]) -> bool:
    """Whether statistics belong to layers with a weight of their own; instance norm has none."""
    return any(
        key.endswith("running_mean") and f"{key.removesuffix('running_mean')}weight" in weights for key in weights
    )


def _with_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def load_generator(
    path: str | pathlib.Path,
    model: ModelOptions | None = None,
    data: DataOptions | None = None,
    averaged: bool = True,
) -> Generator:
    """A generator from a checkpoint of this package, or from NVIDIA's ``latest_net_G.pth``.

    Args:
        path: The file.
        model: The networks' options; for NVIDIA's files, which do not carry them.
        data: The data's encoding; for NVIDIA's files.
        averaged: Whether the moving average of the weights is taken, where the run kept one.

    Raises:
        InputError: If the file is missing or damaged, or if the weights are not exactly those of the network.

    Example:
        >>> generator = load_generator("latest_net_G.pth", ModelOptions(netG="local"), DataOptions())  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if path.suffix != ".pth":
        return generator_of(read_checkpoint(path), averaged)
    model, data = model or ModelOptions(), data or DataOptions()
    weights_E: dict[str, Tensor] = {}
    beside = path.with_name(path.name.replace("net_G", "net_E"))
    if model.has_features and beside != path and beside.is_file():
        weights_E = read_state_dict(beside)
    return _build(path, model, data, read_state_dict(path), weights_E)


def generator_of(checkpoint: Checkpoint, averaged: bool = True) -> Generator:
    """The generator of a checkpoint that has been read; ``averaged`` as for ``load_generator``.

    Raises:
        InputError: If the weights are not exactly those of the network.
    """
    weights_G, weights_E = (checkpoint.network(name, averaged) for name in ("netG", "netE"))
    return _build(checkpoint.path, checkpoint.model, checkpoint.data, weights_G, weights_E)


def _build(
    path: pathlib.Path,
    model: ModelOptions,
    data: DataOptions,
    weights_G: Mapping[str, Tensor],
    weights_E: Mapping[str, Tensor],
) -> Generator:
    try:
        network = build_generator(model, data)
        encoder = build_encoder(model, data) if weights_E else None
    except (RuntimeError, MemoryError) as error:  # sizes that fit no memory
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: the network of its options cannot be built ({reason}); correct them") from None
    load_strictly(network, weights_G, path)
    if encoder is not None:
        load_strictly(encoder, weights_E, path)
        encoder.eval()
    return Generator(network.eval(), model, data, encoder)
