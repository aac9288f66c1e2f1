"""Builds trained generators from checkpoints of this package and from NVIDIA's files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from torch import Tensor, nn

from pix2pixhd.checkpoints.format import Checkpoint, load_strictly, read_checkpoint, read_state_dict
from pix2pixhd.config.schema import DataOptions, ModelOptions
from pix2pixhd.errors import InputError
from pix2pixhd.models.build import build_encoder, build_generator

__all__ = ["LoadedGenerator", "generator_of", "load_generator"]


@dataclasses.dataclass
class LoadedGenerator:
    """A trained generator and the options needed to run it.

    Attributes:
        network: The generator, in evaluation mode.
        model: Options of the networks.
        data: Options of the data, which determine how the input is encoded.
        encoder: The encoder of instance features, in evaluation mode. None if the generator takes no features, or if
            NVIDIA's ``latest_net_E.pth`` is not in the same folder.
    """

    network: nn.Module
    model: ModelOptions
    data: DataOptions
    encoder: nn.Module | None = None


def load_generator(
    path: str | pathlib.Path,
    model: ModelOptions | None = None,
    data: DataOptions | None = None,
    averaged: bool = True,
) -> LoadedGenerator:
    """Loads a generator from a checkpoint of this package, or from NVIDIA's ``latest_net_G.pth``.

    Args:
        path: The file.
        model: Options of the networks, for NVIDIA's files, which do not contain them.
        data: Options of the data, for NVIDIA's files.
        averaged: Whether to use the moving average of the weights, if the checkpoint contains one.

    Raises:
        InputError: If the file is missing or damaged, or if the weights do not fit the network exactly.

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


def generator_of(checkpoint: Checkpoint, averaged: bool = True) -> LoadedGenerator:
    """Builds the generator of a checkpoint that has been read; ``averaged`` as for ``load_generator``.

    Raises:
        InputError: If the weights do not fit the network exactly.
    """
    weights_G, weights_E = (checkpoint.network(name, averaged) for name in ("netG", "netE"))
    return _build(checkpoint.path, checkpoint.model, checkpoint.data, weights_G, weights_E)


def _build(
    path: pathlib.Path,
    model: ModelOptions,
    data: DataOptions,
    weights_G: Mapping[str, Tensor],
    weights_E: Mapping[str, Tensor],
) -> LoadedGenerator:
    try:
        network = build_generator(model, data)
        encoder = build_encoder(model, data) if weights_E else None
    except (RuntimeError, MemoryError) as error:  # sizes too large for the memory
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: the network that its options describe cannot be built ({reason}); correct the options"
        ) from None
    load_strictly(network, weights_G, path)
    if encoder is not None:
        load_strictly(encoder, weights_E, path)
        encoder.eval()
    return LoadedGenerator(network.eval(), model, data, encoder)
