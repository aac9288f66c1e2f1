"""The profile of one training step: where its time goes, and how fast its convolutions run.

    python benchmarks/step_profile.py [--size 1024x512] [--implementation ours|original] [--dtype float32|bfloat16]
                                      [--steps 2] [--top 12] [--device cpu|cuda] [--json FILE]

Prints the share of convolutions, of elementwise work (normalization, activations, padding, losses), of copies and
casts, of the optimizers and of the rest: matrix products, bookkeeping and the time between operators. Each operator
counts with its own time, without that of the operators that it calls. So a copy within a convolution is a copy. What
runs within an optimizer's step belongs to the optimizers.

The rate of the convolutions is their number of floating-point operations divided by their time. It is compared with the
matrix-product peak of the machine: the best rate of ``torch.mm`` in the same dtype, measured before and after the step.
"""

import argparse
import json
import pathlib
import time
import warnings

from steps import DTYPES, IMPLEMENTATIONS, Setup, prepared

CATEGORIES = {
    "convolutions": (
        "conv",
        "perceptual_loss",  # the fused VGG loss calls convolutions; those count under their own names
    ),
    "copies and casts": (
        "copy",
        "to_copy",
        "aten::to",
        "cat",
        "clone",
        "contiguous",
        "fill_",
        "zero_",
        "Memcpy",
        "Memset",
    ),
    "other": (
        "aten::mm",
        "addmm",
        "bmm",
        "matmul",
        "empty",
        "resize",
        "as_strided",
        "view",
        "reshape",
        "detach",
        "alias",
    ),
}
