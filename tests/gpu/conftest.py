"""Tests for a machine with an NVIDIA GPU; skipped elsewhere, with the reason.

What they compare with is the CPU's operators and plain PyTorch in float64, which the other suites hold against each
other. ``PIX2PIXHD_GPU_TESTS_DEVICE=cpu`` runs all that is not about CUDA itself on the CPU: so the tests themselves can
be tried without a GPU.
"""

import os
import pathlib

import pytest
import torch

from pix2pixhd.ops import extension

HERE = pathlib.Path(__file__).parent
DEVICE = os.environ.get("PIX2PIXHD_GPU_TESTS_DEVICE") or "cuda"


def reason_to_skip():
    if DEVICE != "cuda":
        return ""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    return f"the CUDA kernels are not there: {extension.cuda().reason}" if not extension.cuda().loaded else ""


def pytest_collection_modifyitems(items):
    reason = reason_to_skip()
    for item in items:
        if HERE not in item.path.parents:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif DEVICE != "cuda" and "cuda_only" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="about CUDA itself"))


@pytest.fixture
def device():
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """TensorFloat-32 would be another precision than the reference's."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="session")
def vgg():
    from pix2pixhd.models.vgg import load_vgg

    with pytest.warns(UserWarning, match="random weights"):
        return load_vgg("random").to(DEVICE)
