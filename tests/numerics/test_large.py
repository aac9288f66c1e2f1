"""Gradients of a tensor with more than 2^31 elements."""

import pathlib

import numpy as np
import pytest
import torch

from pix2pixhd.functional import lsgan_loss, multi_l1_loss

N = 2**31 + 33


def available_gib():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/meminfo").exists() or available_gib() < 11, reason="needs 11 GiB of memory")
def test_the_gradients_of_more_than_two_to_the_31_elements_are_right_at_both_ends():
    x = torch.from_numpy(np.zeros(N, np.int16)).view(torch.bfloat16)  # NumPy's zeros take no memory until written
    positions = [0, 1, 2**31 - 1, 2**31, N - 1]
    x[positions] = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], dtype=torch.bfloat16)
    x.requires_grad_()
    zeros = torch.from_numpy(np.zeros(N, np.int16)).view(torch.bfloat16)
    for loss, expected in (
        (multi_l1_loss([x], [zeros], [float(N)]), [1.0, -1.0, 1.0, -1.0, 1.0]),
        (lsgan_loss([x], 0.0, [float(N)]), [2.0, -4.0, 6.0, -8.0, 10.0]),
    ):
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient[positions].tolist() == expected
        assert gradient[[5, 2**31 + 1, N - 2]].tolist() == [0.0, 0.0, 0.0]
        del gradient
