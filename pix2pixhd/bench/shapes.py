"""Shapes of the tensors that the losses compare."""

from __future__ import annotations

from pix2pixhd.bench.case import Setup

__all__ = ["Shape", "discriminator_shapes", "vgg_shapes"]

Shape = tuple[int, int, int, int]


def discriminator_shapes(setup: Setup, ndf: int = 64, n_layers: int = 3) -> tuple[list[Shape], list[Shape]]:
    """Returns the shapes of the features and of the predictions of pix2pixHD's discriminator, over all scales."""
    features: list[Shape] = []
    predictions: list[Shape] = []
    for scale in range(setup.num_D):
        h, w, channels = setup.height, setup.width, ndf
        for _ in range(scale):  # AvgPool2d(3, stride=2, padding=1)
            h, w = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        for _ in range(n_layers):  # 4x4 convolutions with stride 2 and padding 2
            h, w = h // 2 + 1, w // 2 + 1
            features.append((setup.batch, channels, h, w))
            channels = min(2 * channels, 512)
        features.append((setup.batch, channels, h + 1, w + 1))
        predictions.append((setup.batch, 1, h + 2, w + 2))
    return features, predictions


def vgg_shapes(setup: Setup) -> list[Shape]:
    """Returns the shapes of the feature maps relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of VGG19."""
    return [(setup.batch, min(64 << k, 512), setup.height >> k, setup.width >> k) for k in range(5)]
