"""The networks of LPIPS: torchvision's VGG16, AlexNet and SqueezeNet 1.1 up to the last compared feature map."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd.models.vgg import FrozenVGG, load_vgg
from pix2pixhd.models.weights import imagenet_weights, warn_of_random_weights, weights_of_file

__all__ = ["TRUNKS", "Trunk", "TrunkName", "empty_trunk", "linear_file", "load_trunk", "to_lpips_names", "to_own_names"]

TrunkName = Literal["vgg", "alex", "squeeze"]


class _Layout(NamedTuple):
    """Where LPIPS compares the feature maps of a network.

    Attributes:
        builder: Name of torchvision's function.
        taps: Indices in torchvision's ``features`` whose outputs are compared. The lpips package has one slice for
            each, which begins after the previous tap.
        channels: Channels of the compared feature maps.
        smallest: Smallest height and width of the images.
    """

    builder: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int


TRUNKS: dict[str, _Layout] = {
    "vgg": _Layout("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
    "alex": _Layout("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "squeeze": _Layout("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512), 17),
}
_NO_LINEAR = """the weights of LPIPS's linear layers were not found: {package} is not installed
Install it with `pip install lpips`, or pass the path of its file weights/v{version}/{net}.pth as model_path. With \
pretrained=False the layers are random."""
_VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def _slice_of(net: str, index: int) -> int:
    return 1 + sum(index > tap for tap in TRUNKS[net].taps)


def to_own_names(state: Mapping[str, Any], net: str, prefix: str) -> dict[str, Any]:
    """Rename ``net.slice2.3.weight``, as in the lpips package, to ``net.features.3.weight``.

    ``net.slices.1.3.weight``, as in torchmetrics' SqueezeNet, is renamed to the same.
    """
    pattern = re.compile(rf"^({re.escape(prefix)})(?:slice\d+|slices\.\d+)\.(\d+\.)")
    return {pattern.sub(r"\1features.\2", name): value for name, value in state.items()}


def to_lpips_names(state: Mapping[str, Any], net: str, prefix: str) -> dict[str, Any]:
    """Rename ``net.features.3.weight`` to ``net.slice2.3.weight``, as in the lpips package."""
    pattern = re.compile(rf"^{re.escape(prefix)}features\.(\d+)\.")
    return {
        pattern.sub(lambda match: f"{prefix}slice{_slice_of(net, int(match[1]))}.{match[1]}.", name): value
        for name, value in state.items()
    }


class Trunk(nn.Module):
    """AlexNet (arXiv 1404.5997) or SqueezeNet 1.1 (arXiv 1602.07360), with torchvision's parameter names.

    The weights are uninitialised until a state dict is loaded.

    Args:
        net: ``"alex"`` or ``"squeeze"``.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        import torchvision.models

        self.taps = TRUNKS[net].taps
        with torch.device("meta"):  # skips the initialisation and leaves the random state unchanged
            features = getattr(torchvision.models, TRUNKS[net].builder)(weights=None).features
        self.features = features[: self.taps[-1] + 1].to_empty(device="cpu")
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the compared feature maps of images ``[N, 3, H, W]``."""
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)  # no layer that follows a tap works in place
        return found


def _random_state(trunk: nn.Module) -> dict[str, Tensor]:
    """He initialisation with a separate generator: reproducible, and the global random state is unchanged."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in trunk.state_dict().items():
        fan_in = value[0].numel() if value.dim() > 1 else 1
        scale = (2.0 / fan_in) ** 0.5 if value.dim() > 1 else 0.0
        state[name] = torch.randn(value.shape, generator=generator) * scale
    return state


def _load(trunk: Trunk, state: object, net: str, source: str) -> None:
    """Load torchvision's state dict, with or without classifier, or the trunk's part of the lpips package's.

    Raises:
        ValueError: If it is not a state dict of this network; the message names the first missing entry.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} contains a {type(state).__name__}, expected a state dict of {net}")
    renamed = to_own_names({name.removeprefix("net."): value for name, value in state.items()}, net, "")
    expected = trunk.state_dict()
    for name, value in expected.items():
        found = tuple(getattr(renamed.get(name), "shape", ()))
        if name not in renamed or found != value.shape:
            what = f"has shape {found}" if name in renamed else "is missing"
            raise ValueError(
                f"{source} is not a state dict of {TRUNKS[net].builder}: {name} {what}, expected shape "
                f"{tuple(value.shape)}; pass torchvision's weights"
            )
    trunk.load_state_dict({name: renamed[name] for name in expected})


def empty_trunk(net: TrunkName) -> nn.Module:
    """Build a network of LPIPS whose weights are uninitialised, for a state dict that is loaded later."""
    return FrozenVGG("vgg16", _VGG_LAYERS) if net == "vgg" else Trunk(net)


def load_trunk(net: TrunkName, weights: str | pathlib.Path) -> nn.Module:
    """Build a network of LPIPS with frozen weights.

    Args:
        net: ``"vgg"``, ``"alex"`` or ``"squeeze"``.
        weights: ``"imagenet"`` for torchvision's ``IMAGENET1K_V1`` weights, ``"random"`` for seeded random weights, or
            the path of a state dict with torchvision's names.

    Returns:
        A network that returns the compared feature maps of images as a list.

    Raises:
        RuntimeError: If the pretrained weights cannot be downloaded; the message names the URL and the target path.
        FileNotFoundError: If the file does not exist.
        ValueError: If the network is unknown, or the file is not a state dict of the network.

    Example:
        >>> trunk = load_trunk("alex", "random")
        >>> [x.shape[1] for x in trunk(torch.zeros(1, 3, 64, 64))]
        [64, 192, 384, 256, 256]
    """
    if net not in TRUNKS:
        raise ValueError(f"net must be {', '.join(TRUNKS)}, got {net!r}")
    if net == "vgg":
        return load_vgg(weights, "vgg16", _VGG_LAYERS, argument="trunk", caller="LPIPS")
    trunk = Trunk(net)
    builder = TRUNKS[net].builder
    if weights == "imagenet":
        _load(trunk, imagenet_weights(builder, "LPIPS", "trunk"), net, f"torchvision's {builder} weights")
    elif weights == "random":
        warn_of_random_weights(builder, "trunk")
        trunk.load_state_dict(_random_state(trunk))
    else:
        _load(trunk, weights_of_file(pathlib.Path(weights), "trunk"), net, str(weights))
    return trunk


def linear_file(net: str, version: str) -> pathlib.Path:
    """Return the file of LPIPS's linear layers in the installed lpips package, or in torchmetrics for version 0.1.

    Raises:
        RuntimeError: If neither is installed; the message names the remedy.
    """
    places = {"lpips": f"weights/v{version}/{net}.pth"}
    if version == "0.1":
        places["torchmetrics"] = f"functional/image/lpips_models/{net}.pth"
    for package, name in places.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = pathlib.Path(folder, name)
            if path.is_file():
                return path
    raise RuntimeError(_NO_LINEAR.format(package=" or ".join(places), version=version, net=net))
