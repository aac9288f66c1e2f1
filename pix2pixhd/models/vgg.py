"""VGG19 and VGG16 for the perceptual loss: selected feature maps, frozen weights, and loading of the weights."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from pix2pixhd.models.weights import imagenet_weights, warn_of_random_weights, weights_of_file
from pix2pixhd.ops.conv_stack import POOL, RELU, TAP, TAP_POOL, ConvStack

Architecture = Literal["vgg19", "vgg16"]
_Value = TypeVar("_Value")

PAPER_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

# torchvision's names of the configurations D and E of arXiv 1409.1556.
_CONFIGURATIONS = {"vgg19": "E", "vgg16": "D"}


class _Convolution(NamedTuple):
    """One convolution of the network.

    Attributes:
        position: Index in torchvision's ``features``; its ReLU follows.
        relu: Name of the ReLU.
        pooled: Whether max-pooling follows the ReLU.
    """

    position: int
    relu: str
    pooled: bool


def _convolutions(network: str) -> list[_Convolution]:
    from torchvision.models.vgg import cfgs

    found, index, block, number = [], 0, 1, 1
    configuration = cfgs[_CONFIGURATIONS[network]]
    for layer, following in zip(configuration, [*configuration[1:], None], strict=True):
        if layer == "M":
            index, block, number = index + 1, block + 1, 1
        else:
            found.append(_Convolution(index, f"relu{block}_{number}", following == "M"))
            index, number = index + 2, number + 1
    return found


def check_network(network: str) -> None:
    """Check the name of a network.

    Raises:
        ValueError: If there is no such network; the message lists those that exist.
    """
    if network not in _CONFIGURATIONS:
        raise ValueError(f"network must be {' or '.join(get_args(Architecture))}, got {network!r}")


def layer_names(network: str, layers: Sequence[str]) -> list[str]:
    """Normalise layer names to the form ``relu3_1``; ``relu_3_1`` is the same layer.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a name is unknown or repeated, or if there is no name.

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
            raise ValueError(f"layers: {layer!r} is listed twice")
        names.append(name)
    if not names:
        raise ValueError(f"layers must name at least one of {', '.join(known)}")
    return names


# The layers of each kind in `layer_kinds`.
_KINDS: dict[str, list[type[nn.Module]]] = {
    RELU: [nn.Conv2d, nn.ReLU],
    TAP: [nn.Conv2d, nn.ReLU],
    POOL: [nn.Conv2d, nn.ReLU, nn.MaxPool2d],
    TAP_POOL: [nn.Conv2d, nn.ReLU, nn.MaxPool2d],
}


def _as_configured(layer: nn.Module) -> bool:
    """Whether a layer of the right class has the options of the VGG's layer."""
    if isinstance(layer, nn.Conv2d):
        return (
            layer.kernel_size == (3, 3)
            and layer.stride == layer.padding == layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.bias is not None
            and layer.out_channels % 32 == 0  # required by the operators
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
    """Whether the module has hooks, or a ``forward`` set on the instance."""
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
    """VGG19 or VGG16 (arXiv 1409.1556) up to the deepest requested layer, with torchvision's parameter names.

    The weights are uninitialised until a state dict is loaded; ``load_vgg`` does both.

    Args:
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the ReLUs whose feature maps are returned, ``relu1_1`` or ``relu_1_1``.

    Raises:
        ValueError: If the network or a layer is unknown.

    Example:
        >>> from pix2pixhd.models.vgg import load_vgg
        >>> features = load_vgg("random")(torch.rand(1, 3, 32, 32))
        >>> [tuple(x.shape[1:]) for x in features]
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
        # From the index in `features` at which a feature map is taken to its index in `layers`, in the network's order.
        self._taps = {c.position + 1: self.layers.index(c.relu) for c in used if c.relu in self.layers}
        self.layer_kinds = "".join(self._kind(convolution, convolution is used[-1]) for convolution in used)
        self.depth = used[-1].position + 2
        with torch.device("meta"):  # skips the initialisation and leaves the random state unchanged
            features = make_layers(cfgs[_CONFIGURATIONS[network]])
        self.features = features[: self.depth].to_empty(device="cpu").to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    def _kind(self, convolution: _Convolution, last: bool) -> str:
        tapped, pooled = convolution.relu in self.layers, convolution.pooled and not last
        if tapped:
            return TAP_POOL if pooled else TAP
        return POOL if pooled else RELU

    def convolutions(self) -> list[nn.Conv2d]:
        """Return the convolutions, in order."""
        return [layer for layer in self.features if isinstance(layer, nn.Conv2d)]

    @property
    def smallest(self) -> int:
        """Smallest height and width of images of which every pooling layer leaves a pixel."""
        pools = sum(isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) for layer in self.features)
        return 1 << pools

    def conv_stack(self) -> ConvStack:
        """Return the network as ``pix2pixhd.ops.perceptual`` takes it, with the parameters themselves, not copies."""
        layers = self.convolutions()
        return ConvStack([c.weight for c in layers], [cast(Tensor, c.bias) for c in layers], self.layer_kinds)

    def is_standard(self) -> bool:
        """Whether calling the layers computes exactly what ``conv_stack`` describes.

        This is not the case after a user has replaced, added or patched layers, or with hooks that must see an input,
        an output or a gradient.
        """
        layers = list(self.features)
        expected = [layer for kind in self.layer_kinds for layer in _KINDS[kind]]
        return (
            type(self).forward is FrozenVGG.forward
            and [type(layer) for layer in layers] == expected
            and all(map(_as_configured, layers))
            and not _has_global_hooks()
            and not any(_is_patched(module) for module in (self, self.features, *layers))
        )

    def in_network_order(self, values: Sequence[_Value]) -> list[_Value]:
        """Reorder one value per entry of ``layers`` to the order in which the network computes these layers."""
        return [values[k] for k in self._taps.values()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of images ``[N, 3, H, W]``, in the order of ``layers``."""
        feature_maps: dict[int, Tensor] = {}
        for index, layer in enumerate(self.features):
            x = layer(x)  # ReLUs work in place, on convolution outputs that nothing else reads
            if index in self._taps:
                feature_maps[self._taps[index]] = x
        return [feature_maps[k] for k in range(len(feature_maps))]


def _shapes(vgg: FrozenVGG) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in vgg.state_dict().items()}


def _as_torchvision(state: Mapping[str, Any], depth: int) -> dict[str, Tensor]:
    """Rename the entries of torchvision's VGG, with or without classifier, and of NVIDIA's ``Vgg19`` to one form."""
    renamed = {}
    for name, value in state.items():
        # NVIDIA's slices number their layers as torchvision's `features` does.
        name = re.sub(r"^slice[1-5]\.", "features.", name.removeprefix("module.").removeprefix("vgg."))
        match = re.match(r"features\.(\d+)\.", name)
        if match and int(match[1]) < depth:
            renamed[name] = value
    return renamed


def load_state(vgg: FrozenVGG, state: object, source: str) -> None:
    """Load a state dict of any of the known layouts.

    Args:
        vgg: The network.
        state: The state dict.
        source: Its name in error messages.

    Raises:
        ValueError: If it is not a state dict of this network; the message names missing and misshapen entries.
    """
    title = vgg.network.upper()
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} contains a {type(state).__name__}, expected a state dict of {title}")
    renamed, shapes = _as_torchvision(state, vgg.depth), _shapes(vgg)
    missing = [name for name in shapes if name not in renamed]
    if missing:
        raise ValueError(
            f"{source} is not a {title} state dict: {len(missing)} of {len(shapes)} entries are missing, the first is "
            f"{missing[0]}; it has {', '.join(map(str, list(state)[:3])) or 'no entries'} …; expected "
            "torchvision's names, features.0.weight and so on"
        )
    for name, shape in shapes.items():
        if not isinstance(renamed[name], Tensor) or renamed[name].shape != shape:
            found = tuple(getattr(renamed[name], "shape", ()))
            raise ValueError(
                f"{source}: {name} must have shape {tuple(shape)}, got {found}; it may belong to another network"
            )
    vgg.load_state_dict({name: renamed[name] for name in shapes})


def _random_state(vgg: FrozenVGG, seed: int = 0) -> dict[str, Tensor]:
    """He initialisation with a separate generator: reproducible, and the global random state is unchanged."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in _shapes(vgg).items():
        if name.endswith("weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(shape)
    return state


def load_vgg(
    vgg: str | pathlib.Path = "imagenet",
    network: Architecture = "vgg19",
    layers: Sequence[str] = PAPER_LAYERS,
    *,
    caller: str = "VGGLoss",
    argument: str = "vgg",
) -> FrozenVGG:
    """Build a VGG with frozen weights, up to the deepest requested layer.

    Args:
        vgg: ``"imagenet"`` for torchvision's ``IMAGENET1K_V1`` weights, which torch.hub downloads once and caches;
            ``"random"`` for seeded random weights, with a warning; otherwise the path of a state dict with
            torchvision's names (``features.0.weight``) or those of NVIDIA's ``Vgg19`` (``slice1.0.weight``).
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the ReLUs whose feature maps are returned.
        caller: Name of the class that the error messages recommend.
        argument: Name of its argument in error messages.

    Raises:
        RuntimeError: If the pretrained weights cannot be downloaded; the message names the URL and the target path.
        FileNotFoundError: If the file does not exist.
        ValueError: If the network or a layer is unknown, or the file is not a state dict of the network.

    Example:
        >>> vgg = load_vgg("random", "vgg16", ["relu1_2", "relu2_2"])
    """
    model = FrozenVGG(network, layers)
    if vgg == "imagenet":
        state = imagenet_weights(network, caller, argument)
        load_state(model, state, f"torchvision's {network.upper()}_Weights.IMAGENET1K_V1")
    elif vgg == "random":
        warn_of_random_weights(network.upper(), argument)
        load_state(model, _random_state(model), "the random state dict")
    else:
        load_state(model, weights_of_file(pathlib.Path(vgg), argument), str(vgg))
    return model
