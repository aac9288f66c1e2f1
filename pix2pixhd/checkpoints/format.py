"""The checkpoint format: weights with the options that describe them, and NVIDIA's bare state dicts."""

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
from pix2pixhd.models.weights import read_weights

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "describe",
    "last_checkpoint",
    "last_checkpoint_path",
    "load_strictly",
    "read_checkpoint",
    "read_state_dict",
]

# Increase it when older versions of this package could misread new checkpoints.
FORMAT_VERSION = 1
_Section = TypeVar("_Section", DataOptions, ModelOptions, LossOptions, OptimizerOptions)

# Options that every checkpoint must contain, because a default would be a guess. Options that are added later get
# defaults that keep the meaning of older checkpoints.
_REQUIRED: dict[type, set[str]] = {
    ModelOptions: {
        *("netG", "ngf", "n_downsample_global", "n_blocks_global", "n_local_enhancers", "n_blocks_local", "norm"),
        *("ndf", "n_layers_D", "num_D", "instance_feat", "label_feat", "feat_num", "nef", "n_downsample_E"),
    },
    DataOptions: {"label_nc", "input_nc", "output_nc", "no_instance", "resize_or_crop", "loadSize", "fineSize"},
}

# PyTorch before 0.4 saved running statistics for instance norm, which never used them. NVIDIA's published weights
# contain them.
_UNUSED_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        path: The file.
        weights: All weights by name, ``netG.…`` and ``netD.…``.
        model: Options of the networks.
        data: Options of the data and its encoding.
        loss: Options of the loss that it was trained with.
        optimizer: Options of the optimizers that it was trained with.
        epochs: Number of finished epochs.
        position: The position within the epoch, from ``ResumableLoader.state_dict``; empty if it was not saved.
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
        """Number of batches of the current epoch that it was trained on; 0 between two epochs."""
        return int(self.position.get("batches", 0))

    def network(self, name: str, averaged: bool = False) -> dict[str, Tensor]:
        """Returns one network's weights; empty if the checkpoint has none.

        Args:
            name: ``netG``, ``netD`` or ``netE``.
            averaged: Whether to return the moving average of the weights, if the checkpoint contains one.
        """
        average = _with_prefix(self.weights, f"ema.module.{name}.") if averaged else {}
        return average or _with_prefix(self.weights, f"{name}.")


def last_checkpoint_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of ``checkpoints/last.ckpt`` in a run's folder, whether or not it exists."""
    return folder / "checkpoints" / "last.ckpt"


def last_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the path of ``checkpoints/last.ckpt`` in a run's folder; None if there is none."""
    path = last_checkpoint_path(folder)
    return path if path.is_file() else None


def _read(path: pathlib.Path, remedy: str = "choose another file", mapped: bool = False) -> Any:
    if path.is_dir():
        raise InputError(f"{path}: is a folder without checkpoints/last.ckpt; name a checkpoint file or a run's folder")
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint; name a checkpoint file, or a run's folder")
    try:
        return read_weights(path, mapped)
    except ValueError as error:
        if isinstance(error.__cause__, PermissionError):
            remedy = "make it and its folders readable (chmod u+r)"
        raise InputError(f"{path}: the checkpoint cannot be read: {error}; {remedy}") from None


def describe(model: ModelOptions, data: DataOptions, loss: LossOptions, optimizer: OptimizerOptions) -> dict[str, Any]:
    """Returns the options to store in a checkpoint, which ``read_checkpoint`` reads back.

    They are plain dictionaries of numbers, strings and lists, because ``torch.load(weights_only=True)`` accepts nothing
    else.

    Example:
        >>> describe(ModelOptions(), DataOptions(), LossOptions(), OptimizerOptions())["format"]
        1
    """
    return {
        "format": FORMAT_VERSION,
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "loss": dataclasses.asdict(loss),
        "optimizer": dataclasses.asdict(optimizer),
    }


def _fits(value: object, hint: Any) -> bool:
    """Returns whether a value has the type of an option."""
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
    """Reads the weights and options of a checkpoint of this package. No code in the file is executed.

    Args:
        path: A ``.ckpt`` file.
        remedy: What the error message suggests if the file is damaged.
        mapped: Whether to map the tensors into memory, so that only those that are used take up memory.

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
            f"{path}: not a checkpoint of pix2pixhd, which contains weights and the networks' options; NVIDIA's "
            "weights are recognized by the extension .pth"
        )
    if options["format"] != FORMAT_VERSION:
        raise InputError(
            f"{path}: written in format {options['format']}, this version reads {FORMAT_VERSION}; upgrade pix2pixhd"
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
    """Returns Lightning's number of finished epochs; 0 if it was not saved.

    Its counter "completed" is updated too late for a checkpoint at the end of an epoch, so "processed" is read.
    """
    place: Any = content
    for name in ("loops", "fit_loop", "epoch_progress", "current", "processed"):
        place = place.get(name) if isinstance(place, dict) else None
    return place if type(place) is int else 0


def _position(path: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of ``ResumableLoader``, as Lightning saves it; empty if it was not saved.

    Raises:
        InputError: If the saved value is not such a state.
    """
    state: Any = content
    for name in ("loops", "fit_loop", "state_dict", "combined_loader"):
        state = state.get(name, {}) if isinstance(state, dict) else None
    if state in ({}, []):
        return {}
    position = state[0] if isinstance(state, list) else None
    batches = position.get("batches", 0) if isinstance(position, dict) else None
    if not isinstance(position, dict) or type(batches) is not int or batches < 0:
        raise InputError(
            f"{path}: the number of batches trained on ('loops') cannot be read from the checkpoint; it was altered, "
            "use another"
        )
    return position


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], path: pathlib.Path) -> None:
    """Loads weights into a network if they fit exactly, and otherwise leaves the network unchanged.

    Raises:
        InputError: For missing keys, extra keys and different shapes.
    """
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    reshaped = [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = []
    for what, names in (("missing", missing), ("not known to this network", extra), ("of another shape", reshaped)):
        if names:
            problems.append(f"{len(names)} {what} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})")
    if problems:
        raise InputError(
            f"{path}: the weights do not fit the network: {'; '.join(problems)}; give the options it was trained with"
        )
    network.load_state_dict(weights)


def read_state_dict(path: pathlib.Path) -> dict[str, Tensor]:
    """Reads a bare state dict such as NVIDIA's ``latest_net_G.pth``, without unused instance-norm statistics.

    Raises:
        InputError: If the file is missing, damaged, or not a state dict.
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
    """Returns whether any running statistics belong to batch norm, which has a weight; instance norm has none."""
    return any(
        key.endswith("running_mean") and f"{key.removesuffix('running_mean')}weight" in weights for key in weights
    )


def _with_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
