"""VGG19 and VGG16 as the perceptual loss uses them: some maps, frozen weights, and where those come from."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from pix2pixhd.models.weights import read_weights
from pix2pixhd.ops.perceptual import Network
from pix2pixhd.ops.perceptual_tiling import POOL, RELU, TAP, TAP_POOL

Architecture = Literal["vgg19", "vgg16"]

PAPER_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

# torchvision's names of the configurations D and E of arXiv 1409.1556.
_CONFIGURATIONS = {"vgg19": "E", "vgg16": "D"}

_OFFLINE = """the ImageNet weights of {network} could not be fetched: {error}
Put the file {name} ({size} MB, from {url}) at
    {path}
or pass its path, VGGLoss(vgg="/path/to/{name}"). For tests and demonstrations only, vgg="random" needs no file."""


class _Convolution(NamedTuple):
    """One convolution of the network.

    Attributes:
        position: In torchvision's ``features``; its ReLU follows.
        relu: The ReLU's name.
        pooled: Whether max-pooling comes after.
    """

    position: int
    relu: str
    pooled: bool


def _convolutions(network: str) -> list[_Convolution]:
    from torchvision.models.vgg import cfgs

    found, index, block, number = [], 0, 1, 1
    configuration = cfgs[_CONFIGURATIONS[network]]
    for here, after in zip(configuration, [*configuration[1:], None], strict=True):
        if here == "M":
            index, block, number = index + 1, block + 1, 1
        else:
            found.append(_Convolution(index, f"relu{block}_{number}", after == "M"))
            index, number = index + 2, number + 1
    return found


def check_network(network: str) -> None:
    """Refuses what is no network of this module.

    Raises:
        ValueError: Names those there are.
    """
    if network not in _CONFIGURATIONS:
        raise ValueError(f"network must be {' or '.join(get_args(Architecture))}, got {network!r}")


def layer_names(network: str, layers: Sequence[str]) -> list[str]:
    """Brings layer names into the form ``relu3_1``; ``relu_3_1`` is the same layer.

    Raises:
        TypeError: For a single string.
        ValueError: For a name that the network does not have, one that comes twice, or none at all.

    Example:
        >>> layer_names("vgg16", ["relu_1_2", "relu2_2"])
        ['relu1_2', 'relu2_2']
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got {layers!r}; did you mean [{layers!r}]?")
    known = [convolution.relu for convolution in _convolutions(network)]
    names = []
    for layer in layers:
        match = re.fullmatch(r"relu_?(\d)_(\d)", str(layer))
        name = f"relu{match[1]}_{match[2]}" if match else ""
        if name not in known:
            raise ValueError(f"layers: {network} has no layer {layer!r}; it has {', '.join(known)}")
        if name in names:
            raise ValueError(f"layers: {layer!r} comes twice")
        names.append(name)
    if not names:
        raise ValueError(f"layers must name at least one of {', '.join(known)}")
    return names


# The layers of one letter of the plan.
_KINDS: dict[str, list[type[nn.Module]]] = {
    RELU: [nn.Conv2d, nn.ReLU],
    TAP: [nn.Conv2d, nn.ReLU],
    POOL: [nn.Conv2d, nn.ReLU, nn.MaxPool2d],
    TAP_POOL: [nn.Conv2d, nn.ReLU, nn.MaxPool2d],
}


def _as_configured(layer: nn.Module) -> bool:
    """Whether a layer of the right type has the options of the VGG's."""
    if isinstance(layer, nn.Conv2d):
        return (
            layer.kernel_size == (3, 3)
            and layer.stride == layer.padding == layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.bias is not None
            and layer.out_channels % 32 == 0  # what the operators take
        )
    if isinstance(layer, nn.MaxPool2d):
        size_and_stride = (layer.kernel_size, layer.stride)
        return (
            all(x in (2, (2, 2)) for x in size_and_stride)
            and layer.padding in (0, (0, 0))
            and layer.dilation in (1, (1, 1))
            and not layer.ceil_mode
            and not layer.return_indices
        )
    return True


def _is_patched(module: nn.Module) -> bool:
    """Whether the module has hooks, or a ``forward`` of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _has_global_hooks() -> bool:
    """Whether hooks are registered for every module, by ``torch.nn.modules.module.register_module_forward_hook``."""
    return bool(
        modules._global_forward_hooks
        or modules._global_forward_pre_hooks
        or modules._global_backward_hooks
        or modules._global_backward_pre_hooks
    )


class FrozenVGG(nn.Module):
    """The part of VGG19 or VGG16 (arXiv 1409.1556) that some layers need, with torchvision's parameter names.

    The weights are uninitialised until a state dict is loaded; ``load_vgg`` does both.

    Args:
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the ReLUs whose maps are asked for, ``relu1_1`` or ``relu_1_1``.

    Raises:
        ValueError: For an unknown network or layer.

    Example:
        >>> from pix2pixhd.models.vgg import load_vgg
        >>> maps = load_vgg("random")(torch.rand(1, 3, 32, 32))
        >>> [tuple(x.shape[1:]) for x in maps]
        [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    """

    def __init__(self, network: Architecture = "vgg19", layers: Sequence[str] = PAPER_LAYERS) -> None:
        super().__init__()
        check_network(network)
        from torchvision.models.vgg import cfgs, make_layers

        self.network = network
        self.layers = layer_names(network, layers)
        convolutions = _convolutions(network)
        deepest = max(k for k, convolution in enumerate(convolutions) if convolution.relu in self.layers)
        used = convolutions[: deepest + 1]
        # Where in `features` a map is taken, in the network's order, and which of `layers` it is.
        self._taps = {c.position + 1: self.layers.index(c.relu) for c in used if c.relu in self.layers}
        self.plan = "".join(self._kind(convolution, convolution is used[-1]) for convolution in used)
        self.depth = used[-1].position + 2
        with torch.device("meta"):  # no time and no random numbers spent on an initialisation that nobody uses
            features = make_layers(cfgs[_CONFIGURATIONS[network]])
        self.features = features[: self.depth].to_empty(device="cpu").to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    def _kind(self, convolution: _Convolution, last: bool) -> str:
        tapped, pooled = convolution.relu in self.layers, convolution.pooled and not last
        if tapped:
            return TAP_POOL if pooled else TAP
        return POOL if pooled else RELU

    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions, in order."""
        return [layer for layer in self.features if isinstance(layer, nn.Conv2d)]

    def chain(self) -> Network:
        """The network as ``pix2pixhd.ops.perceptual`` takes it: the parameters themselves, no copies."""
        layers = self.convolutions()
        return Network([c.weight for c in layers], [cast(Tensor, c.bias) for c in layers], self.plan)

    def is_standard(self) -> bool:
        """Whether calling the layers does what ``chain`` describes, and nothing else.

        Not so after a user replaced, added or patched layers, or with hooks that must see an input, output or gradient.
        """
        layers = list(self.features)
        expected = [kind for letter in self.plan for kind in _KINDS[letter]]
        return (
            type(self).forward is FrozenVGG.forward
            and [type(layer) for layer in layers] == expected
            and all(map(_as_configured, layers))
            and not _has_global_hooks()
            and not any(_is_patched(module) for module in (self, self.features, *layers))
        )

    def factors(self, weights: Sequence[float]) -> list[float]:
        """One weight per layer, as given, in the order in which the network comes by them."""
        return [weights[k] for k in self._taps.values()]

    def in_order(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps as ``forward`` returns them, in the order in which the network comes by them."""
        return [maps[k] for k in self._taps.values()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The layers' maps, in the order of ``layers``, of pictures ``[N, 3, H, W]``."""
        maps: dict[int, Tensor] = {}
        for index, layer in enumerate(self.features):
            x = layer(x)  # ReLUs work in place, on convolution outputs that nobody else reads
            if index in self._taps:
                maps[self._taps[index]] = x
        return [maps[k] for k in range(len(maps))]


def _shapes(vgg: FrozenVGG) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in vgg.state_dict().items()}


def _as_torchvision(state: Mapping[str, Any], depth: int) -> dict[str, Tensor]:
    """Brings torchvision's names, with or without classifier, and those of NVIDIA's ``Vgg19`` into one form."""
    renamed = {}
    for name, value in state.items():
        # NVIDIA's slices number their layers as torchvision's `features` does.
        name = re.sub(r"^slice[1-5]\.", "features.", name.removeprefix("module.").removeprefix("vgg."))
        match = re.match(r"features\.(\d+)\.", name)
        if match and int(match[1]) < depth:
            renamed[name] = value
    return renamed


def load_state(vgg: FrozenVGG, state: object, source: str) -> None:
    """Loads a state dict of any of the known layouts.

    Args:
        vgg: Where to.
        state: The state dict.
        source: What error messages call it.

    Raises:
        ValueError: If it is no state dict of this network: names the missing and misshapen entries.
    """
    title = vgg.network.upper()
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} holds a {type(state).__name__}, expected a state dict of {title}")
    renamed, shapes = _as_torchvision(state, vgg.depth), _shapes(vgg)
    missing = [name for name in shapes if name not in renamed]
    if missing:
        raise ValueError(
            f"{source} is no {title} state dict: {len(missing)} of {len(shapes)} entries are missing, the first is "
            f"{missing[0]}; it has {', '.join(map(str, list(state)[:3])) or 'no entries'} …; expected "
            "torchvision's names, features.0.weight and so on"
        )
    for name, shape in shapes.items():
        if not isinstance(renamed[name], Tensor) or renamed[name].shape != shape:
            found = tuple(getattr(renamed[name], "shape", ()))
            raise ValueError(f"{source}: {name} must have shape {tuple(shape)}, got {found}; is it of another network?")
    vgg.load_state_dict({name: renamed[name] for name in shapes})


def _random_state(vgg: FrozenVGG, seed: int = 0) -> dict[str, Tensor]:
    """He initialisation from a generator of its own: the same on every machine, and nobody's random numbers move."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in _shapes(vgg).items():
        if name.endswith("weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(shape)
    return state


def _imagenet_state(network: str) -> object:
    from torchvision.models import VGG16_Weights, VGG19_Weights

    weights = {"vgg19": VGG19_Weights, "vgg16": VGG16_Weights}[network].IMAGENET1K_V1
    name = pathlib.PurePosixPath(weights.url).name
    path = pathlib.Path(torch.hub.get_dir(), "checkpoints", name)
    try:
        if path.is_file():
            return read_weights(path)
        state: object = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"{path} cannot be read: {error}" if isinstance(error, ValueError) else error
        size = round(weights.meta["_file_size"])
        raise RuntimeError(
            _OFFLINE.format(error=reason, name=name, size=size, url=weights.url, path=path, network=network.upper())
        ) from error
    return state


def _file_state(path: pathlib.Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(
            f"vgg: there is no file {path}; pass 'imagenet', 'random', a module, or the path of a state dict"
        )
    try:
        return read_weights(path)
    except ValueError as error:
        raise ValueError(f"vgg: {path} cannot be read as a state dict: {error}") from error


def load_vgg(
    vgg: str | pathlib.Path = "imagenet", network: Architecture = "vgg19", layers: Sequence[str] = PAPER_LAYERS
) -> FrozenVGG:
    """Builds a VGG as far as some layers need it, with frozen weights.

    Args:
        vgg: ``"imagenet"`` for torchvision's ``IMAGENET1K_V1`` weights, fetched once and kept by torch.hub;
            ``"random"`` for seeded random weights, with a warning; else the path of a state dict with torchvision's
            names (``features.0.weight``) or those of NVIDIA's ``Vgg19`` (``slice1.0.weight``).
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the ReLUs whose maps are asked for.

    Raises:
        RuntimeError: If the pretrained weights cannot be fetched; says which file to put where.
        FileNotFoundError: If there is no such file.
        ValueError: For an unknown network or layer, or a file that is no state dict of the network.

    Example:
        >>> vgg = load_vgg("random", "vgg16", ["relu1_2", "relu2_2"])
    """
    model = FrozenVGG(network, layers)
    if vgg == "imagenet":
        load_state(model, _imagenet_state(network), f"torchvision's {network.upper()}_Weights.IMAGENET1K_V1")
    elif vgg == "random":
        warnings.warn(
            f"pix2pixhd: {network.upper()} has random weights (vgg='random'). Good for tests and demonstrations; for "
            "training use vgg='imagenet' or the path of pretrained weights.",
            UserWarning,
            stacklevel=3,
        )
        load_state(model, _random_state(model), "the random state dict")
    else:
        load_state(model, _file_state(pathlib.Path(vgg)), str(vgg))
    return model
