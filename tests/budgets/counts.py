"""Counts what the losses and a training step cost, in units that do not depend on the machine's load.

Each case is one forward and one backward pass on small tensors, after a first one that fills caches. It is counted

* ``calls``: calls of Python and C functions that are made in this package or enter it. Calls inside PyTorch and the
  standard library are not counted, because they change from version to version. Neither are comprehensions, which are
  calls in Python 3.10 and 3.11 only, nor steps of generators and the ends of ``with`` blocks of C types, which newer
  versions report more often.
* ``operators``: PyTorch operators that compute something. Views (``detach``, slices) are not counted, because PyTorch
  inserts them differently from version to version. The operators inside the perceptual loss count, as they do outside.
* ``bytes``: total size of all tensors that these operators allocate, whether or not they are alive at the same time.

The counts are the same in every run. They were compared on Python 3.10 with torch 2.10, and on Python 3.11 and 3.13
with torch 2.14: only the calls of the training step differ, by one of 4332. Kernel launches are not counted here; on a
GPU ``tests/gpu/test_cuda.py`` limits those of the L1 and of LSGAN.

Print all counts beside their budgets, or write them as the new budgets::

    python -m tests.budgets.counts
    python -m tests.budgets.counts --update
"""

import argparse
import gc
import inspect
import json
import os
import pathlib
import sys
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pix2pixhd
from pix2pixhd.losses import LPIPS, DiscriminatorLoss, FeatureMatchingLoss, GANLoss, GeneratorLoss, VGGLoss
from pix2pixhd.models import define_D, define_G
from pix2pixhd.models.vgg import PAPER_LAYERS
from pix2pixhd.nn import lean
from pix2pixhd.ops import multi_l1_loss
from pix2pixhd.training.step import compute_gradients

from ..losses.conftest import predictions
from ..losses.helpers import WEIGHTS, narrow_vgg, random_images

FILE = pathlib.Path(__file__).with_name("budgets.json")
PACKAGE = str(pathlib.Path(pix2pixhd.__file__).parent) + os.sep

# Operators of this package that are written in Python: what they call is counted instead.
WRITTEN_IN_PYTHON = ("pix2pixhd::perceptual_loss", "pix2pixhd::frozen_feature_loss")
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>")
WITH = ("__enter__", "__exit__")


def differentiate(loss, leaves):
    """Returns a function that computes a loss and its gradients."""
    return lambda: torch.autograd.grad(loss(), leaves)


def gan_generator():
    fake, loss = predictions(requires_grad=True), GANLoss()
    return differentiate(lambda: loss(fake, True), [scale[-1] for scale in fake])


def gan_discriminator():
    fake, real, loss = predictions(requires_grad=True), predictions(seed=1, requires_grad=True), DiscriminatorLoss()
    return differentiate(lambda: loss(fake, real).total, [scale[-1] for scale in fake + real])


def feature_matching():
    # The real features require a gradient too, as in a training step, which uses them for the discriminator's loss.
    fake, real, loss = predictions(requires_grad=True), predictions(seed=1, requires_grad=True), FeatureMatchingLoss()
    return differentiate(lambda: loss(fake, real), [x for scale in fake for x in scale[:-1]])


def l1_of_vgg_features():
    shapes = [(1, 64 << min(k, 3), 32 >> k, 32 >> k) for k in range(5)]
    generator = torch.Generator().manual_seed(0)
    fake, real = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    leaves = [x.requires_grad_() for x in fake]
    return differentiate(lambda: multi_l1_loss(leaves, real, WEIGHTS), leaves)


def of_images(loss):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    return differentiate(lambda: loss(fake, real).sum(), [fake])


def vgg():
    return of_images(VGGLoss(vgg=narrow_vgg("vgg19", PAPER_LAYERS)))


def lpips():
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    return of_images(LPIPS(net="vgg", lpips=False, trunk=narrow_vgg("vgg16", layers)))


def training_step():
    torch.manual_seed(0)
    generator, discriminator = lean(define_G(4, 3, 4, "global", 2, 1)), lean(define_D(7, 4, 2, getIntermFeat=True))
    losses = GeneratorLoss(vgg=VGGLoss(vgg=narrow_vgg("vgg19", PAPER_LAYERS))), DiscriminatorLoss()
    condition, real = random_images(1, 4, 32, 32), random_images(1, 3, 32, 32, seed=1)

    def run():
        compute_gradients(generator, discriminator, *losses, condition, real)
        for network in (generator, discriminator):
            network.zero_grad()

    return run


CASES = {
    "lsgan_generator": gan_generator,
    "lsgan_discriminator": gan_discriminator,
    "feature_matching": feature_matching,
    "l1_of_vgg_features": l1_of_vgg_features,
    "vgg_loss": vgg,
    "lpips": lpips,
    "training_step": training_step,
}


class Operators(TorchDispatchMode):
    """Counts operators and the bytes of the tensors that they allocate."""

    def __init__(self):
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema = func._schema
        if schema.name in WRITTEN_IN_PYTHON:
            with self:
                return func.redispatch(CPU, *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info and not returned.alias_info.is_write for returned in schema.returns):
            return result  # a view
        self.operators += 1
        results = result if isinstance(result, tuple) else (result,)
        for returned, value in zip(schema.returns, results, strict=False):
            tensors = value if isinstance(value, list) else [value]
            if not returned.alias_info:
                self.bytes += sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))
        return result


def count_operators(run):
    """Returns the operators of a run and the bytes that they allocate."""
    with Operators() as counted:
        run()
    return counted.operators, counted.bytes


def count_calls(run):
    """Returns the function calls of a run that are made in this package or enter it."""
    count = 0

    def inside(frame):
        return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)

    def on_event(frame, event, argument):
        nonlocal count
        code = frame.f_code
        if event == "call" and code.co_name not in INLINED and not code.co_flags & inspect.CO_GENERATOR:
            count += inside(frame) or inside(frame.f_back)
        elif event == "c_call" and getattr(argument, "__name__", "") not in WITH:
            count += inside(frame)

    gc.disable()  # a collection calls finalizers and the package's own callback
    previous = sys.getprofile()
    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(previous)
        gc.enable()
    return count


def count(name):
    """Returns the counts of a case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights
        run = CASES[name]()
        run()
    operators, size = count_operators(run)
    # One of two runs may include the check of recycled memory that other tests have left.
    calls = min(count_calls(run), count_calls(run))
    return {"calls": calls, "operators": operators, "bytes": size}


def read():
    """Returns the committed budgets."""
    return json.loads(FILE.read_text())


def main():
    parser = argparse.ArgumentParser(description="Print the counts of all cases beside their budgets.")
    parser.add_argument("--update", action="store_true", help=f"write the counts to {FILE.name}")
    options = parser.parse_args()
    budgets = read() if FILE.exists() else {}
    counts = {name: count(name) for name in CASES}
    print(f"{'case':<22}{'what':<12}{'count':>10}{'budget':>10}")
    for name, found in counts.items():
        for what, value in found.items():
            print(f"{name:<22}{what:<12}{value:>10}{budgets.get(name, {}).get(what, '-'):>10}")
    if options.update:
        FILE.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
