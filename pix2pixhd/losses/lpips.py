"""LPIPS, the learned perceptual metric."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.losses.distances.normalized import LPIPSDistance
from pix2pixhd.losses.fingerprint import fingerprint
from pix2pixhd.losses.frozen_gradient import Evaluation, Term
from pix2pixhd.losses.frozen_module import OperatorLoss
from pix2pixhd.losses.perceptual_features import Identity, VGGFeatures, check_features, check_pair, same_batch
from pix2pixhd.losses.perceptual_inputs import RangeCheck, check_against_network, check_size, pixel_weights
from pix2pixhd.losses.perceptual_options import check_compute_dtype, check_memory_limit
from pix2pixhd.losses.taps import feature_maps
from pix2pixhd.models.lpips_trunks import (
    TRUNKS,
    Trunk,
    TrunkName,
    linear_file,
    load_trunk,
    to_lpips_names,
    to_own_names,
)
from pix2pixhd.models.vgg import FrozenVGG
from pix2pixhd.models.weights import check_file, read_weights
from pix2pixhd.ops import frozen_features, perceptual, reference
from pix2pixhd.ops.autograd import wider

__all__ = ["LPIPS"]

_VERSIONS = ("0.1", "0.0")


class _Scaling(nn.Module):
    """Normalisation of images in [−1, 1], with the buffers of the lpips package."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class _Linear(nn.Module):
    """Weights of the channels of one feature map, a 1×1 convolution with the lpips package's parameter name."""

    def __init__(self, channels: int, dropout: bool) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, 1, 1, bias=False)
        self.model = nn.Sequential(nn.Dropout(), convolution) if dropout else nn.Sequential(convolution)

    @property
    def weight(self) -> Tensor:
        """The weights ``[C]``."""
        return cast(nn.Conv2d, self.model[-1]).weight.view(-1)

    @property
    def drops(self) -> bool:
        """Whether channels are dropped at random."""
        return self.training and isinstance(self.model[0], nn.Dropout)


def _rename_saved(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    renamed = to_lpips_names(state, cast(LPIPS, module).pnet_type, f"{prefix}net.")
    state.clear()
    state.update(renamed)


def _rename_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    renamed = to_own_names(state, cast(LPIPS, module).pnet_type, f"{prefix}net.")
    state.clear()
    state.update(renamed)


class LPIPS(OperatorLoss):
    """Learned perceptual metric, ``Σ_k mean_p Σ_c w_k[c] · (u_k[c, p] − v_k[c, p])²`` (arXiv 1801.03924).

    ``u_k`` and ``v_k`` are feature maps of both images, divided at every pixel by their norm over the channels;
    ``w_k`` are learned weights. Names, arguments, results and the state dict are those of the ``lpips`` package, so
    that ``LPIPS`` replaces ``lpips.LPIPS``. Nothing is printed.

    With frozen weights, the gradient with respect to an image is computed together with the value, and only the
    gradient is saved for backward, in the size of the image. If both images require a gradient, the network runs
    twice. Autograd saves the activations, as in the lpips package, for ``spatial=True``, ``retPerLayer=True``, dropout,
    weights that require a gradient, ``keep_activations=True``, and where ``FrozenFeatureLoss`` does so. Gradients are
    finite where a feature vector is zero.

    VGG16 runs in fused operators, AlexNet, SqueezeNet and modules as in ``FrozenFeatureLoss``.

    Args:
        pretrained: Whether the linear layers are loaded, or random.
        net: ``"vgg"`` (VGG16), ``"alex"`` (AlexNet) or ``"squeeze"`` (SqueezeNet 1.1).
        version: ``"0.1"``, or ``"0.0"``, which does not normalise the images.
        lpips: Whether the channels have learned weights. Without them all weights are 1.
        spatial: Whether to return a map ``[N, 1, H, W]`` instead of its mean.
        pnet_rand: Whether the network has random weights, for tests; short for ``trunk="random"``.
        pnet_tune: Whether the network's weights require a gradient.
        use_dropout: Whether the linear layers have dropout, which is active in training mode.
        model_path: Path of the linear layers' weights. None for the file of the installed lpips package, or of
            torchmetrics, which has the weights of version 0.1.
        eval_mode: Whether the linear layers are frozen and stay in evaluation mode, also when a surrounding module is
            set to training mode. Otherwise they start in training mode and can be trained.
        verbose: Accepted for compatibility, without effect.
        trunk: Weights of the network: ``"imagenet"``, a path, or ``"random"``, see ``load_trunk``. Alternatively a
            module that returns the feature maps as a list.
        dtype: As in ``VGGLoss``.
        memory_limit: As in ``VGGLoss`` for VGG16. For other networks the batch is split into groups of images, but
            images are not split.
        keep_activations: As in ``VGGLoss``.

    Raises:
        RuntimeError: If pretrained weights are not found or cannot be downloaded. There is no fallback to random ones.
        ValueError: If an option is unknown or a file does not fit the network.
        FileNotFoundError: If a path does not exist.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import LPIPS
        >>> metric = LPIPS(net="vgg", pretrained=False, trunk="random")
        >>> a, b = torch.zeros(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32) * 2 - 1
        >>> metric(a, b).shape
        torch.Size([2, 1, 1, 1])
        >>> metric(a, b).mean().backward()
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: TrunkName | Literal["vgg16"] = "alex",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | pathlib.Path | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        trunk: str | pathlib.Path | nn.Module | None = None,
        dtype: torch.dtype | None = None,
        memory_limit: int | None = None,
        keep_activations: bool = False,
    ) -> None:
        super().__init__()
        if net == "vgg16":  # the package's other name
            net = "vgg"
        if net not in TRUNKS:
            raise ValueError(f"net must be {', '.join(TRUNKS)}, got {net!r}")
        if version not in _VERSIONS:
            raise ValueError(f"version must be {' or '.join(_VERSIONS)}, got {version!r}")
        self.pnet_type, self.pnet_tune, self.pnet_rand = net, pnet_tune, pnet_rand
        self.version, self.lpips, self.spatial, self.eval_mode = version, lpips, spatial, eval_mode
        check_compute_dtype(dtype)
        self.dtype = dtype
        self.memory_limit = check_memory_limit(memory_limit)
        self.keep_activations = keep_activations
        self.chns, self.L = list(TRUNKS[net].channels), len(TRUNKS[net].channels)
        self.scaling_layer = _Scaling()
        if trunk is None:
            trunk = "random" if pnet_rand else "imagenet"
        self.net = trunk if isinstance(trunk, nn.Module) else load_trunk(net, trunk)
        self.net.requires_grad_(pnet_tune)
        if lpips:
            for k, channels in enumerate(self.chns):
                self.add_module(f"lin{k}", _Linear(channels, use_dropout))
            self.lins = nn.ModuleList(cast(nn.Module, getattr(self, f"lin{k}")) for k in range(self.L))
            if pretrained:
                self._load_linear(pathlib.Path(model_path) if model_path else linear_file(net, version))
            self.lins.requires_grad_(not eval_mode)
        self._range_check = RangeCheck()
        self._register()
        if isinstance(self.net, (FrozenVGG, Trunk)):
            self.register_state_dict_post_hook(_rename_saved)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_rename_loaded)  # type: ignore[no-untyped-call]
        self.train(not eval_mode)

    def _load_linear(self, path: pathlib.Path) -> None:
        check_file(path, "model_path", "pass the weights of the linear layers")
        try:
            state = read_weights(path)
        except ValueError as error:
            raise ValueError(f"model_path: {path} cannot be read as a state dict: {error}") from error
        for k, layer in enumerate(self.lins):
            weight = cast(nn.Conv2d, cast(_Linear, layer).model[-1]).weight
            # A layer without dropout has another index than in the file.
            found = state.get(f"lin{k}.model.1.weight") if isinstance(state, Mapping) else None
            if not isinstance(found, Tensor) or found.shape != weight.shape:
                raise ValueError(
                    f"model_path: {path} is not a state dict of LPIPS's linear layers for net={self.pnet_type!r}: "
                    f"lin{k}.model.1.weight must have shape {tuple(weight.shape)}, got "
                    f"{tuple(found.shape) if isinstance(found, Tensor) else 'none'}"
                )
            with torch.no_grad():
                weight.copy_(found)

    def train(self, mode: bool = True) -> LPIPS:
        """Sets the mode of the linear layers, unless ``eval_mode`` was set. The network stays in evaluation mode."""
        super().train(mode and not self.eval_mode)
        self.net.eval()
        return self

    def forward(
        self,
        in0: Tensor,
        in1: Tensor | VGGFeatures,
        retPerLayer: bool = False,
        normalize: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """Computes the distance.

        Args:
            in0: Images ``[N, 3, H, W]`` in [−1, 1], or grayscale images ``[N, 1, H, W]``, which are repeated to three
                channels. H and W must be at least 16 for VGG, 17 for SqueezeNet and 31 for AlexNet. Gradients flow to
                both images.
            in1: Images of the same shape, or their features from ``features``. A batch of one image is compared with
                every image of the other batch.
            retPerLayer: Whether to return the distances of the layers too.
            normalize: Whether the images are in [0, 1].
            mask: Pixel weights, as in ``VGGLoss``.

        Returns:
            One value per image, ``[N, 1, 1, 1]``, or a map ``[N, 1, H, W]`` with ``spatial=True``. With
            ``retPerLayer``, this and the list of the values of each layer.

        Raises:
            TypeError: If images and network differ in dtype outside autocast.
            ValueError: If the shapes or devices differ, or the images are too small.
        """
        check_pair("in0", in0, "in1", in1, VGGFeatures, broadcast=True)
        in0, in1 = same_batch(in0, in1)
        x = self._prepared("in0", in0, normalize)
        weight_map = None if mask is None else pixel_weights(mask, in0)
        if isinstance(in1, VGGFeatures):
            check_features("in1", in1, self._identity(normalize), self.net, "network")
            maps: list[Tensor] | None = list(in1.maps[0])
            other = None
        else:
            maps, other = None, self._prepared("in1", in1, normalize)
        losses = None if retPerLayer else self._lean_losses(x)
        if losses is None:
            return self._plain(x, other, maps, weight_map, retPerLayer)
        if other is None or not (torch.is_grad_enabled() and other.requires_grad):
            return losses(x, other, maps, weight_map).view(-1, 1, 1, 1)
        values = losses(other, x.detach(), None, weight_map)  # the distance is symmetric
        if x.requires_grad:
            same = losses(x, other.detach(), None, weight_map)
            values = values + (same - same.detach())
        return values.view(-1, 1, 1, 1)

    @torch.no_grad()
    def features(self, images: Tensor, normalize: bool = False) -> VGGFeatures:
        """Precomputes the features of images that are compared repeatedly, to be passed as ``in1``.

        For VGG they hold 122 values per pixel.
        """
        maps = tuple(self._maps(self._prepared("images", images, normalize)))
        return VGGFeatures((maps,), images.shape, self._identity(normalize), fingerprint(self.net))

    def _identity(self, normalize: bool) -> Identity:
        return ("loss", "LPIPS"), ("net", self.pnet_type), ("version", self.version), ("normalize", normalize)

    def _linear_weights(self, channels: Sequence[int] = ()) -> list[Tensor]:
        """Returns the weights of the channels. Without learned weights they are ones for these numbers of channels."""
        if self.lpips:
            return [cast(_Linear, layer).weight for layer in self.lins]
        like = self.scaling_layer.shift
        return [torch.ones(count, device=like.device, dtype=like.dtype) for count in channels]

    def _lean_losses(self, x: Tensor) -> Callable[..., Tensor] | None:
        """Returns the function that computes the losses without keeping activations, or None if none can."""
        trained = any(
            p.requires_grad for p in (*self.net.parameters(), *(self.lins.parameters() if self.lpips else ()))
        )
        dropout = self.lpips and any(cast(_Linear, layer).drops for layer in self.lins)
        if self.spatial or self.keep_activations or trained or dropout:
            return None
        if isinstance(self.net, FrozenVGG) and self.net.is_standard() and perceptual.can_run(x):
            return self._fused
        return self._general if frozen_features.can_run() else None

    def _general(self, x: Tensor, y: Tensor | None, maps: list[Tensor] | None, weight_map: Tensor | None) -> Tensor:
        return self._through_operator(self.net, x, y, maps or (), weight_map)

    def evaluation(self) -> Evaluation:
        """Returns how the loss of a network other than the standard VGG16 is evaluated."""
        return Evaluation(self.net, None, self._terms, memory_limit=self.memory_limit)

    def _terms(self, count: int) -> list[Term]:
        self._check_count(count)
        linear = self._linear_weights() if self.lpips else [None] * count
        return [Term(k, LPIPSDistance(weights), 1.0) for k, weights in enumerate(linear)]

    def _check_count(self, count: int) -> None:
        if count != self.L:
            raise ValueError(f"trunk must return {self.L} feature maps for net={self.pnet_type!r}, got {count}")

    def _fused(self, x: Tensor, y: Tensor | None, maps: list[Tensor] | None, weight_map: Tensor | None) -> Tensor:
        stack = cast(FrozenVGG, self.net).conv_stack()
        linear = self._linear_weights(stack.tapped_channels)
        return perceptual.perceptual_loss(
            x,
            y,
            stack,
            [1.0] * self.L,
            features=maps,
            weight_map=weight_map,
            distance="lpips",
            linear=[weights.detach() for weights in linear],
            dtype=self.dtype,
            memory_limit=self.memory_limit,
        )

    def _maps(self, x: Tensor) -> list[Tensor]:
        if self.dtype is None:
            return feature_maps(self.net, None, x)
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return feature_maps(self.net, None, x.to(torch.float32))

    def _plain(
        self,
        x: Tensor,
        y: Tensor | None,
        maps: Sequence[Tensor] | None,
        weight_map: Tensor | None,
        per_layer: bool,
    ) -> Any:
        targets = self._maps(y) if y is not None else cast("Sequence[Tensor]", maps)
        inputs = self._maps(x)
        self._check_count(len(inputs))
        linear, layers = self._linear_weights([x.shape[1] for x in inputs]), []
        for k, (a, b) in enumerate(zip(inputs, targets, strict=True)):
            a, b = a.to(wider(a.dtype)), b.to(wider(b.dtype))
            LPIPSDistance(linear[k]).check_channels(a, 1)
            if self.lpips and cast(_Linear, self.lins[k]).drops:
                difference = reference.unit_normalised(a) - reference.unit_normalised(b)
                found = cast(_Linear, self.lins[k]).model(difference.square())
            else:
                found = reference.lpips_map(a, b, linear[k])
            if weight_map is not None:
                found = found * F.adaptive_avg_pool2d(weight_map.to(found.dtype), found.shape[2:])
            if self.spatial:
                layers.append(F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False))
            else:
                layers.append(found.mean((2, 3), keepdim=True))
        total = layers[0]
        for layer in layers[1:]:
            total = total + layer
        return (total, layers) if per_layer else total

    def _prepared(self, name: str, images: Tensor, normalize: bool) -> Tensor:
        """Returns the network's input."""
        check_against_network(name, images, self.net, TRUNKS[self.pnet_type].builder, self, self.dtype)
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"{name} must be images [N, 3, H, W] or [N, 1, H, W], got {tuple(images.shape)}")
        check_size(name, images, TRUNKS[self.pnet_type].smallest, f" for net={self.pnet_type!r}")
        low = 0.0 if normalize else -1.0
        remedy = "pass normalize=False" if normalize else "scale them to [-1, 1], or pass normalize=True for [0, 1]"
        self._range_check(name, images, low, 1.0, remedy)
        if normalize:
            images = 2 * images - 1
        images = images.expand(-1, 3, -1, -1)
        return self.scaling_layer(images) if self.version == "0.1" else images

    def extra_repr(self) -> str:
        """Formats the options for ``repr``."""
        names = ("pnet_type", "version", "lpips", "spatial", "dtype", "memory_limit", "keep_activations")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
