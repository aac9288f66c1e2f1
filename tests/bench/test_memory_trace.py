"""The memory timeline names where each tensor was allocated, also within autograd Functions and custom operators."""

import pytest
import torch
from memory_trace import MemoryTrace
from steps import Setup, prepared
from torch import nn

from pix2pixhd.bench.steps import free_gradients

N = 1000  # elements of float32 tensors


class FixedMemory:
    """Memory that no measurement changes: the tests look at the tensors."""

    def reset(self):
        pass

    def now(self):
        return 0

    def peak(self):
        return self.value

    value = 0


class RisingMemory(FixedMemory):
    """Every operator reaches a new peak, so the last operator of each stage is reported."""

    def peak(self):
        self.value += 1
        return self.value


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x * 3)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        x, _ = ctx.saved_tensors
        return gradient * torch.cos(x)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(N))
        self.function = function

    def forward(self, x):
        return self.function(x * self.scale)


def trace_of(net, run, memory=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    base = {"weights": list(net.parameters())}
    trace = MemoryTrace(memory or RisingMemory(), {"G": net}, {"G": optimizer}, base)
    with trace:
        run(optimizer)
    return trace


def alive(segment):
    """Bytes by stage and operator."""
    found = {}
    for origin, (nbytes, _) in segment.alive.items():
        key = origin.stage, origin.operator
        found[key] = found.get(key, 0) + nbytes
    return found


def test_allocations_of_an_autograd_function_are_named_in_forward_and_backward():
    net, x = Net(Square.apply), torch.rand(N)

    def run(optimizer):
        net(x).sum().backward()
        optimizer.step()

    trace = trace_of(net, run)
    assert trace.base_sizes == {"weights": 4 * N}
    stages = [segment.stage for segment in trace.segments]
    assert stages == ["G forward", "losses forward", "G backward", "optimizer G"]
    forward, _, backward, optimizer = trace.segments
    # The function saves its input and three times its input, and returns the input's square.
    assert alive(forward)["G forward", "aten.mul"] == 3 * 4 * N
    assert alive(backward)["G backward", "aten.mul"] > 0
    assert all(origin.kind == "Net" for origin in forward.alive if origin.operator == "aten.mul")
    assert all(
        stage in ("G forward", "G backward", "losses forward", "losses backward") for stage, _ in alive(backward)
    )
    assert alive(optimizer)["G backward", "gradient"] == 4 * N
    assert ("G forward", "aten.mul") not in alive(optimizer)


def test_operators_inside_a_custom_operator_in_python_are_traced():
    @torch.library.custom_op("pix2pixhd_test::inner", mutates_args=())
    def inner(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
        return (x.repeat(5) * factor)[:N].clone()

    net, x = Net(inner), torch.rand(N)
    with torch.no_grad():
        trace = trace_of(net, lambda _: net(x))
    (forward,) = trace.segments
    origins = {origin.operator: (origin.kind, nbytes) for origin, (nbytes, _) in forward.alive.items()}
    assert origins["aten.clone"] == ("pix2pixhd_test.inner", 4 * N)
    assert origins["aten.mul"][1] == 5 * 4 * N


def test_a_custom_operator_has_the_same_result_within_the_trace():
    @torch.library.custom_op("pix2pixhd_test::twice", mutates_args=())
    def twice(x: torch.Tensor, *, factor: float = 2.0) -> torch.Tensor:
        return x * factor

    net, x = Net(lambda x: twice(x, factor=3.0)), torch.rand(N)
    found = []
    with torch.no_grad():
        trace_of(net, lambda _: found.append(net(x)))
        torch.testing.assert_close(found[0], net(x), rtol=0, atol=0)


def test_memory_that_no_tensor_holds_is_reported():
    memory = FixedMemory()
    memory.value = 10_000_000
    net, x = Net(torch.sin), torch.rand(N)
    with torch.no_grad():
        trace = trace_of(net, lambda _: net(x), memory)
    (segment,) = trace.segments
    assert segment.outside_tensors == 10_000_000 - sum(nbytes for nbytes, _ in segment.alive.values())


def test_recomputed_modules_in_the_backward_keep_their_name():
    net, x = Net(torch.sin), torch.rand(N, requires_grad=True)

    def run(_):
        torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).sum().backward()

    trace = trace_of(net, run)
    assert any(("G backward", "aten.mul") in alive(segment) for segment in trace.segments)


@pytest.mark.filterwarnings("ignore:.*random weights")
@pytest.mark.parametrize("implementation", ["ours", "original"])
def test_a_step_has_the_stages_of_training_and_equal_results(implementation):
    setup = Setup("64x32", ngf=2, ndf=2, n_downsample=2, n_blocks=1, num_D=1, label_nc=3)

    def weights(traced):
        with prepared(implementation, "float32", setup) as (step, run, inputs):
            run(*inputs)
            free_gradients(step)
            networks = {"G": step.netG, "D": step.netD, "VGG": step.vgg}
            trace = MemoryTrace(RisingMemory(), networks, dict(zip("GD", step.optimizers, strict=True)), {})
            if traced:
                with trace:
                    run(*inputs)
            else:
                run(*inputs)
        return trace, [*step.netG.parameters(), *step.netD.parameters()]

    trace, found = weights(traced=True)
    _, expected = weights(traced=False)
    stages = {segment.stage for segment in trace.segments}
    assert {"G forward", "D forward", "D backward", "G backward", "optimizer G", "optimizer D"} <= stages
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
