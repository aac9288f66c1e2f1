"""A GPU that no kernel was built for: the reference takes over, said once, with the way out. Needs no GPU."""

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
        ("8.0", (8, 9), True),  # machine code: the same major version, the same minor version or a higher one
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("9.0", (8, 9), False),
        ("8.0;9.0", (9, 0), True),
        ("8.0+PTX", (12, 0), True),  # PTX: all that is not older
        ("8.0+PTX", (7, 5), False),
        ("8.6+PTX", (8, 0), False),
        ("9.0;8.0+PTX", (10, 0), True),
        ("9.0a", (9, 0), True),  # of one architecture: that one, PTX too
        ("10.0a+PTX", (10, 0), True),
        ("10.0a+PTX", (10, 3), False),
        ("10.0a+PTX", (12, 0), False),
        ("9.0a;9.0+PTX", (12, 0), True),
        ("10.0f", (10, 3), True),  # of a family: higher minor versions
        ("10.3f", (10, 0), False),
        ("10.0f+PTX", (12, 0), False),
        ("8.0", (8, 7), False),  # boards run neither a desktop GPU's machine code nor the other way round
        ("8.7", (8, 9), False),
        ("8.7", (8, 7), True),
        ("8.0+PTX", (8, 7), True),
        ("10.0", (1, 0), False),
        ("12.0;12.1", (12, 1), True),
        ("", (9, 0), False),
    ],
)
def test_the_rule(archs, capability, covered):
    assert gpu_support.covers(archs, capability) == covered


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch see GPUs of these capabilities under kernels for 8.0 and 9.0a; counts how often they are asked."""
    asked = []

    def install(*capabilities, archs="8.0;9.0a"):
        def capability(index=None):
            asked.append(index)
            return capabilities[index or 0]

        monkeypatch.setattr(extension, "build_facts", lambda: types.SimpleNamespace(cuda_archs=archs))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: f"Card {capabilities[index or 0][0]}")
        monkeypatch.setitem(backend._REASONS, "cuda", "")
        monkeypatch.setattr(backend, "_warned", set())
        return asked

    return install


@pytest.fixture(autouse=True)
def nothing_asked_yet():
    gpu_support._find_missing.cache_clear()
    yield
    gpu_support._find_missing.cache_clear()


REASON = (
    "the CUDA kernels were built for 8.0;9.0a, and Card 12 has compute capability 12.0; reinstall this package with "
    "`TORCH_CUDA_ARCH_LIST='8.0;9.0a;12.0' pip install "
)


def test_each_gpu_is_asked_once(gpus):
    asked = gpus((12, 0), (8, 6))
    for _ in range(3):
        assert backend.unavailable(torch.device("cuda", 0)).startswith(REASON)
        assert backend.unavailable(torch.device("cuda", 1)) == ""
        assert backend.unavailable(torch.device("cpu")) == ""
    assert asked == [0, 1]


def test_a_gpu_that_no_build_supports_is_not_told_to_rebuild(gpus):
    gpus((6, 1))
    reason = backend.unavailable(torch.device("cuda", 0))
    assert reason == "the CUDA kernels need compute capability 7.0 or newer, and Card 6 has 6.1"


def test_what_is_not_known_is_no_obstacle(gpus):
    """No facts of the build, or tensors of a GPU that is not there: what torch makes up while it traces."""
    asked = gpus((12, 0), archs="")
    assert backend.unavailable(torch.device("cuda", 0)) == ""
    assert asked == []
    gpu_support._find_missing.cache_clear()
    gpus()
    assert backend.unavailable(torch.device("cuda", 0)) == ""


def test_kernels_that_do_not_load_are_the_reason_that_counts(gpus, monkeypatch):
    asked = gpus((12, 0))
    monkeypatch.setitem(backend._REASONS, "cuda", "they do not load")
    assert backend.unavailable(torch.device("cuda", 0)) == "they do not load"
    assert asked == []


def test_the_reference_takes_over_with_one_warning(gpus, monkeypatch):
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


def test_torch_compile_takes_the_answer_for_a_constant(monkeypatch):
    """Also the first time: then what asks CUDA must not be traced."""
    asked = []

    def capability(index):
        with open(os.devnull):  # cannot be traced
            asked.append(index)
        return [(12, 0), (9, 0)][index]

    cuda = types.SimpleNamespace(
        is_available=lambda: True, get_device_capability=capability, get_device_name=lambda index: "Card"
    )
    # Not torch itself: torch.compile would believe in the GPUs too.
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
    assert asked == [0, 1]


def test_doctor_says_it(gpus, capsys):
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
def test_on_a_gpu(monkeypatch):
    """Kernels that are said to be for a museum piece are not launched."""
    monkeypatch.setattr(extension, "build_facts", lambda: types.SimpleNamespace(cuda_archs="5.0"))
    monkeypatch.setattr(backend, "_warned", set())
    x = torch.tensor([1.0, -3.0], device="cuda", requires_grad=True)
    with pytest.warns(RuntimeWarning, match=r"the CUDA kernels were built for 5\.0, and "):
        loss = hinge_loss([x], True)
    assert loss.item() == 2.0
    with pytest.raises(RuntimeError, match=r"the CUDA kernels were built for 5\.0"), pix2pixhd.backend("fused"):
        hinge_loss([x], True)
