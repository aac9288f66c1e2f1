"""Cases of the benchmark: agreement with float64, memory in a fresh process, and the setup as text."""

import pytest
import torch

from pix2pixhd.bench import perceptual_cases
from pix2pixhd.bench.case import Setup, TensorCase
from pix2pixhd.bench.cases import CASES, NETWORK_CASES, make_case
from pix2pixhd.bench.child import measure_memory
from pix2pixhd.bench.compiled_step import SUFFIX
from pix2pixhd.bench.memory import is_measurable
from pix2pixhd.bench.step_case import StepCase
from pix2pixhd.bench.step_setup import StepSetup
from pix2pixhd.ops.backend import is_reference
from pix2pixhd.ops.perceptual_tiling import MemoryLimitError

SMALL = Setup(width=32, height=32)


POINTWISE = [name for name in CASES if name not in NETWORK_CASES]
PAIRS = [(name, dtype) for name in POINTWISE for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), [*PAIRS, ("residual block", torch.float32)])
def test_every_case_agrees_with_float64(name, dtype):
    case = CASES[name](Setup(32, 32, dtype=dtype))
    assert all(found.agrees for found in case.agreement(["fused", "plain"], case.exact()).values())


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_training_step_agrees_with_nvidias_in_float64():
    sizes = StepSetup("32x32", ngf=4, ndf=4, n_downsample=2, n_blocks=1, num_D=1, label_nc=3)
    case = StepCase(SMALL, sizes)
    found = case.agreement(["fused", "plain"], case.exact())
    assert found["fused"].agrees
    assert 0 < found["plain"].error < 1e-4
    for name in case.names:
        case.run_of(name)()


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

    case = TensorCase(lambda _: loss, lambda: [([torch.rand(50, requires_grad=True)], [])])
    for Wrong.value, Wrong.gradient, agrees in (
        (1, 1, True),
        (1, 1.001, False),
        (1.001, 1, False),
        (1, torch.nan, False),
    ):
        assert case.agreement(["fused"], case.exact())["fused"].agrees == agrees


@pytest.mark.skipif(not is_measurable("cpu"), reason="the system does not report the memory of a process")
def test_memory_is_that_of_forward_and_backward():
    setup = Setup(256, 256)
    elements = 64 * 256 * 256 + 128 * 128**2 + 256 * 64**2 + 512 * 32**2 + 512 * 16**2
    [found] = measure_memory("fused", [("VGG feature maps", setup)])
    assert found["retained"] < 0.3 * 4 * elements  # two bits per element
    assert 4 * elements < found["peak"] < 1.5 * 4 * elements  # the gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["VGGLoss", "LPIPS"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_implementation_of_a_perceptual_loss_computes_the_same(name, dtype):
    case = CASES[name](Setup(32, 32, dtype=dtype))
    names = [implementation for implementation in case.names if implementation != "compiled"]
    found = case.agreement(names, case.exact())
    assert {"checkpoint", "features", "bounded"} < found.keys()
    assert {implementation: found[implementation] for implementation in names if not found[implementation].agrees} == {}


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_checkpoints_save_no_activations_but_those_at_their_borders():
    case = CASES["VGGLoss"](Setup(32, 32))

    def saved(name):
        tensors = {}

        def pack(x):
            tensors[x.data_ptr()] = x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            case.run_of(name, between=lambda: found.append(sum(tensors.values())))()

    found = []
    for name in ("plain", "checkpoint"):
        saved(name)
    assert found[1] < 0.6 * found[0]


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_bounded_implementation_has_a_memory_limit(monkeypatch):
    monkeypatch.setattr(perceptual_cases, "_SMALLEST_BOUND", 1)
    monkeypatch.setattr(perceptual_cases, "_BOUND", 1)
    run = CASES["VGGLoss"](SMALL).run_of("bounded")
    with pytest.raises(MemoryLimitError):
        run()


def test_a_compiled_step_computes_the_gradients_of_the_network_before_the_loss():
    case = make_case("LSGAN, generator" + SUFFIX, SMALL)
    exact = case.exact()
    assert len(exact) == 1 + 2 + 4  # the value, the inputs of two scales, their scales and shifts
    found = case.agreement(["fused", "plain"], exact)
    assert found["fused"].agrees
    assert 0 < found["plain"].error < 1e-5


def test_a_setup_survives_the_way_through_text():
    setup = Setup(48, 32, 3, 4, torch.float16, torch.device("cuda", 1), 2, True)
    assert Setup.from_json(setup.to_json()) == setup


@pytest.mark.parametrize("name", [*NETWORK_CASES, "VGGLoss" + SUFFIX])
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_exact_result_of_a_network_is_that_of_every_dtype(name):
    found = [make_case(name, Setup(32, 32, dtype=dtype)).exact() for dtype in (torch.float32, torch.bfloat16)]
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
