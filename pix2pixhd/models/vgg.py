"""VGG19 as the perceptual loss uses it: five maps, frozen weights, and where those come from."""

from __future__ import annotations

import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pix2pixhd.ops.perceptual import adjoint

# Positions in torchvision's `vgg19().features`.
TAPS = {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 20, "relu5_1": 29}
_DEPTH = max(TAPS.values()) + 1

_OFFLINE = """the ImageNet weights of VGG19 could not be fetched: {error}
Put the file {name} (548 MB, from {url}) at
    {path}
or pass its path, VGGLoss(vgg="/path/to/{name}"). For tests and demonstrations only, vgg="random" needs no file."""


# What follows each convolution.
_PLAN = "tptptrrptrrpt"


def _lay_out_again(vgg: VGG19Features, _: object) -> None:
    weights, _, adjoints, _ = vgg.chain()
    for weight, buffer in zip(weights, adjoints, strict=True):
        buffer.copy_(adjoint(weight))


class VGG19Features(nn.Module):
    """The part of VGG19 (arXiv 1409.1556) up to relu5_1, with torchvision's parameter names (``features.0.weight`` …).

    The weights are uninitialised until a state dict is loaded; ``load_vgg19`` does both.

    Example:
        >>> import torch
        >>> from pix2pixhd.models.vgg import load_vgg19
        >>> maps = load_vgg19("random")(torch.rand(1, 3, 32, 32))
        >>> [tuple(x.shape[1:]) for x in maps]
        [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        with torch.device("meta"):  # no time and no random numbers spent on an initialisation that nobody uses
            layers = make_layers(cfgs["E"])
        self.features = layers[:_DEPTH].to_empty(device="cpu").to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()
        for index, convolution in enumerate(self._convolutions()):
            # Follows the module from device to device; derived, so not in the state dict.
            self.register_buffer(f"adjoint{index}", adjoint(convolution.weight), persistent=False)
        self.register_load_state_dict_post_hook(_lay_out_again)  # type: ignore[no-untyped-call]

    def _convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.features if isinstance(layer, nn.Conv2d)]

    def chain(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], str]:
        """Weights, biases, adjoint weights and plan, as ``pix2pixhd.ops.perceptual`` takes them."""
        convolutions = self._convolutions()
        weights = [layer.weight for layer in convolutions]
        biases = [cast(Tensor, layer.bias) for layer in convolutions]
        adjoints = [cast(Tensor, getattr(self, f"adjoint{index}")) for index in range(len(convolutions))]
        return weights, biases, adjoints, _PLAN

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of pictures ``[N, 3, H, W]``, H and W at least 16."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)  # ReLUs work in place, on convolution outputs that nobody else reads
            if index in TAPS.values():
                maps.append(x)
        return maps


def _shapes() -> dict[str, torch.Size]:
    return {name: value.shape for name, value in VGG19Features().state_dict().items()}


def _as_torchvision(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Brings torchvision's names, with or without classifier, and those of NVIDIA's ``Vgg19`` into one form."""
    renamed = {}
    for name, value in state.items():
        # NVIDIA's slices number their layers as torchvision's `features` does.
        name = re.sub(r"^slice[1-5]\.", "features.", name.removeprefix("module.").removeprefix("vgg."))
        match = re.match(r"features\.(\d+)\.", name)
        if match and int(match[1]) < _DEPTH:
            renamed[name] = value
    return renamed


def load_state(vgg: VGG19Features, state: object, source: str) -> None:
    """Loads a VGG19 state dict of any of the known layouts.

    Args:
        vgg: Where to.
        state: The state dict.
        source: What error messages call it.

    Raises:
        ValueError: If it is no state dict of VGG19: names the missing and misshapen entries.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} holds a {type(state).__name__}, expected a state dict of VGG19")
    renamed, shapes = _as_torchvision(state), _shapes()
    missing = [name for name in shapes if name not in renamed]
    if missing:
        raise ValueError(
            f"{source} is no VGG19 state dict: {len(missing)} of {len(shapes)} entries are missing, the first is "
            f"{missing[0]}; it has {', '.join(map(str, list(state)[:3])) or 'no entries'} …; expected "
            "torchvision's names, features.0.weight and so on"
        )
    for name, shape in shapes.items():
        if not isinstance(renamed[name], Tensor) or renamed[name].shape != shape:
            found = tuple(getattr(renamed[name], "shape", ()))
            raise ValueError(f"{source}: {name} must have shape {tuple(shape)}, got {found}; is it of another network?")
    vgg.load_state_dict({name: renamed[name] for name in shapes})


def _random_state(seed: int = 0) -> dict[str, Tensor]:
    """He initialisation from a generator of its own: the same on every machine, and nobody's random numbers move."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in _shapes().items():
        if name.endswith("weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(shape)
    return state


def _imagenet_state() -> Mapping[str, Any]:
    from torchvision.models import VGG19_Weights

    weights = VGG19_Weights.IMAGENET1K_V1
    name = pathlib.PurePosixPath(weights.url).name
    path = pathlib.Path(torch.hub.get_dir(), "checkpoints", name)
    try:
        state: Mapping[str, Any] = weights.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RuntimeError(_OFFLINE.format(error=error, name=name, url=weights.url, path=path)) from error
    return state


def _file_state(path: pathlib.Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(
            f"vgg: there is no file {path}; pass 'imagenet', 'random', a module, or the path of a VGG19 state dict"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"vgg: {path} cannot be read as a state dict: {reason}") from error


def load_vgg19(vgg: str | pathlib.Path = "imagenet") -> VGG19Features:
    """Builds VGG19 up to relu5_1 with frozen weights.

    Args:
        vgg: ``"imagenet"`` for torchvision's ``VGG19_Weights.IMAGENET1K_V1``, fetched once and kept by torch.hub;
            ``"random"`` for seeded random weights, with a warning; else the path of a state dict with torchvision's
            names (``features.0.weight``) or those of NVIDIA's ``Vgg19`` (``slice1.0.weight``).

    Raises:
        RuntimeError: If the pretrained weights cannot be fetched; says which file to put where.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no VGG19 state dict.

    Example:
        >>> vgg = load_vgg19("random")
    """
    model = VGG19Features()
    if vgg == "imagenet":
        load_state(model, _imagenet_state(), "torchvision's VGG19_Weights.IMAGENET1K_V1")
    elif vgg == "random":
        warnings.warn(
            "pix2pixhd: VGG19 has random weights (vgg='random'). Good for tests and demonstrations; for training use "
            "vgg='imagenet' or the path of pretrained weights.",
            UserWarning,
            stacklevel=3,
        )
        load_state(model, _random_state(), "the random state dict")
    else:
        load_state(model, _file_state(pathlib.Path(vgg)), str(vgg))
    return model
