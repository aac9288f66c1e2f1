"""Style loss on Gram matrices, with an optional content loss in the same pass."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pix2pixhd.losses.distances import Distance, GramDistance, make
from pix2pixhd.losses.distances.gram import GramCriterion
from pix2pixhd.losses.fingerprint import fingerprint
from pix2pixhd.losses.frozen_features import FrozenFeatureLoss
from pix2pixhd.losses.frozen_gradient import Term
from pix2pixhd.losses.perceptual_features import FrozenFeatures, Identity, check_features, check_pair, check_target
from pix2pixhd.losses.perceptual_inputs import check_size
from pix2pixhd.losses.perceptual_options import ImageReduction, Normalization, check_one_of
from pix2pixhd.models.vgg import Architecture, FrozenVGG, check_network, layer_names, load_vgg
from pix2pixhd.ops.checks import check_tensor
from pix2pixhd.ops.scalars import numbers, one_number

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")  # CVPR 2016, Gatys et al.

ContentCriterion = Literal["mse", "l1"]


class StyleLoss(FrozenFeatureLoss):
    """Style and content loss: ``α · Σ_k w_k · d(G_k(fake), G_k(style)) + β · Σ_k mean(φ_k(fake) − φ_k(content))²``.

    ``G = F Fᵀ / (C · h · w)`` is the Gram matrix of a feature map F = φ_k of a frozen VGG, and d the mean squared or
    absolute difference (Gatys et al., CVPR 2016; arXiv 1603.08155). Of a style image only C×C numbers per layer are
    kept. Both terms are computed in one pass of ``fake`` through the network. Its gradient is computed together with
    the value, and no activation is saved for backward; see ``FrozenFeatureLoss``.

    Args:
        vgg: ``"imagenet"``, the path of a state dict, ``"random"`` (seeded, with a warning), or a module. A module
            other than a ``FrozenVGG`` is tapped: its layers are module names, such as ``"features.3"``.
        network: ``"vgg19"`` or ``"vgg16"``.
        style_layers: Names of the layers whose Gram matrices are compared, written ``relu3_1`` or ``relu_3_1``.
        content_layers: Names of the layers that are compared with the content image, for example ``["relu4_2"]``.
        style_weight: α.
        content_weight: β.
        layer_weights: w, one number per style layer; None for 1.
        criterion: ``"mse"`` or ``"l1"`` between Gram matrices.
        content_criterion: ``"mse"`` or ``"l1"`` between feature maps of the content layers.
        input_range: Lowest and highest image value, for example (−1, 1) or (0, 1). Images are rescaled to (−1, 1). The
            first call warns if the values contradict the range.
        normalize: ``"imagenet"`` normalizes images with ImageNet's mean and standard deviation, which the pretrained
            weights expect. ``"none"`` passes them in (−1, 1).
        dtype: As in ``FrozenFeatureLoss``. Gram matrices are computed in float32.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value per image.
        memory_limit: As in ``FrozenFeatureLoss``.
        checkpoint: As in ``FrozenFeatureLoss``.
        keep_activations: As in ``FrozenFeatureLoss``.

    Raises:
        RuntimeError: If pretrained weights cannot be downloaded.
        ValueError: If an option or layer is unknown, or the number of weights does not match.
        FileNotFoundError: If the file ``vgg`` does not exist.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import StyleLoss
        >>> criterion = StyleLoss("random", style_layers=["relu1_1", "relu2_1"], content_layers=["relu2_1"])
        >>> style, content = torch.rand(1, 3, 48, 40), torch.rand(2, 3, 32, 32)
        >>> fake = content.clone().requires_grad_()
        >>> criterion(fake, style, content).backward()
    """

    network_name = "vgg"

    def __init__(
        self,
        vgg: str | pathlib.Path | nn.Module = "imagenet",
        *,
        network: Architecture = "vgg19",
        style_layers: Sequence[str] = STYLE_LAYERS,
        content_layers: Sequence[str] = (),
        style_weight: float = 1.0,
        content_weight: float = 1.0,
        layer_weights: Sequence[float] | None = None,
        criterion: GramCriterion = "mse",
        content_criterion: ContentCriterion = "mse",
        input_range: tuple[float, float] = (-1.0, 1.0),
        normalize: Normalization = "imagenet",
        dtype: torch.dtype | None = None,
        reduction: ImageReduction = "mean",
        memory_limit: int | None = None,
        checkpoint: bool = False,
        keep_activations: bool = False,
    ) -> None:
        check_network(network)
        check_one_of("criterion", criterion, GramCriterion)
        check_one_of("content_criterion", content_criterion, ContentCriterion)
        for name, value in (("style_layers", style_layers), ("content_layers", content_layers)):
            if isinstance(value, str):
                raise TypeError(f"{name} must be a list of names, got {value!r}; did you mean [{value!r}]?")
        styles, contents = list(style_layers), list(content_layers)
        if not styles:
            raise ValueError("style_layers must name at least one layer; for content alone, use VGGLoss")
        if not isinstance(vgg, nn.Module) or isinstance(vgg, FrozenVGG):
            kind = vgg.network if isinstance(vgg, FrozenVGG) else network
            styles = layer_names(kind, styles)
            contents = layer_names(kind, contents) if contents else []
        taps = list(dict.fromkeys([*styles, *contents]))
        module = vgg if isinstance(vgg, nn.Module) else load_vgg(vgg, network, taps)
        if isinstance(module, FrozenVGG):
            missing = [name for name in taps if name not in module.layers]
            if missing:
                raise ValueError(f"vgg does not return {missing[0]}; it returns {', '.join(module.layers)}")
            outputs: Sequence[str] = module.layers
            names: list[str] | None = None
        else:
            outputs = names = taps
        super().__init__(
            module,
            names,
            input_range=input_range,
            normalize=normalize,
            dtype=dtype,
            reduction=reduction,
            memory_limit=memory_limit,
            checkpoint=checkpoint,
            keep_activations=keep_activations,
        )
        self._outputs = len(outputs)
        self._style_taps = [outputs.index(name) for name in styles]
        self._content_taps = [outputs.index(name) for name in contents]
        self._style, self._content = GramDistance(criterion), make(content_criterion)
        self.style_layers, self.content_layers = styles, contents
        self.layer_weights = [1.0] * len(styles) if layer_weights is None else numbers("layer_weights", layer_weights)
        if len(self.layer_weights) != len(styles):
            raise ValueError(
                f"layer_weights must have one number per style layer, {len(styles)}, got {len(self.layer_weights)}"
            )
        self.style_weight = one_number("style_weight", style_weight)
        self.content_weight = one_number("content_weight", content_weight)
        self.criterion, self.content_criterion = criterion, content_criterion

    def terms(self, count: int) -> list[Term]:
        """Returns the terms of the loss: style layers, then content layers."""
        if count != self._outputs:
            raise ValueError(f"vgg must return {self._outputs} feature maps, got {count}")
        weights = [self.style_weight * weight for weight in self.layer_weights]
        styles = [Term(k, self._style, weight) for k, weight in zip(self._style_taps, weights, strict=True)]
        return styles + [Term(k, self._content, self.content_weight) for k in self._content_taps]

    def _range_is_known(self) -> bool:
        return True

    def forward(
        self, fake: Tensor, style: Tensor | FrozenFeatures, content: Tensor | FrozenFeatures | None = None
    ) -> Tensor:
        """Computes the loss.

        Args:
            fake: Generated images ``[N, 3, H, W]`` in ``input_range``, or grayscale images ``[N, 1, H, W]``. H and W
                must leave a pixel after each pooling layer: 16 for relu5_1. The dtype must be that of the VGG; under
                autocast, or if ``dtype`` is set, any floating-point dtype is accepted.
            style: Style images of any size, one or N, or their Gram matrices from ``style_features``.
            content: Content images with the shape of ``fake``, or their feature maps from ``content_features``. Needed
                if there are content layers.

        Returns:
            A scalar, or one value per image, ``[N]``, with ``reduction="none"``. The dtype is float64 for float64
            inputs and float32 otherwise.

        Raises:
            TypeError: If an argument is not a tensor, or images and VGG differ in dtype outside autocast.
            ValueError: If shapes or devices do not match, images are too small, or ``content`` is missing or
                superfluous.
            RuntimeError: If a parameter of the VGG requires a gradient and ``keep_activations`` is False.
        """
        check_target("style", style, FrozenFeatures)
        if bool(self.content_layers) != (content is not None):
            reason = "has content_layers" if self.content_layers else "has no content_layers"
            raise ValueError(f"content must be {'given' if self.content_layers else 'None'}: this loss {reason}")
        check_tensor("fake", fake)
        if len(style.shape) < 1 or style.shape[0] not in (1, fake.shape[0]):
            raise ValueError(f"style must be one image or {fake.shape[0]}, as fake, got {tuple(style.shape)}")
        if content is not None:
            check_pair("fake", fake, "content", content, FrozenFeatures)
        targets = self._maps_of("style", style)
        if content is not None:
            targets += self._maps_of("content", content)
        (images,) = self._scales("fake", fake)
        assert images is not None
        losses = self._losses(images, None, targets, None)
        return losses.mean() if self.reduction == "mean" else losses

    def _maps_of(self, kind: str, given: Tensor | FrozenFeatures) -> list[Tensor]:
        if isinstance(given, FrozenFeatures):
            check_features(kind, given, self._identity_of(kind), self.frozen_network(), "network")
            return list(given.maps[0])
        with torch.no_grad():
            return self._features_of(kind, given.detach())

    def _identity_of(self, kind: str) -> Identity:
        layers = self.style_layers if kind == "style" else self.content_layers
        return ((f"{kind}_layers", tuple(layers)), *self._identity())

    def _cached(self, kind: str, images: Tensor) -> FrozenFeatures:
        maps = tuple(self._features_of(kind, images))
        return FrozenFeatures((maps,), images.shape, self._identity_of(kind), fingerprint(self.frozen_network()))

    def _scales(self, name: str, images: Tensor) -> list[Tensor | None]:
        (prepared,) = super()._scales(name, images)
        assert prepared is not None
        vgg = self.frozen_network()
        channels = (1, 3) if isinstance(vgg, FrozenVGG) else images.shape[1:2]
        if images.dim() != 4 or images.shape[1] not in channels:
            raise ValueError(f"{name} must be images [N, 3, H, W] or [N, 1, H, W], got {tuple(images.shape)}")
        if not isinstance(vgg, FrozenVGG):
            return [prepared]
        check_size(name, images, vgg.smallest)
        return [prepared.expand(-1, 3, -1, -1)]

    def _features_of(self, kind: str, images: Tensor) -> list[Tensor]:
        (prepared,) = self._scales(kind, images)
        assert prepared is not None
        wanted: Distance = self._style if kind == "style" else self._content
        return self._targets(prepared, lambda term: term.distance is wanted)

    @torch.no_grad()
    def style_features(self, style: Tensor) -> FrozenFeatures:
        """Precomputes the Gram matrices of style images, to pass instead of ``style``.

        Args:
            style: Style images, as for ``forward``.
        """
        return self._cached("style", style)

    def features(self, real: Tensor) -> FrozenFeatures:
        """Same as ``style_features``."""
        return self.style_features(real)

    @torch.no_grad()
    def content_features(self, content: Tensor) -> FrozenFeatures:
        """Precomputes the feature maps of content images, to pass instead of ``content``.

        Args:
            content: Content images, as for ``forward``.
        """
        return self._cached("content", content)

    def extra_repr(self) -> str:
        """Formats the options for ``repr``."""
        names = (
            "style_layers", "content_layers", "style_weight", "content_weight", "layer_weights", "criterion",
            "content_criterion", "input_range", "normalize", "dtype", "reduction", "memory_limit", "checkpoint",
            "keep_activations",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
