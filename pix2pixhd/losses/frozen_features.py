"""Loss on the features of any frozen network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pix2pixhd.losses.distances import Distance, DistanceSpec, make_all
from pix2pixhd.losses.fingerprint import fingerprint
from pix2pixhd.losses.frozen_gradient import Evaluation, Term
from pix2pixhd.losses.frozen_module import FrozenNetworkLoss
from pix2pixhd.losses.perceptual_features import FrozenFeatures, Identity, check_features, check_pair
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
from pix2pixhd.losses.taps import check_taps
from pix2pixhd.ops import frozen_features
from pix2pixhd.ops.scalars import numbers


class FrozenFeatureLoss(FrozenNetworkLoss):
    """Loss on features φ of a frozen network: ``Σ_k w_k · distance_k(φ_k(fake), φ_k(real))``.

    This is the perceptual loss of arXiv 1603.08155 for any network: a dilated ResNet, ConvNeXt, ViT, DINO, a face or
    speech recognizer. The network is frozen. The gradient with respect to ``fake`` is therefore computed together with
    the value, and only this gradient, which has the size of the image, is saved for backward; activations are not.

    The network is moved by this module's ``.to()``, is set to evaluation mode, and is not part of ``state_dict()``.

    Distances of two feature maps, as a mean over their N images:

    * ``"l1"``: ``mean|x − y|``.
    * ``"mse"``: ``mean (x − y)²``.
    * ``"cosine"``: mean over the positions of ``1 − cos(x, y)`` over the channels; the cosine of a zero vector is 0.
    * ``"lpips"``: mean over the positions of ``Σ_c l_c (x̂_c − ŷ_c)²`` with ``x̂ = x / (‖x‖ + 1e-10)`` over the channels
      (arXiv 1801.03924). The gradient at zero vectors is 0.
    * ``"gram"``: mean squared difference of the Gram matrices ``F Fᵀ / (C · positions)``, as in ``StyleLoss``.
    * A function ``(fake_map, real_map) -> value``, which returns a scalar or one value per image ``[N]``. It receives
      float32 or float64, and is called for each image if it returns a scalar.
    * A ``pix2pixhd.losses.distances.Distance``.

    Args:
        network: Any module that takes ``[N, ...]`` and treats the images of the batch independently.
        taps: Names of the modules whose outputs are compared (``network.named_modules()``), or None for the network's
            own outputs: a tensor, or a list, tuple or dict of tensors. Outputs are ``[N, C, h, w]``, ``[N, L, C]`` or
            of any other shape from two dimensions. Of a tuple, as of attention layers, the first entry is compared.
        distance: The distance, or a list with one per feature map.
        weights: One number per feature map; None for 1.
        linear: Channel weights of the distance ``"lpips"``: one tensor of C numbers per feature map. They follow
            ``.to()`` and are not part of ``state_dict()``.
        channel_dim: Dimension of the channels. None selects 1 for four and more dimensions, and the last one for tokens
            ``[N, L, C]`` and vectors ``[N, C]``. Networks whose feature maps are ``[N, h, w, C]`` need −1.
        scale_weights: Weights of the image at full, half, quarter resolution and so on. A weight of 0 skips its scale.
        input_range: Lowest and highest image value. Images are rescaled to (−1, 1). The default changes nothing. With
            another range, or with ``normalize="imagenet"``, the first call warns if the values contradict the range.
        normalize: ``"none"``, or ``"imagenet"`` to normalize with ImageNet's mean and standard deviation. Grayscale
            images are then repeated to three channels.
        dtype: Compute dtype of the network: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``. None selects
            the autocast dtype, or the dtype of the network outside autocast. Distances are computed in float32.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value per image.
        memory_limit: Maximum number of bytes of feature maps and activations at a time, or None. If the batch needs
            more, it is processed in groups of images. The first call with each image size evaluates one image to
            measure what it needs. Workspaces of the convolutions are not counted.
        checkpoint: Whether activations inside the blocks of ``nn.Sequential`` and ``nn.ModuleList`` containers, and
            between taps, are recomputed for the gradient. This lowers the peak memory, for one more forward pass.
        keep_activations: Whether autograd computes the gradient, for double backward or gradients of the network.
            Autograd is always used for ``torch.func`` transforms, forward-mode AD, ``torch.export`` and
            ``pix2pixhd.backend("reference")``. ``memory_limit`` has no effect in these cases.

    Raises:
        TypeError: If ``network`` is not a module, or an option has the wrong type.
        ValueError: If an option, tap or distance is unknown, or the numbers of taps, weights and distances differ.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import FrozenFeatureLoss
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(8, 16, 3, 2)
        ... )
        >>> criterion = FrozenFeatureLoss(network, taps=["1", "2"], distance="cosine", weights=[0.5, 1.0])
        >>> fake = torch.zeros(2, 3, 32, 32, requires_grad=True)
        >>> criterion(fake, torch.ones(2, 3, 32, 32)).backward()
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str] | None = None,
        distance: DistanceSpec | Sequence[DistanceSpec] = "l1",
        *,
        weights: Sequence[float] | None = None,
        linear: Sequence[Tensor] | None = None,
        channel_dim: int | None = None,
        scale_weights: Sequence[float] = (1.0,),
        input_range: tuple[float, float] = (-1.0, 1.0),
        normalize: Normalization = "none",
        dtype: torch.dtype | None = None,
        reduction: ImageReduction = "mean",
        memory_limit: int | None = None,
        checkpoint: bool = False,
        keep_activations: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {type(network).__name__}")
        check_one_of("normalize", normalize, Normalization)
        check_one_of("reduction", reduction, ImageReduction)
        check_compute_dtype(dtype)
        self._own(network)
        self.taps = check_taps(network, taps)
        self.weights = None if weights is None else numbers("weights", weights)
        self.distance = list(distance) if isinstance(distance, (list, tuple)) else distance
        self._set_distances(linear)
        if channel_dim is not None and type(channel_dim) is not int:
            raise TypeError(f"channel_dim must be the number of a dimension, or None, got {channel_dim!r}")
        self.channel_dim = channel_dim
        self.scale_weights = check_scale_weights(scale_weights)
        self.input_range = check_range(input_range)
        self.normalize = normalize
        self.dtype = dtype
        self.reduction = reduction
        self.memory_limit = check_memory_limit(memory_limit)
        self.checkpoint = checkpoint
        self.keep_activations = keep_activations
        self._range_check = RangeCheck()

    def _set_distances(self, linear: Sequence[Tensor] | None) -> None:
        """Creates one distance per feature map, or a single one if their number is known only after a pass."""
        counts = {
            "taps": None if self.taps is None else len(self.taps),
            "weights": None if self.weights is None else len(self.weights),
            "distance": len(self.distance) if isinstance(self.distance, list) else None,
            "linear": None if linear is None else len(linear),
        }
        known = {name: count for name, count in counts.items() if count is not None}
        if len(set(known.values())) > 1:
            given = ", ".join(f"{name} has {count}" for name, count in known.items())
            raise ValueError(f"taps, weights, distance and linear must have one entry per feature map, but {given}")
        self._count = next(iter(known.values()), None)
        self._distances = make_all(self.distance, linear, 1 if self._count is None else self._count)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for distance in self._distances:
            distance.map_tensors(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def terms(self, count: int) -> list[Term]:
        """Returns the terms of the loss for this number of feature maps.

        Raises:
            ValueError: If there are not as many weights or distances.
        """
        if self._count is not None and count != self._count:
            raise ValueError(
                f"weights, distance and linear must have one entry per output of network, {count}, got {self._count}"
            )
        weights = [1.0] * count if self.weights is None else self.weights
        distances: Sequence[Distance] = self._distances * count if self._count is None else self._distances
        return [Term(k, distance, weight) for k, (distance, weight) in enumerate(zip(distances, weights, strict=True))]

    def evaluation(self) -> Evaluation:
        """Returns how the loss is evaluated with its current options."""
        return Evaluation(
            self.frozen_network(), self.taps, self.terms, self.channel_dim, self.memory_limit, self.checkpoint
        )

    def forward(self, fake: Tensor, real: Tensor | FrozenFeatures, mask: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            fake: Generated images ``[N, C, H, W]`` in ``input_range``, or any input ``[N, ...]`` of the network. The
                dtype must be that of the network; under autocast, or if ``dtype`` is set, any floating-point dtype is
                accepted.
            real: Real images of the same shape, or their features from ``features``. They receive no gradient.
            mask: Pixel weights ``[N, 1, H, W]``, ``[1, 1, H, W]`` or ``[H, W]``, averaged to the size of each feature
                map, which must be ``[N, C, h, w]``. ``"l1"``, ``"mse"``, ``"cosine"`` and ``"lpips"`` allow it.

        Returns:
            A scalar, or one value per image, ``[N]``, with ``reduction="none"``. The dtype is float64 for float64
            inputs and float32 otherwise.

        Raises:
            TypeError: If images and network differ in dtype outside autocast, or an output is not a tensor.
            ValueError: If shapes or devices do not match, the features come from another loss, a mask is not possible,
                a tap is not called once, or ``memory_limit`` is too low.
            RuntimeError: If a parameter of the network requires a gradient and ``keep_activations`` is False.
        """
        check_pair("fake", fake, "real", real, FrozenFeatures)
        fakes = self._scales("fake", fake)
        weight_map = None if mask is None else pixel_weights(mask, fake)
        if isinstance(real, FrozenFeatures):
            check_features("real", real, self._identity(), self.frozen_network(), "network")
            reals: list[Tensor | None] = [None] * len(fakes)
            targets = list(real.maps)
        else:
            reals = self._scales("real", real.detach())
            targets = [()] * len(fakes)
        terms = [
            scale_weight * self._losses(x, y, features, weight_map)
            for x, y, features, scale_weight in zip(fakes, reals, targets, self.scale_weights, strict=True)
            if x is not None
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total.mean() if self.reduction == "mean" else total

    def weighted(
        self, fake: Tensor, real: Tensor | FrozenFeatures, weight: float | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Computes ``weight`` times the loss."""
        loss: Tensor = self(fake, real, mask)
        return loss * weight

    @torch.no_grad()
    def features(self, real: Tensor) -> FrozenFeatures:
        """Precomputes the features of real images that are used repeatedly.

        Args:
            real: Real images, as for ``forward``.

        Returns:
            Features to pass instead of ``real``. They are valid for the same images, loss options and network weights;
            other options or weights are rejected.

        Raises:
            TypeError: As for ``forward``.
            ValueError: As for ``forward``.
        """
        scales = self._scales("real", real)
        maps = tuple(() if images is None else tuple(self._targets(images)) for images in scales)
        return FrozenFeatures(maps, real.shape, self._identity(), fingerprint(self.frozen_network()))

    def _targets(self, images: Tensor, chosen: Callable[[Term], bool] | None = None) -> list[Tensor]:
        with self._precision(images):
            return self.evaluation().targets(images, chosen)

    def _losses(
        self, fake: Tensor, real: Tensor | None, targets: Sequence[Tensor], weight_map: Tensor | None
    ) -> Tensor:
        """Returns the loss of each image, given prepared images."""
        if self.keep_activations or not frozen_features.can_run():
            with self._precision(fake):
                return self.evaluation().plain(fake, real, targets, weight_map)
        return self._through_operator(self.frozen_network(), fake, real, targets, weight_map)

    def _identity(self) -> Identity:
        stored = tuple(
            "feature maps" if type(distance).target is Distance.target else distance.name
            for distance in self._distances
        )
        return (
            ("network", type(self.frozen_network()).__name__),
            ("taps", self.taps),
            ("stored", stored[0] if len(set(stored)) == 1 else stored),
            ("channel_dim", self.channel_dim),
            ("normalize", self.normalize),
            ("input_range", self.input_range),
            ("used_scales", tuple(weight != 0.0 for weight in self.scale_weights)),
        )

    def _range_is_known(self) -> bool:
        """Whether ``input_range`` describes the images: the default also stands for inputs of any range."""
        return self.normalize != "none" or self.input_range != (-1.0, 1.0)

    def _scales(self, name: str, images: Tensor) -> list[Tensor | None]:
        """Returns the inputs of the network at each scale, or None for scales of weight 0."""
        dtype = check_against_network(name, images, self.frozen_network(), "network", self, self.dtype)
        is_image = images.dim() == 4
        if images.dim() < 2 or (not is_image and (len(self.scale_weights) > 1 or self.normalize != "none")):
            expected = "[N, ...]" if images.dim() < 2 else "images [N, C, H, W]"
            raise ValueError(f"{name} must be {expected}, got {tuple(images.shape)}")
        if self.normalize == "imagenet" and images.shape[1] != 3:
            if images.shape[1] != 1:
                raise ValueError(
                    f"{name} must have 3 channels or 1 for normalize='imagenet', got {tuple(images.shape)}"
                )
            images = images.expand(-1, 3, -1, -1)
        if len(self.scale_weights) > 1:
            scales = len(self.scale_weights)
            check_size(name, images, 1 << (scales - 1), f" for {scales} scales")
        if self._range_is_known():
            self._range_check(name, images, *self.input_range, "pass input_range=({low}, {high})")
        images = scaled_to_network(images, self.input_range, self.normalize, dtype)
        if self.dtype is not None:
            images = images.to(torch.float32)
        return at_scales(images, self.scale_weights)

    def extra_repr(self) -> str:
        """Formats the options for ``repr``."""
        names = (
            "taps", "distance", "weights", "channel_dim", "scale_weights", "input_range", "normalize", "dtype",
            "reduction", "memory_limit", "checkpoint", "keep_activations",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
