"""VGG perceptual loss."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pix2pixhd.losses.distances import make as make_distance
from pix2pixhd.losses.fingerprint import fingerprint
from pix2pixhd.losses.frozen_gradient import Evaluation, Term
from pix2pixhd.losses.frozen_module import FrozenNetworkLoss
from pix2pixhd.losses.perceptual_features import Identity, VGGFeatures, check_features, check_pair
from pix2pixhd.losses.perceptual_inputs import (
    RangeCheck,
    at_scales,
    check_against_network,
    check_size,
    pixel_weights,
    scaled_to_network,
)
from pix2pixhd.losses.perceptual_options import (
    ImageReduction,
    Normalization,
    check_compute_dtype,
    check_memory_limit,
    check_one_of,
    check_range,
    check_scale_weights,
)
from pix2pixhd.losses.taps import feature_maps
from pix2pixhd.models.vgg import PAPER_LAYERS, Architecture, FrozenVGG, check_network, load_vgg
from pix2pixhd.ops import frozen_features, multi_l1_loss, perceptual, reference
from pix2pixhd.ops.scalars import numbers

PAPER_WEIGHTS = (1.0 / 32, 1.0 / 16, 1.0 / 8, 1.0 / 4, 1.0)
_MIN_SIZE = 16  # the deepest layers follow four pooling layers

Criterion = Literal["l1", "mse"]
VGGReduction = ImageReduction


class VGGLoss(FrozenNetworkLoss):
    """Perceptual loss of pix2pixHD: ``Σ_k w_k · mean|φ_k(fake) − φ_k(real)|`` (after arXiv 1603.08155).

    By default the layers φ are relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of VGG19, with the weights 1/32, 1/16,
    1/8, 1/4 and 1.

    The VGG is frozen. The gradient with respect to ``fake`` is therefore computed together with the value. Only this
    gradient, which has the size of the image, is saved for backward; activations are not. With
    ``keep_activations=True`` autograd saves the activations, which allows derivatives of any order.

    The signature matches NVIDIA's ``networks.VGGLoss``: ``VGGLoss(gpu_ids)(fake, real)`` works unchanged.

    The VGG is moved by this module's ``.to()``, has no trainable parameters, and is not part of ``state_dict()``: its
    weights never change and would add 50 MB to every checkpoint of a module that contains this loss.

    Args:
        gpu_ids: List of GPU indices, as in NVIDIA's code. If CUDA is available, the loss is moved to the first one. If
            omitted, move the loss with ``.to(device)``.
        vgg: ``"imagenet"``, the path of a state dict, or ``"random"`` (seeded, with a warning); see
            ``pix2pixhd.models.vgg.load_vgg``. Alternatively a module that returns a list of feature maps
            ``[N, C, h, w]``, one per weight; it is frozen and set to evaluation mode.
        network: ``"vgg19"`` or ``"vgg16"``.
        layers: Names of the compared ReLU layers, written ``relu3_1`` or ``relu_3_1``. None selects the paper's five.
        weights: Layer weights, one number per layer. None selects the paper's weights for the paper's layers and
            for a custom module, and 1 per layer otherwise.
        criterion: ``"l1"``, or ``"mse"`` for the mean squared difference. ``"mse"`` stores the differences of the
            compared feature maps until the gradient is computed. For the paper's layers this adds 122 values per pixel
            to the peak memory.
        scale_weights: Weights of the image at full, half, quarter resolution and so on. Each scale is computed from the
            previous one by bilinear interpolation. A weight of 0 skips its scale.
        input_range: Lowest and highest image value, for example (−1, 1) or (0, 1). Images are rescaled to (−1, 1). The
            first call warns if the values contradict the range.
        normalize: ``"none"`` passes images in (−1, 1) to the VGG, as in the original code. ``"imagenet"`` normalizes
            them with ImageNet's mean and standard deviation, which the pretrained weights expect.
        dtype: Compute dtype of the VGG: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``. None selects the
            autocast dtype, or the dtype of the VGG outside autocast.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value per image.
        memory_limit: Maximum size in bytes of the feature maps that are allocated at a time, or None. If the batch
            needs more, it is processed in groups of images, and a single image in bands of rows. Value and gradient are
            the same; each cut costs about 120 additional rows. Workspaces of the convolutions and weight copies in
            another dtype are not counted.
            For a custom module, see ``FrozenFeatureLoss``, which splits the batch only.
        keep_activations: Whether autograd computes the gradient, for double backward or gradients of the VGG. Autograd
            is always used for ``torch.func`` transforms, forward-mode AD, ``torch.export`` and
            ``pix2pixhd.backend("reference")``. ``memory_limit`` has no effect in these cases.

    Raises:
        RuntimeError: If pretrained weights cannot be downloaded. There is no fallback to random weights.
        ValueError: If an option or layer is unknown, the number of weights does not match, or the file is not a state
            dict of the network.
        TypeError: If ``gpu_ids`` is a string, or weights are not numbers or require a gradient.
        FileNotFoundError: If the file ``vgg`` does not exist.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import VGGLoss
        >>> criterion = VGGLoss(vgg="random")
        >>> fake = torch.zeros(1, 3, 32, 32, requires_grad=True)
        >>> criterion(fake, torch.ones(1, 3, 32, 32)).backward()
    """

    network_name = "vgg"

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
        check_one_of("normalize", normalize, Normalization)
        check_one_of("criterion", criterion, Criterion)
        check_one_of("reduction", reduction, VGGReduction)
        check_network(network)
        check_compute_dtype(dtype)
        self.scale_weights = check_scale_weights(scale_weights)
        own_module = isinstance(vgg, nn.Module) and not isinstance(vgg, FrozenVGG)
        if layers is not None and isinstance(vgg, nn.Module):
            raise ValueError("layers is only for a network that this loss loads; a module returns its own feature maps")
        self.vgg: nn.Module
        self._own(
            vgg if isinstance(vgg, nn.Module) else load_vgg(vgg, network, PAPER_LAYERS if layers is None else layers)
        )
        if weights is None:
            names = tuple(self.vgg.layers) if isinstance(self.vgg, FrozenVGG) else PAPER_LAYERS
            weights = PAPER_WEIGHTS if names == PAPER_LAYERS else [1.0] * len(names)
        self.weights = numbers("weights", weights)
        if not own_module:
            self._check_map_count(len(cast(FrozenVGG, self.vgg).layers))
        self.criterion = criterion
        self.input_range = check_range(input_range)
        self.normalize = normalize
        self.dtype = dtype
        self.reduction = reduction
        self.memory_limit = check_memory_limit(memory_limit)
        self.keep_activations = keep_activations
        self._range_check = RangeCheck()
        if gpu_ids and torch.cuda.is_available():
            self.to(torch.device("cuda", gpu_ids[0]))

    def forward(self, fake: Tensor, real: Tensor | VGGFeatures, mask: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            fake: Generated images ``[N, 3, H, W]`` in ``input_range``. H and W must be at least 16 at the smallest
                scale. Grayscale images ``[N, 1, H, W]`` are repeated to three channels. The dtype must be that of the
                VGG, float32 by default; under autocast, or if ``dtype`` is set, any floating-point dtype is accepted.
            real: Real images of the same shape, or their features from ``features``. They receive no gradient.
            mask: Pixel weights ``[N, 1, H, W]``, ``[1, 1, H, W]`` or ``[H, W]``, averaged to the size of each feature
                map. The loss is the mean of weight times difference. A mask of ones has no effect; zeros exclude
                pixels.

        Returns:
            A scalar, or one value per image, ``[N]``, with ``reduction="none"``. The dtype is float64 for float64
            inputs and float32 otherwise.

        Raises:
            TypeError: If images and VGG differ in dtype outside autocast.
            ValueError: If shapes do not match, images and VGG are on different devices, the mask requires a gradient,
                or ``memory_limit`` is too low.
            RuntimeError: If a parameter of the VGG requires a gradient and ``keep_activations`` is False.
        """
        check_pair("fake", fake, "real", real, VGGFeatures)
        if isinstance(real, VGGFeatures):
            check_features("real", real, self._identity(), self.vgg)
        fakes = self._scales("fake", fake)
        reals = real.maps if isinstance(real, VGGFeatures) else self._scales("real", real.detach())
        weight_map = None if mask is None else pixel_weights(mask, fake)
        terms = [
            self._at_scale(x, y, scale_weight, weight_map)
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
        """Computes ``weight`` times the loss.

        The weight multiplies the result and is not an argument of the operator, because ``torch.compile`` would
        recompile the operator for every new value.
        """
        loss: Tensor = self(fake, real, mask)
        return loss * weight

    @torch.no_grad()
    def features(self, real: Tensor) -> VGGFeatures:
        """Precomputes the VGG features of real images that are used repeatedly.

        Every later call of the loss with these features saves half of the VGG's forward pass.

        Args:
            real: Real images, as for ``forward``.

        Returns:
            Features to pass instead of ``real``. For the paper's layers they hold 122 values per pixel: 244 MiB for a
            1024×512 image in float32, and 122 MiB with ``dtype=torch.bfloat16``. They are valid for the same images,
            loss options and VGG weights; other options or weights are rejected. Weights that were moved, copied or
            converted to another dtype count as the same. Changes through ``.data`` or a NumPy view are not detected,
            nor are changes of the weights after compilation with ``torch.compile``.

        Raises:
            TypeError: As for ``forward``.
            ValueError: As for ``forward``.
        """
        scales = self._scales("real", real)
        maps = tuple(() if images is None else tuple(self._feature_maps(images)) for images in scales)
        return VGGFeatures(maps, real.shape, self._identity(), fingerprint(self.vgg))

    def _identity(self) -> Identity:
        vgg = self.vgg
        return (
            ("network", vgg.network if isinstance(vgg, FrozenVGG) else type(vgg).__name__),
            ("layers", tuple(vgg.layers) if isinstance(vgg, FrozenVGG) else None),
            ("normalize", self.normalize),
            ("input_range", self.input_range),
            ("used_scales", tuple(weight != 0.0 for weight in self.scale_weights)),
        )

    def _at_scale(
        self, fake: Tensor, real: Tensor | tuple[Tensor, ...], scale_weight: float, weight_map: Tensor | None
    ) -> Tensor:
        vgg, layer_weights = self.vgg, [scale_weight * weight for weight in self.weights]
        features = None if isinstance(real, Tensor) else list(real)
        fused = not self.keep_activations and isinstance(vgg, FrozenVGG) and vgg.is_standard()
        if fused and perceptual.can_run(fake):
            vgg = cast(FrozenVGG, vgg)
            losses = perceptual.perceptual_loss(
                fake,
                real if isinstance(real, Tensor) else None,
                vgg.conv_stack(),
                vgg.in_network_order(layer_weights),
                features=None if features is None else vgg.in_network_order(features),
                weight_map=weight_map,
                distance=self.criterion,
                dtype=self.dtype,
                memory_limit=self.memory_limit,
            )
            return losses.mean() if self.reduction == "mean" else losses
        if not self.keep_activations and frozen_features.can_run():
            losses = scale_weight * self._general_losses(fake, real, weight_map)
            return losses.mean() if self.reduction == "mean" else losses
        with self._precision(fake):
            if isinstance(real, Tensor):
                with torch.no_grad():
                    features = self._feature_maps(real)
            return self._compare(self._feature_maps(fake), cast("list[Tensor]", features), layer_weights, weight_map)

    def _general_losses(self, fake: Tensor, real: Tensor | tuple[Tensor, ...], weight_map: Tensor | None) -> Tensor:
        """Evaluates any network without keeping its activations, as ``FrozenFeatureLoss`` does."""
        targets = real if isinstance(real, tuple) else ()
        images = real if isinstance(real, Tensor) else None
        return self._through_operator(self.vgg, fake, images, targets, weight_map)

    def evaluation(self) -> Evaluation:
        """Returns how the loss of a network other than the standard VGG is evaluated."""
        return Evaluation(self.vgg, None, self._terms, memory_limit=self.memory_limit)

    def _terms(self, count: int) -> list[Term]:
        self._check_map_count(count)
        return [Term(k, make_distance(self.criterion), weight) for k, weight in enumerate(self.weights)]

    def _compare(
        self, fake_maps: list[Tensor], real_maps: list[Tensor], layer_weights: list[float], weight_map: Tensor | None
    ) -> Tensor:
        self._check_map_count(len(fake_maps))
        if self.criterion == "l1" and self.reduction == "mean" and weight_map is None:
            return multi_l1_loss(fake_maps, real_maps, layer_weights)
        losses = reference.distances(fake_maps, real_maps, layer_weights, self.criterion == "mse", weight_map)
        return losses.mean() if self.reduction == "mean" else losses

    def _feature_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps of the VGG, with a graph if a gradient is required."""
        return feature_maps(self.vgg, None, images if self.dtype is None else images.to(torch.float32))

    def _check_map_count(self, count: int) -> None:
        if count != len(self.weights):
            raise ValueError(f"weights must have one number per feature map of vgg, {count}, got {len(self.weights)}")

    def _scales(self, name: str, images: Tensor) -> list[Tensor | None]:
        """Returns the VGG inputs at each scale, or None for scales of weight 0."""
        return at_scales(self._prepared(name, images), self.scale_weights)

    def _prepared(self, name: str, images: Tensor) -> Tensor:
        dtype = check_against_network(name, images, self.vgg, "VGG", self, self.dtype)
        shape = tuple(images.shape)
        if images.dim() != 4 or shape[1] not in (1, 3):
            raise ValueError(f"{name} must be images [N, 3, H, W] or [N, 1, H, W], got {shape}")
        scales = len(self.scale_weights)
        check_size(name, images, _MIN_SIZE << (scales - 1), f" for {scales} scales" if scales > 1 else "")
        self._range_check(name, images, *self.input_range, "pass input_range=({low}, {high})")
        if shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return scaled_to_network(images, self.input_range, self.normalize, dtype)

    def extra_repr(self) -> str:
        """Formats the options for ``repr``."""
        names = (
            "weights", "criterion", "scale_weights", "input_range", "normalize", "dtype", "reduction", "memory_limit"
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
