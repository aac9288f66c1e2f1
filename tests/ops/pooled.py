"""Helpers for the tests of recycled memory: gradients of a given size, the pool's size, scripts in a new process."""

import os
import subprocess
import sys
import textwrap

import torch

from pix2pixhd.functional import lsgan_loss, multi_l1_loss
from pix2pixhd.ops import recycling

MIB = 1 << 20


def gradient(mib, seed=0):
    """A float32 gradient of an L1 loss, with a size of ``mib`` MiB."""
    x = torch.full((int(mib * MIB / 4),), float(seed % 3 - 1), requires_grad=True)
    (grad,) = torch.autograd.grad(multi_l1_loss([x], [torch.zeros(1).expand_as(x)]), x)
    return grad


def held():
    return recycling._pool.bytes_held / MIB


def small_calls(count):
    x = torch.zeros(4)
    for _ in range(count):
        lsgan_loss([x], 1.0)


def run(script, **environment):
    """Run a script in a new process, with the helpers of this module and rss() in MiB; return its output."""
    prelude = """
        import os, sys, threading, torch
        from pix2pixhd.functional import lsgan_loss, multi_l1_loss
        from pix2pixhd.ops import recycling
        from tests.ops.pooled import MIB, gradient, held, small_calls

        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
