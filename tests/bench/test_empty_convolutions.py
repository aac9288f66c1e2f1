"""Empty convolutions allocate what PyTorch's allocate, also within the custom operators, and only while asked to."""

import pytest
import torch
from empty_convolutions import empty_convolutions
from torch import nn

from pix2pixhd.losses import VGGLoss

CONVOLUTIONS = {
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "no bias": nn.Conv2d(4, 6, (1, 3), bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, dilation=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
}


def results(convolution, x):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = convolution(x)
    return [y, *torch.autograd.grad(y.sum(), [x, *convolution.parameters()])]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_results_have_the_layout_of_pytorchs(name, memory_format):
    convolution = CONVOLUTIONS[name].to(memory_format=memory_format)
    x = torch.rand(2, 4, 9, 7).to(memory_format=memory_format)
    expected = results(convolution, x)
    with empty_convolutions("cpu"):
        found = results(convolution, x)
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert not a.any()
    for a, b in zip(results(convolution, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_vgg_loss_computes_no_convolution():
    criterion = VGGLoss(vgg="random", input_range=(0, 1))
    fake, real = torch.rand(2, 1, 3, 16, 16)
    with empty_convolutions("cpu"):
        assert criterion(fake, real) == 0
    assert criterion(fake, real) != 0
