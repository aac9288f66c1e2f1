"""Feature matching loss: L1 distance between discriminator features of generated and real images."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from pix2pixhd.losses.predictions import Prediction, Scales, as_scales
from pix2pixhd.ops import multi_l1_loss
from pix2pixhd.ops.scalars import Number, is_constant

Weighting = Literal["pix2pixhd", "scales", "features"]


def _check(weighting: str) -> None:
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")


def layer_weights(layers: list[int], weighting: Weighting) -> list[list[float]]:
    """Returns the weight of each layer of each scale. ``layers`` holds the number of feature maps per scale."""
    num_D = len(layers)
    if weighting == "pix2pixhd":
        return [[4.0 / count / num_D] * count for count in layers]
    if weighting == "scales":
        return [[1.0 / num_D] * count for count in layers]
    return [[4.0 / sum(layers)] * count for count in layers]


def feature_matching_loss(
    pred_fake: Prediction, pred_real: Prediction, weighting: Weighting = "pix2pixhd", *, weight: Number = 1.0
) -> Tensor:
    """Functional form of ``FeatureMatchingLoss``, which documents the formula, shapes and errors.

    Args:
        pred_fake: Discriminator output for generated images.
        pred_real: Discriminator output for real images.
        weighting: Layer weighting, see ``FeatureMatchingLoss``.
        weight: Factor of the loss. A number is applied inside the operator call; a tensor may require a gradient.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import feature_matching_loss
        >>> real = [[torch.zeros(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> fake = [[torch.ones(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> feature_matching_loss(fake, real, weight=10.0)
        tensor(40.)
    """
    _check(weighting)
    return _match(as_scales("pred_fake", pred_fake), as_scales("pred_real", pred_real), weighting, weight)


def _check_shapes(fake: Scales, real: Scales) -> None:
    for k, (fake_layers, real_layers) in enumerate(zip(fake, real, strict=True)):
        for i, (x, y) in enumerate(zip(fake_layers[:-1], real_layers[:-1], strict=True)):
            if x.shape != y.shape:
                raise ValueError(
                    f"pred_real[{k}][{i}] (scale {k}, layer {i}) must have the shape of pred_fake[{k}][{i}], "
                    f"{tuple(x.shape)}, got {tuple(y.shape)}"
                )


def _match(fake: Scales, real: Scales, weighting: Weighting, weight: Number) -> Tensor:
    """Computes the loss of normalized predictions."""
    if len(fake) != len(real):
        raise ValueError(f"pred_real must have as many scales as pred_fake, {len(fake)}, got {len(real)}")
    for k, (fake_layers, real_layers) in enumerate(zip(fake, real, strict=True)):
        if len(fake_layers) != len(real_layers):
            raise ValueError(
                f"pred_real[{k}] must have as many layers as pred_fake[{k}], {len(fake_layers)}, got {len(real_layers)}"
            )
        if len(fake_layers) < 2:
            raise ValueError(
                f"pred_fake[{k}] contains a prediction but no features to match; build the discriminator "
                "with getIntermFeat=True, or turn feature matching off"
            )
    weights = [w for scale in layer_weights([len(layers) - 1 for layers in fake], weighting) for w in scale]
    features = [x for layers in fake for x in layers[:-1]]
    targets = [y.detach() for layers in real for y in layers[:-1]]
    try:
        if is_constant(weight):
            return multi_l1_loss(features, targets, [weight * w for w in weights])
        return multi_l1_loss(features, targets, weights) * weight
    except ValueError:
        _check_shapes(fake, real)  # names scale and layer; the operator's message has the index in the flat list
        raise


class FeatureMatchingLoss(nn.Module):
    """Feature matching loss of pix2pixHD (arXiv 1711.11585, eq. 4). One operator call covers all scales and layers.

    ``Σ_k Σ_i w_ki · mean|D_k⁽ⁱ⁾(x, G(x)) − D_k⁽ⁱ⁾(x, y)|`` over scales k and layers i, where the
    last layer, the prediction, is excluded. Real features are detached.

    Args:
        weighting: Layer weighting. ``"pix2pixhd"``: ``w = 4 / (n_layers_D + 1) / num_D``. ``"scales"`` (SPADE,
            imaginaire): ``w = 1 / num_D``. ``"features"``: 4 divided by the total number of feature maps. The counts
            are derived from the lengths of the lists: a scale has ``n_layers_D + 1`` feature maps and one prediction.

    Raises:
        ValueError: If the weighting is unknown.

    Example:
        >>> import torch
        >>> from pix2pixhd.losses import FeatureMatchingLoss
        >>> real = [[torch.zeros(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> fake = [[torch.ones(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> FeatureMatchingLoss()(fake, real)
        tensor(4.)
    """

    def __init__(self, weighting: Weighting = "pix2pixhd") -> None:
        super().__init__()
        _check(weighting)
        self.weighting: Weighting = weighting

    def forward(self, pred_fake: Prediction, pred_real: Prediction) -> Tensor:
        """Computes the loss.

        Args:
            pred_fake: Discriminator output for generated images: a list over scales of lists over layers, or a single
                list over layers.
            pred_real: Discriminator output for real images, with the same structure and shapes.

        Returns:
            A scalar.

        Raises:
            TypeError: If an argument is not a list of tensors.
            ValueError: If the structures or shapes differ, or there are no intermediate features.
        """
        return self.weighted(as_scales("pred_fake", pred_fake), as_scales("pred_real", pred_real), 1.0)

    def weighted(self, fake: Scales, real: Scales, weight: Number) -> Tensor:
        """Computes ``weight`` times the loss of normalized predictions."""
        return _match(fake, real, self.weighting, weight)

    def extra_repr(self) -> str:
        """Formats the weighting for ``repr``."""
        return f"weighting={self.weighting!r}"
