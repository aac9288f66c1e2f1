"""Inputs of the GPU tests: lists of tensors, and the losses as functions of them."""

import torch

from pix2pixhd.functional import hinge_loss, logistic_loss, lsgan_loss, mean_loss, multi_l1_loss

SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-30]


def on(device, tensors):
    """Copy tensors to another device with the same strides and offsets."""
    moved = []
    for x in tensors:
        storage = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
        storage.untyped_storage().copy_(x.untyped_storage())
        moved.append(storage.to(device).as_strided(x.size(), x.stride(), x.storage_offset()))
    return moved


def lists(shapes, dtype, seed=0, special=False, target_dtype=None):
    """Two lists of tensors with ties; with ``special`` also NaN, infinities and zeros."""
    generator = torch.Generator().manual_seed(seed)
    xs, ys = [], []
    for shape in shapes:
        x, y = (torch.randn(shape, generator=generator) for _ in range(2))
        tied = torch.rand(shape, generator=generator) < 0.2
        y = torch.where(tied, x, y)
        if special and x.numel() > 40:
            x.view(-1)[:6] = torch.tensor(SPECIAL)
            y.view(-1)[3:9] = torch.tensor(SPECIAL)
        xs.append(x.to(dtype))
        ys.append(y.to(target_dtype or dtype))
    return xs, ys


FEATURES = [(1, 64, 33, 65), (1, 128, 17, 33), (1, 256, 9, 17), (1, 512, 10, 18), (2, 3, 5, 7)]
AWKWARD = [(1,), (31,), (32,), (33,), (0,), (255,), (257,), (0, 4), (4095,), (4097,), (32769,), (200_003,)]
MANY = [(1 + 7 * k % 290,) for k in range(150)]  # more tensors than fit one launch

LOSSES = {
    "l1": lambda xs, ys: multi_l1_loss(xs, ys, [0.5 + 0.25 * (k % 3) for k in range(len(xs))]),
    "lsgan": lambda xs, ys: lsgan_loss(xs, 1.0) + lsgan_loss(ys, 0.0),
    "hinge": lambda xs, ys: hinge_loss(xs, True) + hinge_loss(ys, False),
    "logistic": lambda xs, ys: logistic_loss(xs, 0.9) + logistic_loss(ys, 0.0),
    "mean": lambda xs, ys: mean_loss(xs, [-1.0] * len(xs)) - mean_loss(ys),
}


def value_and_gradients(loss, xs, ys, upstream=1.5):
    leaves = [x.detach().requires_grad_() for x in (*xs, *ys)]
    value = loss(leaves[: len(xs)], leaves[len(xs) :])
    return value.detach(), torch.autograd.grad(upstream * value, leaves, allow_unused=True)
