"""The VGG perceptual loss."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd.losses.fingerprint import fingerprint, same_weights
from pix2pixhd.losses.perceptual_features import VGGFeatures
from pix2pixhd.models.vgg import PAPER_LAYERS, Architecture, FrozenVGG, check_network, load_vgg
from pix2pixhd.ops import multi_l1_loss, perceptual, reference
from pix2pixhd.ops.autograd import wider
from pix2pixhd.ops.checks import check_dense
from pix2pixhd.ops.scalars import numbers, one_number

PAPER_WEIGHTS = (1.0 / 32, 1.0 / 16, 1.0 / 8, 1.0 / 4, 1.0)
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LEAST = 16  # the deepest layers stand behind four poolings
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)

Normalization = Literal["none", "imagenet"]
Criterion = Literal["l1", "mse"]
VGGReduction = Literal["mean", "none"]


def _leave_out_vgg(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}vgg.")]:
        del state[name]


def _fill_in_vgg(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Gives strict loading what was left out when saving."""
    for name, value in cast(nn.Module, module.vgg).state_dict(prefix=f"{prefix}vgg.").items():
        state.setdefault(name, value)


def _one_of(name: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, got {value!r}")


def _check_range(input_range: Sequence[float]) -> tuple[float, float]:
    if isinstance(input_range, (str, int, float)) or len(input_range) != 2 or input_range[0] >= input_range[1]:
        raise ValueError(f"input_range must be (lowest, highest), as (-1, 1) or (0, 1), got {input_range!r}")
    return float(input_range[0]), float(input_range[1])


def _check_memory_limit(memory_limit: Any) -> int:
    number = one_number("memory_limit", memory_limit)
    if number <= 0 or not number.is_integer():  # inf and NaN are no integers
        raise ValueError(f"memory_limit must be a whole number of bytes above 0, or None, got {memory_limit}")
    return int(min(number, 2**62))  # the operators take 64 bits


class VGGLoss(nn.Module):
    """The perceptual loss of pix2pixHD: ``Σ_k w_k · mean|φ_k(fake) − φ_k(real)|`` (after arXiv 1603.08155).

    φ are VGG19's relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, the weights 1/32, 1/16, 1/8, 1/4 and 1, unless said
    otherwise.

    The VGG is frozen, so the gradient with respect to ``fake`` is computed along with the value, and only that one
    picture is kept for the backward: no activation is. The form that keeps them, which PyTorch differentiates as often
    as anybody likes, stays available as ``keep_activations=True``.

    The signature is that of NVIDIA's ``networks.VGGLoss``: ``VGGLoss(gpu_ids)(fake, real)`` works unchanged.

    The VGG follows this module's ``.to()``, has no trainable parameters, and stays out of ``state_dict()``: frozen and
    the same for everybody, it would add 50 MB to every checkpoint of a module that holds this loss.

    Args:
        gpu_ids: NVIDIA's list of GPUs: the VGG moves to the first where CUDA is available. Otherwise it goes where
            ``.to(device)`` puts this module.
        vgg: ``"imagenet"``, the path of a state dict, ``"random"`` (seeded, with a warning), see
            ``pix2pixhd.models.vgg.load_vgg``; or a module that returns a list of maps ``[N, C, h, w]``, one per
            weight, which is frozen and put in evaluation mode.
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the ReLUs that are compared, ``relu3_1`` or ``relu_3_1``; None for the paper's five.
        weights: One number per layer; None for the paper's with its layers, for 1 each with others.
        criterion: ``"l1"``, or ``"mse"`` for the mean of squared differences. The latter needs the differences of the
            compared maps until the gradient is there: 122 numbers per pixel more at the peak for the paper's layers.
        scale_weights: Weights of the picture itself, its half, its quarter and so on, each made of the one before by
            bilinear interpolation; 0 leaves one out.
        input_range: What the pictures' lowest and highest values mean, (−1, 1) or (0, 1); they are brought to (−1, 1).
        normalize: ``"none"``: the VGG sees the pictures in (−1, 1) as they are, as in the original. ``"imagenet"``:
            they are brought to ImageNet's mean and deviation first, as its weights expect.
        dtype: In which the VGG runs, ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``; None for autocast's
            type, and the VGG's own without autocast.
        reduction: ``"mean"`` over the pictures, or ``"none"`` for one number per picture.
        memory_limit: Most bytes that maps may take at a time, or None. Where the whole batch would need more, it is
            computed in groups of pictures, and a picture in bands of rows: the same value and gradient, at an extra
            cost of about 120 rows per cut. The convolutions' own working memory and copies of weights in another
            dtype come on top.
        keep_activations: Whether to leave the gradient to PyTorch, for double backward or for gradients into the VGG.
            So it is in any case for a custom module, for a VGG with hooks or changed layers, for devices without
            kernels, under ``torch.func`` transforms and forward-mode AD, and under
            ``pix2pixhd.backend("reference")``; ``memory_limit`` has no effect there.

    Raises:
        RuntimeError: If pretrained weights cannot be fetched; never falls back to random ones.
        ValueError: For an unknown option or layer, weights that do not match, or a file that is no state dict of the
            network.
        TypeError: For a string as ``gpu_ids``, or weights that are not numbers or require a gradient.
        FileNotFoundError: If ``vgg`` names no file.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import VGGLoss
        >>> criterion = VGGLoss(vgg="random")
        >>> fake = torch.zeros(1, 3, 32, 32, requires_grad=True)
        >>> criterion(fake, torch.ones(1, 3, 32, 32)).backward()
    """

    def __init__(
        self,
        gpu_ids: Sequence[int] | None = None,
        vgg: str | pathlib.Path | nn.Module = "imagenet",
        *,
        network: Architecture = "vgg19",
        layers: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        criterion: Criterion = "l1",
        scale_weights: Sequence[float] = (1.0,),
        input_range: tuple[float, float] = (-1.0, 1.0),
        normalize: Normalization = "none",
        dtype: torch.dtype | None = None,
        reduction: VGGReduction = "mean",
        memory_limit: int | None = None,
        keep_activations: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(gpu_ids, (str, pathlib.Path, nn.Module)):
            raise TypeError(f"gpu_ids must be a list of GPU numbers, got {gpu_ids!r}; did you mean vgg={gpu_ids!r}?")
        _one_of("normalize", normalize, Normalization)
        _one_of("criterion", criterion, Criterion)
        _one_of("reduction", reduction, VGGReduction)
        check_network(network)
        if dtype is not None and dtype not in _PRECISIONS:
            raise ValueError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or None, got {dtype}")
        self.scale_weights = numbers("scale_weights", scale_weights)
        if not any(self.scale_weights):
            raise ValueError(f"scale_weights must have one number per scale, not all 0, got {self.scale_weights!r}")
        own_module = isinstance(vgg, nn.Module) and not isinstance(vgg, FrozenVGG)
        if layers is not None and isinstance(vgg, nn.Module):
            raise ValueError("layers are for a network that this loss loads; a module returns the maps it returns")
        self.vgg = (
            vgg if isinstance(vgg, nn.Module) else load_vgg(vgg, network, PAPER_LAYERS if layers is None else layers)
        )
        self.vgg.requires_grad_(False).eval()
        if weights is None:
            names = tuple(self.vgg.layers) if isinstance(self.vgg, FrozenVGG) else PAPER_LAYERS
            weights = PAPER_WEIGHTS if names == PAPER_LAYERS else [1.0] * len(names)
        self.weights = numbers("weights", weights)
        if not own_module:
            self._check_map_count(len(cast(FrozenVGG, self.vgg).layers))
        self.criterion = criterion
        self.input_range = _check_range(input_range)
        self.normalize = normalize
        self.dtype = dtype
        self.reduction = reduction
        self.memory_limit = None if memory_limit is None else _check_memory_limit(memory_limit)
        self.keep_activations = keep_activations
        self.register_state_dict_post_hook(_leave_out_vgg)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_in_vgg)  # type: ignore[no-untyped-call]
        if gpu_ids and torch.cuda.is_available():
            self.to(torch.device("cuda", gpu_ids[0]))

    def train(self, mode: bool = True) -> VGGLoss:
        """The VGG stays in evaluation mode, whatever the training script's ``.train()`` reaches."""
        super().train(mode)
        self.vgg.eval()
        return self

    def forward(self, fake: Tensor, real: Tensor | VGGFeatures, mask: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            fake: Pictures ``[N, 3, H, W]`` in ``input_range``, H and W at least 16 at the smallest scale;
                ``[N, 1, H, W]`` is repeated to three channels. Their type is the VGG's, float32 unless this module was
                converted; under autocast, or with ``dtype``, any.
            real: The real pictures, of the same shape, or what ``features`` returned for them. They get no gradient.
            mask: Weights of the pixels, ``[N, 1, H, W]``, ``[1, 1, H, W]`` or ``[H, W]``, averaged to each map's size:
                the loss is the mean of weight times difference. Ones change nothing, zeros leave pixels out.

        Returns:
            A scalar; with ``reduction="none"`` one number per picture, ``[N]``. float64 for float64, else float32.

        Raises:
            TypeError: If pictures and VGG differ in type outside autocast.
            ValueError: For other shapes, pictures and VGG on different devices, a mask that requires a gradient, or a
                ``memory_limit`` that is too low.
            RuntimeError: If a parameter of the VGG requires a gradient and activations are not kept.
        """
        if fake.shape != real.shape:
            raise ValueError(f"real must have the shape of fake, {tuple(fake.shape)}, got {tuple(real.shape)}")
        if isinstance(real, VGGFeatures):
            self._check_features(real)
        fakes = self._scales("fake", fake)
        reals = real.maps if isinstance(real, VGGFeatures) else self._scales("real", real.detach())
        weight_map = None if mask is None else self._weight_map(mask, fake)
        terms = [
            self._at_scale(x, y, [scale_weight * w for w in self.weights], weight_map)
            for x, y, scale_weight in zip(fakes, reals, self.scale_weights, strict=True)
            if x is not None and y is not None
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def weighted(
        self, fake: Tensor, real: Tensor | VGGFeatures, weight: float | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """``weight`` times the loss.

        The weight is a factor of its own, not an argument of the operator: ``torch.compile`` would compile the operator
        again for every new number.
        """
        loss: Tensor = self(fake, real, mask)
        return loss * weight

    @torch.no_grad()
    def features(self, real: Tensor) -> VGGFeatures:
        """Computes what the loss needs of real pictures that come again: half of the VGG's forward is saved each time.

        Args:
            real: Pictures as ``forward`` takes them.

        Returns:
            To be passed instead of ``real``; 122 numbers per pixel for the paper's layers, 244 MiB for a picture of
            1024×512 in float32, 122 MiB with ``dtype=torch.bfloat16``. Valid as long as the pictures, the loss's
            options and the VGG's weights stay the same: other options or weights are refused. Weights that are only
            moved, copied or converted to another dtype are the same. Not noticed are changes through ``.data`` or a
            NumPy view, and under ``torch.compile`` changes of the weights after compilation.

        Raises:
            TypeError: As ``forward``.
            ValueError: As ``forward``.
        """
        maps = tuple(() if pictures is None else tuple(self._maps(pictures)) for pictures in self._scales("real", real))
        return VGGFeatures(maps, real.shape, self._identity(), fingerprint(self.vgg))

    def _identity(self) -> tuple[Any, ...]:
        vgg = self.vgg
        layers = (vgg.network, *vgg.layers) if isinstance(vgg, FrozenVGG) else (type(vgg).__name__,)
        return (*layers, self.normalize, self.input_range, tuple(weight != 0.0 for weight in self.scale_weights))

    def _check_features(self, features: VGGFeatures) -> None:
        if features.made_by != self._identity():
            raise ValueError(f"real holds features made by {features.made_by}, and this loss is {self._identity()}")
        if not same_weights(features.weights, fingerprint(self.vgg)):
            raise ValueError(
                "real holds features made with other VGG weights than this loss has now; compute them again with this "
                "loss's features()"
            )

    def _at_scale(
        self, fake: Tensor, real: Tensor | tuple[Tensor, ...], layer_weights: list[float], weight_map: Tensor | None
    ) -> Tensor:
        vgg = self.vgg
        features = None if isinstance(real, Tensor) else list(real)
        lean = not self.keep_activations and isinstance(vgg, FrozenVGG) and vgg.is_standard()
        if lean and perceptual.can_run(fake):
            vgg = cast(FrozenVGG, vgg)
            losses = perceptual.perceptual_loss(
                fake,
                real if isinstance(real, Tensor) else None,
                vgg.conv_stack(),
                vgg.in_network_order(layer_weights),
                features=None if features is None else vgg.in_network_order(features),
                weight_map=weight_map,
                squared=self.criterion == "mse",
                dtype=self.dtype,
                memory_limit=self.memory_limit,
            )
            return losses.mean() if self.reduction == "mean" else losses
        with self._precision(fake):
            if isinstance(real, Tensor):
                with torch.no_grad():
                    features = self._maps(real)
            return self._compare(self._maps(fake), cast("list[Tensor]", features), layer_weights, weight_map)

    def _compare(
        self, fake_maps: list[Tensor], real_maps: list[Tensor], layer_weights: list[float], weight_map: Tensor | None
    ) -> Tensor:
        self._check_map_count(len(fake_maps))
        if self.criterion == "l1" and self.reduction == "mean" and weight_map is None:
            return multi_l1_loss(fake_maps, real_maps, layer_weights)
        losses = reference.distances(fake_maps, real_maps, layer_weights, self.criterion == "mse", weight_map)
        return losses.mean() if self.reduction == "mean" else losses

    def _precision(self, pictures: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(pictures.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        """The VGG's maps, with a graph where one is wanted."""
        return list(self.vgg(pictures if self.dtype is None else pictures.to(torch.float32)))

    def _check_map_count(self, count: int) -> None:
        if count != len(self.weights):
            raise ValueError(f"weights must have one number per map of vgg, {count}, got {len(self.weights)}")

    def _weight_map(self, mask: Tensor, fake: Tensor) -> Tensor:
        check_dense("mask", mask)
        size = (len(fake), 1, *fake.shape[2:])
        whole = mask.view(1, 1, *mask.shape) if mask.dim() == 2 else mask
        if whole.dim() != 4 or whole.shape[1:] != size[1:] or len(whole) not in (1, len(fake)):
            raise ValueError(
                f"mask must be [N, 1, H, W], [1, 1, H, W] or [H, W] of the pictures, {size}, got {tuple(mask.shape)}"
            )
        if mask.requires_grad and torch.is_grad_enabled():
            raise ValueError("mask requires a gradient, and the loss computes none for it; pass mask.detach()")
        if mask.device != fake.device:
            raise ValueError(f"mask is on {mask.device} and fake on {fake.device}; move one to the other's with .to()")
        return whole.detach().to(wider(fake.dtype)).expand(size)

    def _scales(self, name: str, pictures: Tensor) -> list[Tensor | None]:
        """The picture in the sizes that are compared, as the VGG is to see it; None for those left out."""
        pictures = self._prepared(name, pictures)
        scales: list[Tensor | None] = []
        for level, weight in enumerate(self.scale_weights):
            if level > 0:
                pictures = F.interpolate(
                    pictures, scale_factor=0.5, mode="bilinear", align_corners=False, recompute_scale_factor=True
                )
            scales.append(pictures if weight != 0.0 else None)
        return scales

    def _prepared(self, name: str, pictures: Tensor) -> Tensor:
        check_dense(name, pictures)
        shape = tuple(pictures.shape)
        if pictures.dim() != 4 or shape[1] not in (1, 3):
            raise ValueError(f"{name} must be pictures [N, 3, H, W] or [N, 1, H, W], got {shape}")
        least = _LEAST << (len(self.scale_weights) - 1)
        if min(shape[2:]) < least:
            scales = f" for {len(self.scale_weights)} scales" if len(self.scale_weights) > 1 else ""
            raise ValueError(
                f"{name} must be at least {least}x{least}{scales}, got {shape[2]}x{shape[3]}; enlarge the pictures"
            )
        self._check_against_vgg(name, pictures)
        if shape[1] == 1:
            pictures = pictures.expand(-1, 3, -1, -1)
        low, high = self.input_range
        if self.normalize == "imagenet":
            return self._normalized((pictures.to(self._wider(pictures)) - low) / (high - low))
        if (low, high) != (-1.0, 1.0):
            pictures = (pictures - low) * (2.0 / (high - low)) - 1.0
        return pictures

    @staticmethod
    def _normalized(pictures: Tensor) -> Tensor:
        """ImageNet's normalization of images in [0, 1].

        Numbers instead of buffers: ``DistributedDataParallel`` broadcasts buffers in every forward.
        """
        red_green_blue = zip(pictures.unbind(1), _MEAN, _STD, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in red_green_blue], dim=1)

    def _wider(self, pictures: Tensor) -> torch.dtype:
        """The dtype of the pictures or that of the VGG, whichever is wider: autocast's half-precision pictures are
        normalized in float32.
        """
        parameter = next(self.vgg.parameters(), None)
        return torch.promote_types(pictures.dtype, torch.float32 if parameter is None else parameter.dtype)

    def _check_against_vgg(self, name: str, pictures: Tensor) -> None:
        parameter = next(self.vgg.parameters(), None)
        if parameter is None:
            return
        if parameter.device != pictures.device:
            raise ValueError(
                f"{name} is on {pictures.device} and the VGG on {parameter.device}; move the loss: "
                f"VGGLoss(...).to({str(pictures.device)!r})"
            )
        converts = self.dtype is not None or torch.is_autocast_enabled(pictures.device.type)
        if parameter.dtype != pictures.dtype and not (converts and pictures.is_floating_point()):
            raise TypeError(
                f"{name} is {pictures.dtype} and the VGG {parameter.dtype}; convert the pictures, convert the loss "
                "(VGGLoss(...).to(dtype)), or use autocast"
            )

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        names = (
            "weights", "criterion", "scale_weights", "input_range", "normalize", "dtype", "reduction", "memory_limit"
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
