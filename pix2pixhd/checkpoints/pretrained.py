"""Initializes networks with the weights of an earlier run, or of NVIDIA's code."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from pix2pixhd.checkpoints.format import last_checkpoint, load_strictly, read_checkpoint, read_state_dict
from pix2pixhd.errors import InputError
from pix2pixhd.models import LocalEnhancer, MultiscaleDiscriminator

__all__ = ["load_pretrained"]

_NETWORKS = ("netG", "netD", "netE")
_Weights = dict[str, dict[str, Tensor]]


def _read(path: pathlib.Path) -> tuple[pathlib.Path, _Weights]:
    """Reads the weights of G, D and E, as far as the path contains them."""
    if not path.exists():
        raise InputError(f"run.load_pretrain: {path} does not exist; name a .ckpt, a run's folder, or a folder of .pth")
    path = last_checkpoint(path) or path
    if path.is_dir():
        files = {net: path / f"latest_net_{net[-1]}.pth" for net in _NETWORKS}
        if not files["netG"].is_file():
            raise InputError(f"run.load_pretrain: {path} contains neither checkpoints/last.ckpt nor latest_net_G.pth")
        return path, {net: read_state_dict(file) for net, file in files.items() if file.is_file()}
    if path.suffix == ".pth" and path.is_file():
        raise InputError(
            f"run.load_pretrain: {path} is one of several files of NVIDIA's weights; name its folder, {path.parent}"
        )
    checkpoint = read_checkpoint(path)
    return path, {net: weights for net in _NETWORKS if (weights := checkpoint.network(net))}


def _is_global(weights: Mapping[str, Tensor]) -> bool:
    return not any(re.match(r"model\d+_", name) for name in weights)


def _check_width(netG: LocalEnhancer, trunk: Mapping[str, Tensor], path: pathlib.Path) -> None:
    """Rejects a global generator whose width differs from that of the global part inside the enhancers."""
    first = "1.weight"  # the first convolution, [ngf, input_nc, 7, 7]
    found, expected = trunk[first].shape[0] if first in trunk else 0, netG.model.state_dict()[first].shape[0]
    if found in (0, expected):
        return
    factor = 2**netG.n_local_enhancers
    remedy = f"train the global generator with model.ngf: {expected}"
    if found % factor == 0:
        remedy = f"set model.ngf: {found // factor}"
    raise InputError(
        f"run.load_pretrain: {path} was trained with model.ngf: {found}, but the global part of model.netG: local has "
        f"model.ngf * 2^model.n_local_enhancers = {expected} channels; {remedy}"
    )


def _load_generator(netG: nn.Module, weights: dict[str, Tensor], path: pathlib.Path) -> str:
    if isinstance(netG, LocalEnhancer) and _is_global(weights):
        # The enhancers use the global part's feature maps, so its last layer, from features to an image, is left out.
        last = max(int(name.split(".")[1]) for name in weights)
        trunk = {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if not name.startswith(f"model.{last}.")
        }
        _check_width(netG, trunk, path)
        load_strictly(netG.model, trunk, path)
        return "the generator's global part (the enhancers from random weights)"
    load_strictly(netG, weights, path)
    return "the generator"


def _by_layer(netD: MultiscaleDiscriminator, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights that NVIDIA's code trained without feature matching to the names that it uses with it.

    Without feature matching ``layer{i}`` holds all modules of a scale in sequence; with it ``scale{i}_layer{j}`` holds
    the modules of one layer.
    """
    modules = [
        f"layer{j}.{k}"
        for j in range(netD.n_layers + 2)
        for k in range(len(cast(nn.Sequential, netD.get_submodule(f"scale0_layer{j}"))))
    ]

    def renamed(name: str) -> str:
        match = re.fullmatch(r"layer(\d+)\.(\d+)\.(\w+)", name)
        if match is None or int(match[2]) >= len(modules):
            return name
        return f"scale{match[1]}_{modules[int(match[2])]}.{match[3]}"

    return {renamed(name): value for name, value in weights.items()}


def _load_discriminator(netD: MultiscaleDiscriminator, weights: dict[str, Tensor], path: pathlib.Path) -> str:
    own, weights = netD.state_dict(), _by_layer(netD, weights)

    def scales(names: Mapping[str, Tensor]) -> set[str]:
        return {match[0] for name in names if (match := re.match(r"scale\d+", name))}

    # The coarse scales come first. With one more scale, they are loaded from the checkpoint and the new one is not.
    new = sorted(scales(own) - scales(weights))
    kept = {name: value for name, value in own.items() if name.split("_")[0] in new}
    load_strictly(netD, {**weights, **kept}, path)
    return "the discriminator" + (f" ({', '.join(new)} from random weights)" if new else "")


def load_pretrained(netG: nn.Module, netD: MultiscaleDiscriminator, netE: nn.Module | None, path: pathlib.Path) -> str:
    """Loads trained weights into new networks.

    Args:
        netG: The generator.
        netD: The discriminator.
        netE: The feature encoder; None if the generator takes no features.
        path: A ``.ckpt`` of this package, a run's folder, or a folder with ``latest_net_G.pth`` and perhaps
            ``latest_net_D.pth`` and ``latest_net_E.pth``. A global generator initializes the global part of a
            ``LocalEnhancer``; a discriminator with fewer scales initializes the coarse ones. The different parameter
            names of discriminators that NVIDIA's code trained with ``--no_ganFeat_loss`` are accepted too.

    Returns:
        A one-line summary of what was loaded and what was not.

    Raises:
        InputError: If files are missing or damaged, or if the weights do not fit the networks.

    Example:
        >>> load_pretrained(netG, netD, None, pathlib.Path("runs/label2city_512p"))  # doctest: +SKIP
        'from runs/label2city_512p/checkpoints/last.ckpt: the generator, the discriminator'
    """
    path, nets = _read(path)
    loaded = [_load_generator(netG, nets["netG"], path)]
    if "netD" in nets:
        loaded.append(_load_discriminator(netD, nets["netD"], path))
    if netE is not None and "netE" in nets:
        load_strictly(netE, nets["netE"], path)
        loaded.append("the encoder")
    return f"from {path}: {', '.join(loaded)}"
