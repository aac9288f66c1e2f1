"""Networks to make lean, and comparisons with the plain ones."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd.nn import InstanceNorm2d, lean

NORMS = {
    "instance": functools.partial(InstanceNorm2d),
    "torch's instance": functools.partial(nn.InstanceNorm2d),
    "instance affine": functools.partial(InstanceNorm2d, affine=True),
    "batch": functools.partial(nn.BatchNorm2d),
    "batch without parameters": functools.partial(nn.BatchNorm2d, affine=False, track_running_stats=False),
    "none": lambda channels: nn.Identity(),
}
ACTIVATIONS = {
    "relu": functools.partial(nn.ReLU, inplace=True),
    "leaky": functools.partial(nn.LeakyReLU, 0.2, inplace=True),
    "leaky out of place": functools.partial(nn.LeakyReLU, 0.1),
    "none": nn.Identity,
    "other": nn.ELU,
}
PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": nn.ZeroPad2d, "none": None}


def chain(norm="instance", activation="relu", pad="reflect"):
    """Convolutions of several kinds between norms, activations and paddings, for images of 3 channels."""
    make_norm, make_act = NORMS[norm], ACTIVATIONS[activation]

    def padded(conv, *sides):
        return [conv] if PADS[pad] is None else [PADS[pad](*sides), conv]

    def between(channels):
        # Identity layers would separate what belongs together.
        layers = (make_norm(channels), make_act())
        return [layer for layer in layers if not isinstance(layer, nn.Identity)]

    network = nn.Sequential(
        *padded(nn.Conv2d(3, 6, 3), 1),
        *between(6),
        *padded(nn.Conv2d(6, 8, (3, 4), stride=2, padding=(1, 2), groups=2, bias=False), (1, 0, 2, 1)),
        *between(8),
        nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
        *between(4),
        *padded(nn.Conv2d(4, 6, 3, dilation=2, padding="same"), 2),
        *between(6),
    )
    return randomised(network)


def randomised(network, seed=0):
    """Draw all parameters, so that no gradient is zero or one by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale, shift = (0.3, 1.0) if parameter.dim() == 1 and name.endswith("weight") else (0.3, 0.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + shift)
    return network


def images(n, channels, height, width, seed=1):
    return torch.randn(n, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_and_lean(network):
    return copy.deepcopy(network), lean(copy.deepcopy(network))


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [x for inner in outputs for x in flat(inner)]


def differentiate(network, *inputs):
    """Outputs, and the gradients of the first input and all parameters for random upstream gradients."""
    first = inputs[0].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = flat(network(first, *inputs[1:]))
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x) for x in outputs]
    grads = torch.autograd.grad(outputs, [first, *network.parameters()], upstream)
    return [x.detach() for x in outputs], list(grads)


def error(found, expected):
    """Largest error relative to the largest value of all tensors.

    The gradient of a bias before a norm is zero but for rounding, so single tensors have no relative error.
    """
    scale = max(x.abs().max().item() for x in expected)
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(found, expected, strict=True)) / scale


class Alive(TorchDispatchMode):
    """Records every storage that operations create."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self):
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def kept_bytes(call):
    """Bytes of the tensors that are alive after a call because of its result."""
    with Alive() as alive:
        result = call()
    size = alive.bytes()
    del result
    return size
