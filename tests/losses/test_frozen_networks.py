"""FrozenFeatureLoss on torchvision's networks with random weights, compared with autograd."""

import pytest
import torch
import torchvision

from pix2pixhd.losses import FrozenFeatureLoss

from .helpers import random_images

NETWORKS = {
    # The dilated ResNet50 of LaMa's perceptual loss (arXiv 2109.07161).
    "resnet50": (
        lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]),
        ["relu", "layer1", "layer2", "layer3.0", "layer4"],
        32,
    ),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny().features[:5], ["1.0", "3.2", "4"], 16),
    "vit_b_16": (
        lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"],
        32,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_value_and_gradient_match_autograd(name):
    torch.manual_seed(0)
    make, taps, size = NETWORKS[name]
    network = make().double()
    fake, real = random_images(1, 3, size, size).double().requires_grad_(), random_images(1, 3, size, size, seed=1)
    distance = "cosine" if name == "vit_b_16" else "mse"
    plain = FrozenFeatureLoss(network, taps, distance, normalize="imagenet", keep_activations=True)
    expected = plain(fake, real.double())
    (wanted,) = torch.autograd.grad(expected, fake)
    for checkpoint in (False, True):
        criterion = FrozenFeatureLoss(network, taps, distance, normalize="imagenet", checkpoint=checkpoint)
        loss = criterion(fake, real.double())
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        (gradient,) = torch.autograd.grad(loss, fake)
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10 * wanted.abs().max().item())
    assert all(not module._forward_hooks and "forward" not in vars(module) for module in network.modules())
