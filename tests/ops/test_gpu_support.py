"""Unsupported GPUs: plain PyTorch runs instead, with one warning that names the remedy. Runs without a GPU."""

import os
import types
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pix2pixhd
from pix2pixhd.cli import doctor
from pix2pixhd.functional import hinge_loss, multi_l1_loss
from pix2pixhd.ops import backend, extension, gpu_support, reference


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),  # machine code: the same major version and the same or a higher minor version
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("9.0", (8, 9), False),
        ("8.0;9.0", (9, 0), True),
        ("8.0+PTX", (12, 0), True),  # PTX: the same or a newer version
        ("8.0+PTX", (7, 5), False),
        ("8.6+PTX", (8, 0), False),
        ("9.0;8.0+PTX", (10, 0), True),
        ("9.0a", (9, 0), True),  # specific to one architecture, PTX too
        ("10.0a+PTX", (10, 0), True),
        ("10.0a+PTX", (10, 3), False),
        ("10.0a+PTX", (12, 0), False),
        ("9.0a;9.0+PTX", (12, 0), True),
        ("10.0f", (10, 3), True),  # for a family: higher minor versions too
        ("10.3f", (10, 0), False),
        ("10.0f+PTX", (12, 0), False),
        ("8.0", (8, 7), False),  # machine code is not compatible between Tegra boards and discrete GPUs
        ("8.7", (8, 9), False),
        ("8.7", (8, 7), True),
        ("8.0+PTX", (8, 7), True),
        ("10.0", (1, 0), False),
        ("12.0;12.1", (12, 1), True),
        ("", (9, 0), False),
    ],
)
def test_covers_follows_the_compatibility_rules(archs, capability, covered):
    assert gpu_support.covers(archs, capability) == covered


@pytest.fixture
def gpus(monkeypatch):
    """Simulate GPUs of the given capabilities, with kernels for 8.0 and 9.0a; record each capability query."""
    queried = []

    def install(*capabilities, archs="8.0;9.0a"):
        def capability(index=None):
            queried.append(index)
            return capabilities[index or 0]

        monkeypatch.setattr(extension, "build_facts", lambda: types.SimpleNamespace(cuda_archs=archs))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: f"Card {capabilities[index or 0][0]}")
        monkeypatch.setitem(backend._REASONS, "cuda", "")
        monkeypatch.setattr(backend, "_warned", set())
        return queried

    return install


@pytest.fixture(autouse=True)
def clear_cached_queries():
    gpu_support._find_missing.cache_clear()
    yield
    gpu_support._find_missing.cache_clear()


REASON = (
    "the CUDA kernels were built for 8.0;9.0a, and Card 12 has compute capability 12.0; reinstall this package with "
    "TORCH_CUDA_ARCH_LIST='8.0;9.0a;12.0' pip install "
)


def test_the_capability_of_each_gpu_is_queried_once(gpus):
    queried = gpus((12, 0), (8, 6))
    for _ in range(3):
        assert backend.unavailable(torch.device("cuda", 0)).startswith(REASON)
        assert backend.unavailable(torch.device("cuda", 1)) == ""
        assert backend.unavailable(torch.device("cpu")) == ""
    assert queried == [0, 1]


def test_the_message_for_a_gpu_that_no_build_supports_does_not_suggest_a_rebuild(gpus):
    gpus((6, 1))
    reason = backend.unavailable(torch.device("cuda", 0))
    assert reason == "the CUDA kernels need compute capability 7.0 or newer, and Card 6 has 6.1"


def test_unknown_architectures_or_absent_gpus_do_not_disable_the_kernels(gpus):
    """The build may not record its architectures, and tracing creates tensors on a GPU that does not exist."""
    queried = gpus((12, 0), archs="")
    assert backend.unavailable(torch.device("cuda", 0)) == ""
    assert queried == []
    gpu_support._find_missing.cache_clear()
    gpus()
    assert backend.unavailable(torch.device("cuda", 0)) == ""


def test_a_load_failure_takes_precedence_over_the_capability(gpus, monkeypatch):
    queried = gpus((12, 0))
    monkeypatch.setitem(backend._REASONS, "cuda", "they do not load")
    assert backend.unavailable(torch.device("cuda", 0)) == "they do not load"
    assert queried == []


def test_plain_pytorch_runs_instead_with_one_warning(gpus, monkeypatch):
    gpus((12, 0), (12, 0), (8, 0))
    for name in ("multi_l1_loss", "hinge_loss"):
        monkeypatch.setattr(reference, name, lambda *_: "plain PyTorch")
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in (0, 1, 0):
            x = torch.empty(3, device=f"cuda:{index}")
            assert multi_l1_loss([x], [x]) == hinge_loss([x], True) == "plain PyTorch"
        with (
            pix2pixhd.backend("fused"),
            pytest.raises(RuntimeError, match=r"backend\('fused'\) was requested, but the CUDA kernels were built for"),
        ):
            hinge_loss([x], True)
        assert hinge_loss([torch.empty(3, device="cuda:2")], True).device.index == 2
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert str(warning.message).startswith(
        "pix2pixhd: the losses on cuda run in plain PyTorch, which is slower and takes more memory: " + REASON
    )


def test_torch_compile_treats_the_result_as_a_constant(monkeypatch):
    """This includes the first call, whose CUDA query must not be traced."""
    queried = []

    def capability(index):
        with open(os.devnull):  # cannot be traced
            queried.append(index)
        return [(12, 0), (9, 0)][index]

    cuda = types.SimpleNamespace(
        is_available=lambda: True, get_device_capability=capability, get_device_name=lambda index: "Card"
    )
    # Replaced only in gpu_support: torch.compile must not see the simulated GPUs.
    monkeypatch.setattr(gpu_support, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(extension, "build_facts", lambda: types.SimpleNamespace(cuda_archs="9.0"))
    monkeypatch.setitem(backend._REASONS, "cuda", "")

    @torch.compile(fullgraph=True, backend="eager")
    def negated_where_covered(x):
        for index in (0, 1):
            if not backend.unavailable(torch.device("cuda", index)):
                x = -x
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            assert negated_where_covered(torch.ones(1)).item() == -1.0
    assert queried == [0, 1]


def test_doctor_reports_unsupported_gpus(gpus, capsys):
    gpus((9, 0), (12, 0))
    assert not doctor._gpus(loaded=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["GPU", "0", "Card", "9,", "compute", "capability", "9.0"],
        ["GPU", "1", "Card", "12,", "compute", "capability", "12.0"],
    ]
    assert lines[2].strip().startswith(f"no: {REASON}")
    assert len(lines) == 3
    gpus((9, 0), (8, 6))
    gpu_support._find_missing.cache_clear()
    assert doctor._gpus(loaded=True)
    assert not doctor._gpus(loaded=False)
    gpus()
    assert doctor._gpus(loaded=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_unsupported_kernels_are_not_launched_on_a_real_gpu(monkeypatch):
    monkeypatch.setattr(extension, "build_facts", lambda: types.SimpleNamespace(cuda_archs="5.0"))
    monkeypatch.setattr(backend, "_warned", set())
    x = torch.tensor([1.0, -3.0], device="cuda", requires_grad=True)
    with pytest.warns(RuntimeWarning, match=r"the CUDA kernels were built for 5\.0, and "):
        loss = hinge_loss([x], True)
    assert loss.item() == 2.0
    with pytest.raises(RuntimeError, match=r"the CUDA kernels were built for 5\.0"), pix2pixhd.backend("fused"):
        hinge_loss([x], True)
