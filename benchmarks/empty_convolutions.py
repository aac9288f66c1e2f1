"""Convolutions that allocate their results and compute nothing, to measure memory where convolutions are slow."""

import contextlib

import torch

aten = torch.ops.aten


@contextlib.contextmanager
def empty_convolutions(device):
    """Replace convolutions and their gradients by zeros of the same shape, dtype and memory format.

    Every tensor of a step is then allocated as usual, but the workspaces of the convolutions are missing, and all
    computed values are meaningless. For memory measurements only: bfloat16 convolutions on CPUs without AVX-512 copy
    every image into columns of 49 times its size, and the largest images take minutes per step.
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("convolution", convolution, device.upper())
        library.impl("convolution_backward", convolution_backward, device.upper())
        yield


def memory_format(*tensors):
    """Channels-last if one of the tensors is, as PyTorch's convolutions choose."""
    last = any(x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last) for x in tensors)
    return torch.channels_last if last else torch.contiguous_format


def zeros(shape, like, memory_format=torch.contiguous_format):
    """Zeros that are written, so that the memory is resident."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format).zero_()


def convolution(x, weight, bias, *options):
    meta = [None if tensor is None else torch.empty_like(tensor, device="meta") for tensor in (x, weight, bias)]
    return zeros(aten.convolution(*meta, *options).shape, x, memory_format(x, weight))


def convolution_backward(grad, x, weight, bias_sizes, *options):
    kept = memory_format(x, weight)
    for_x, for_weight, for_bias = options[-1]
    return (
        zeros(x.shape, x, kept) if for_x else None,
        zeros(weight.shape, weight, kept) if for_weight else None,
        zeros(bias_sizes, grad) if for_bias else None,
    )
