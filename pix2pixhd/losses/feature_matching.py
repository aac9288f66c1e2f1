"""Feature matching: L1 between the discriminator's features of generated and real pictures."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from pix2pixhd.losses.predictions import Prediction, as_scales
from pix2pixhd.ops import multi_l1_loss
from pix2pixhd.ops.scalars import Number, is_constant

Weighting = Literal["pix2pixhd", "scales", "features"]


def _check(weighting: str) -> None:
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")


def layer_weights(layers: list[int], weighting: Weighting) -> list[list[float]]:
    """The weight of each layer of each scale, see ``FeatureMatchingLoss``; ``layers`` counts the features per scale."""
    num_D = len(layers)
    if weighting == "pix2pixhd":
        return [[4.0 / count / num_D] * count for count in layers]
    if weighting == "scales":
        return [[1.0 / num_D] * count for count in layers]
    return [[4.0 / sum(layers)] * count for count in layers]


def feature_matching_loss(
    pred_fake: Prediction, pred_real: Prediction, weighting: Weighting = "pix2pixhd", *, weight: Number = 1.0
) -> Tensor:
    """``FeatureMatchingLoss`` as a function, which tells the formula, shapes and errors.

    Args:
        pred_fake: The discriminator's output for generated pictures.
        pred_real: The same for real pictures.
        weighting: Of the layers, see ``FeatureMatchingLoss``.
        weight: A factor, folded into the one call. A tensor that requires a gradient gets its gradient.

    Example:
        >>> import torch
        >>> from pix2pixhd.functional import feature_matching_loss
        >>> real = [[torch.zeros(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> fake = [[torch.ones(1, 64, 9, 9), torch.zeros(1, 1, 8, 8)]]
        >>> feature_matching_loss(fake, real, weight=10.0)
        tensor(40.)
    """
    _check(weighting)
    fake, real = as_scales("pred_fake", pred_fake), as_scales("pred_real", pred_real)
    if len(fake) != len(real):
        raise ValueError(f"pred_real must have as many scales as pred_fake, {len(fake)}, got {len(real)}")
    for k, (fake_layers, real_layers) in enumerate(zip(fake, real, strict=True)):
        if len(fake_layers) != len(real_layers):
            raise ValueError(
                f"pred_real[{k}] must have as many layers as pred_fake[{k}], {len(fake_layers)}, got {len(real_layers)}"
            )
        if len(fake_layers) < 2:
            raise ValueError(
                f"pred_fake[{k}] holds a prediction and no intermediate features to match; build the discriminator "
                "with getIntermFeat=True, or turn feature matching off"
            )
        for i, (x, y) in enumerate(zip(fake_layers[:-1], real_layers[:-1], strict=True)):
            if x.shape != y.shape:
                raise ValueError(
                    f"pred_real[{k}][{i}] (scale {k}, layer {i}) must have the shape of pred_fake[{k}][{i}], "
                    f"{tuple(x.shape)}, got {tuple(y.shape)}"
                )
    weights = [w for scale in layer_weights([len(layers) - 1 for layers in fake], weighting) for w in scale]
    features = [x for layers in fake for x in layers[:-1]]
    targets = [y.detach() for layers in real for y in layers[:-1]]
    if is_constant(weight):
        return multi_l1_loss(features, targets, [weight * w for w in weights])
    return multi_l1_loss(features, targets, weights) * weight


class FeatureMatchingLoss(nn.Module):
    """The feature matching loss of pix2pixHD (arXiv 1711.11585, eq. 4), in one call for all scales and layers.

    ``Σ_k Σ_i w_ki · mean|D_k⁽ⁱ⁾(x, G(x)) − D_k⁽ⁱ⁾(x, y)|`` over scales k and all layers i but the last, the prediction.
    Real features are detached.

    Args:
        weighting: ``"pix2pixhd"``: ``w = 4 / (n_layers_D + 1) / num_D``; ``"scales"`` (SPADE, imaginaire): ``1 /
            num_D``; ``"features"``: 4 / the number of features of all scales. The numbers are read off the lists'
            lengths: a scale with ``n_layers_D`` has ``n_layers_D + 1`` features and the prediction.

    Raises:
        ValueError: For an unknown weighting.

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
            pred_fake: The discriminator's output for generated pictures: a list over scales of lists over layers, or
                one such list.
            pred_real: The same for real pictures, of the same structure and shapes.

        Returns:
            A scalar.

        Raises:
            TypeError: If they are not lists of tensors.
            ValueError: If their structures or shapes differ, or there are no intermediate features.
        """
        return self.weighted(pred_fake, pred_real, 1.0)

    def weighted(self, pred_fake: Prediction, pred_real: Prediction, weight: Number) -> Tensor:
        """``weight`` times the loss, with the weight folded into the one call."""
        return feature_matching_loss(pred_fake, pred_real, self.weighting, weight=weight)

    def extra_repr(self) -> str:
        """The weighting, for ``repr``."""
        return f"weighting={self.weighting!r}"
