"""Tests for a machine with an NVIDIA GPU. On other machines they are skipped, with the reason.

The references are the CPU operators and plain PyTorch in float64, which the other suites compare with each other.
``PIX2PIXHD_GPU_TESTS_DEVICE=cpu`` runs all tests that do not depend on CUDA on the CPU, to check the tests themselves
without a GPU.
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
    return f"the CUDA kernels are not available: {extension.cuda().reason}" if not extension.cuda().loaded else ""


def pytest_collection_modifyitems(items):
    reason = reason_to_skip()
    for item in items:
        if HERE not in item.path.parents:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif DEVICE != "cuda" and "cuda_only" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture
def device():
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Disable TensorFloat-32, which is less precise than the reference."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="session")
def vgg():
    from pix2pixhd.models.vgg import load_vgg

    with pytest.warns(UserWarning, match="random weights"):
        return load_vgg("random").to(DEVICE)
