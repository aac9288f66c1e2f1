"""The perceptual losses do not depend on PyTorch's default dtype, which Lightning changes in bf16-true and 64-true."""

import pytest
import torch

from pix2pixhd.losses import FrozenFeatureLoss, VGGLoss

from .helpers import narrow_vgg, random_images


@pytest.fixture
def set_default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def test_float16_gradients_are_the_same_with_any_default_dtype(set_default_dtype):
    fused = VGGLoss(vgg=narrow_vgg("vgg19", ["relu1_2"]), dtype=torch.float16)
    general = FrozenFeatureLoss(torch.nn.Conv2d(3, 4, 3), dtype=torch.float16)
    fake, real = random_images(2, 3, 16, 16).requires_grad_(), random_images(2, 3, 16, 16, seed=1)
    for criterion in (fused, general):
        expected = torch.autograd.grad(criterion(fake, real), fake)[0]
        for dtype in (torch.bfloat16, torch.float64):
            set_default_dtype(dtype)
            found = torch.autograd.grad(criterion(fake, real), fake)[0]
            set_default_dtype(torch.float32)
            assert torch.equal(found, expected)
