"""Cases of the benchmark: agreement with float64, memory in a fresh process, and the setup as text."""

import pytest
import torch

from pix2pixhd.bench.case import Setup, TensorCase
from pix2pixhd.bench.cases import CASES, NETWORK_CASES
from pix2pixhd.bench.child import measure_memory
from pix2pixhd.bench.memory import is_measurable
from pix2pixhd.bench.step_case import StepCase
from pix2pixhd.bench.step_setup import StepSetup
from pix2pixhd.ops.backend import is_reference

SMALL = Setup(width=32, height=32)


POINTWISE = [name for name in CASES if name not in NETWORK_CASES]
PAIRS = [(name, dtype) for name in POINTWISE for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), [*PAIRS, ("residual block", torch.float32)])
def test_every_case_agrees_with_float64(name, dtype):
    case = CASES[name](Setup(32, 32, dtype=dtype))
    assert all(found.agrees for found in case.agreement(["fused", "plain"]).values())
    assert set(case.implementations(with_compile=False)) - {"limit"} == {"fused", "plain"}


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_training_step_agrees_with_nvidias_in_float64():
    sizes = StepSetup("32x32", ngf=4, ndf=4, n_downsample=2, n_blocks=1, num_D=1, label_nc=3)
    case = StepCase(SMALL, sizes)
    found = case.agreement(["fused", "plain"])
    assert found["fused"].agrees
    assert 0 < found["plain"].error < 1e-4
    for run in case.implementations().values():
        run()


def test_a_wrong_gradient_and_a_wrong_value_do_not_agree():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x if is_reference() else x * Wrong.value

        @staticmethod
        def backward(ctx, grad):
            return grad if is_reference() else grad * Wrong.gradient

    def loss(fake, real):
        return Wrong.apply(fake[0].square().mean())

    case = TensorCase(lambda _: loss, [([torch.rand(50, requires_grad=True)], [])])
    for Wrong.value, Wrong.gradient, agrees in (
        (1, 1, True),
        (1, 1.001, False),
        (1.001, 1, False),
        (1, torch.nan, False),
    ):
        assert case.agreement(["fused"])["fused"].agrees == agrees


@pytest.mark.skipif(not is_measurable("cpu"), reason="the system does not report the memory of a process")
def test_memory_is_that_of_forward_and_backward():
    setup = Setup(256, 256)
    elements = 64 * 256 * 256 + 128 * 128**2 + 256 * 64**2 + 512 * 32**2 + 512 * 16**2
    [found] = measure_memory("fused", [("VGG feature maps", setup)])
    assert found["retained"] < 0.3 * 4 * elements  # two bits per element
    assert 4 * elements < found["peak"] < 1.5 * 4 * elements  # the gradients


def test_a_setup_survives_the_way_through_text():
    setup = Setup(48, 32, 3, 4, torch.float16, torch.device("cuda", 1), 2)
    assert Setup.from_json(setup.to_json()) == setup
