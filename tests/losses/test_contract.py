"""Contract of the losses: every PyTorch feature gives the result of plain PyTorch or raises a clear error.

Each feature below is tested with every public loss (``contract.losses``) on the fused and the reference backend. A new
feature is one function. A combination that raises an error is listed in ``ERRORS``.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import pix2pixhd
from pix2pixhd.ops import backend

from .contract import Loss, Tensors, losses

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warns about random VGG weights
    LOSSES = losses()

FEATURES = {}
# Maps (feature, loss, backend) to the expected error message.
_TWICE = r"differentiated twice .*keep_activations=True"
_FROZEN = "VGGLoss", "FrozenFeatureLoss", "StyleLoss", "GeneratorLoss with VGG"
ERRORS = {("create_graph", name, "fused"): _TWICE for name in _FROZEN}


def feature(function):
    FEATURES[function.__name__] = function
    return function


def inputs(loss: Loss, dtype: torch.dtype = torch.float32, batch: int | None = None) -> Tensors:
    """Returns leaf tensors of the loss's shapes. The values are the same in every dtype, up to rounding."""
    generator = torch.Generator().manual_seed(5)
    shapes = [shape if batch is None else (batch, *shape[1:]) for shape in loss.shapes]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def wide(xs: Tensors) -> Tensors:
    return [x.detach().double().requires_grad_() for x in xs]


def gradients(value: Tensor, xs: Tensors) -> Tensors:
    found = torch.autograd.grad(value, xs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(xs, found, strict=True)]


def close(actual, expected, rtol: float = 2e-4) -> None:
    """Compares with float64, relative to the largest value: float32 convolutions lose digits near zero."""
    pairs = zip(*[x if isinstance(x, (list, tuple)) else [x] for x in (actual, expected)], strict=True)
    for a, b in pairs:
        largest = b.detach().nan_to_num().abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(
            a.detach().double(), b.detach().double(), rtol=rtol, atol=rtol * largest, equal_nan=True
        )


def agrees(loss: Loss, xs: Tensors, value: Tensor, rtol: float = 2e-4, factor: float = 1.0) -> None:
    """Checks that value and gradients match plain PyTorch in float64."""
    ys = wide(xs)
    expected = factor * loss.oracle(ys)
    close(value, expected, rtol)
    close(gradients(value, xs), gradients(expected, ys), rtol)


@feature
def autograd(loss):
    xs = inputs(loss)
    agrees(loss, xs, loss(xs))


@feature
def two_backwards(loss):
    xs = inputs(loss)
    value = loss(xs)
    torch.autograd.grad(3 * value, xs, retain_graph=True, allow_unused=True)
    agrees(loss, xs, -2 * value, factor=-2.0)


@feature
def gradient_of_one_tensor(loss):
    """Gradient of each input that the loss uses, while the other inputs require no gradient."""
    ys = wide(inputs(loss))
    expected = torch.autograd.grad(loss.oracle(ys), ys, allow_unused=True)
    used = [k for k, gradient in enumerate(expected) if gradient is not None]
    assert used, "the loss must use an input"
    for k in used:
        xs = [x.requires_grad_(i == k) for i, x in enumerate(inputs(loss))]
        assert expected[k].any(), "the expected gradient must not be zero"
        close(torch.autograd.grad(loss(xs), xs[k])[0], expected[k])


@feature
def create_graph(loss):
    """Derivative of a gradient penalty."""
    results = []
    for function, xs in ((loss, inputs(loss)), (loss.oracle, wide(inputs(loss)))):
        factor = torch.tensor(2.0, dtype=xs[0].dtype, requires_grad=True)
        first = torch.autograd.grad(factor * function(xs), xs, create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        results.append(gradients(penalty, [factor, *xs]))
    close(*results, rtol=1e-3)


@feature
def forward_mode(loss):
    results = []
    for function, xs in ((loss, inputs(loss)), (loss.oracle, wide(inputs(loss)))):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x.detach(), x.detach().cos()) for x in xs]
            results.append(forward_ad.unpack_dual(function(duals)).tangent)
    close(*results, rtol=1e-3)


def transformed(transform):
    """Returns a feature that compares a ``torch.func`` transform of the loss."""

    def run(loss):
        results = []
        for function, xs in ((loss, inputs(loss)), (loss.oracle, wide(inputs(loss)))):
            plain = [x.detach() for x in xs]
            results.append(transform(lambda *a, f=function: f(list(a)), plain))
        close(*results, rtol=1e-3)

    return run


def _everything(xs):
    return tuple(range(len(xs)))


def _hessian(function, xs):
    """Returns the Hessian, or a Hessian-vector product if the Hessian would be large."""
    if sum(x.numel() for x in xs) < 300:
        return [block for row in torch.func.hessian(function, argnums=_everything(xs))(*xs) for block in row]

    def slope(*tensors):
        gradient = torch.func.grad(function, argnums=_everything(xs))(*tensors)
        return sum((g * x.cos()).sum() for g, x in zip(gradient, xs, strict=True))

    return torch.func.grad(slope, argnums=_everything(xs))(*xs)


FEATURES["func_grad"] = transformed(lambda f, xs: torch.func.grad(f, argnums=_everything(xs))(*xs))
FEATURES["func_jvp"] = transformed(lambda f, xs: torch.func.jvp(f, tuple(xs), tuple(x.cos() for x in xs))[1])
FEATURES["func_jacrev"] = transformed(lambda f, xs: torch.func.jacrev(f, argnums=_everything(xs))(*xs))
FEATURES["func_hessian"] = transformed(_hessian)
FEATURES["func_vmap"] = transformed(lambda f, xs: torch.func.vmap(f)(*[torch.stack([x, x / 2]) for x in xs]))
FEATURES["func_vmap_of_grad"] = transformed(
    lambda f, xs: torch.func.vmap(torch.func.grad(f, argnums=_everything(xs)))(*[torch.stack([x, x / 2]) for x in xs])
)


@feature
def batched_gradients(loss):
    results = []
    for function, xs in ((loss, inputs(loss)), (loss.oracle, wide(inputs(loss)))):
        upstream = torch.tensor([1.0, -2.0, 0.5], dtype=xs[0].dtype)
        found = torch.autograd.grad(function(xs), xs, upstream, is_grads_batched=True, allow_unused=True)
        results.append([g for g in found if g is not None])
    close(*results)


@feature
def compile_with_changing_numbers_and_sizes(loss):
    torch._dynamo.reset()
    # tests/ops/test_numbers.py covers the reference backend under aot_eager.
    counter = CompileCounterWithBackend("eager" if backend._current == "reference" else "aot_eager")
    compiled = torch.compile(lambda xs, factor: factor * loss(xs), backend=counter, fullgraph=True)
    numbers = {name: value for name, value in vars(loss.criterion).items() if isinstance(value, float)}
    fixed, annealed = inputs(loss), set()
    try:
        for step in range(3):
            if loss.anneal is not None:
                loss.anneal(loss.criterion, 0.3 + 0.1 * step)
            annealed.add(loss(fixed).item())
            xs = inputs(loss, batch=2 + step)
            value, expected = compiled(xs, 0.1 + step), (0.1 + step) * loss(xs)
            close(value, expected)
            close(gradients(value, xs), gradients(expected, xs))
    finally:
        vars(loss.criterion).update(numbers)
    assert loss.anneal is None or len(annealed) == 3, "annealing must change the loss"
    assert counter.frame_count <= 2, "expected at most one static and one dynamic graph"


def _half(loss: Loss, dtype: torch.dtype, autocast: bool) -> None:
    xs = inputs(loss, dtype)
    results = []
    for function in (loss, loss.oracle):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            value = function(xs)
        results.append((value, gradients(value, xs)))
    assert results[0][0].dtype == results[1][0].dtype
    eps = 4 * torch.finfo(dtype).eps
    close(results[0][0], results[1][0], rtol=eps)
    close(results[0][1], results[1][1], rtol=10 * eps if loss.vgg else eps)


@feature
def autocast_bfloat16(loss):
    _half(loss, torch.bfloat16, autocast=True)


@feature
def autocast_float16(loss):
    _half(loss, torch.float16, autocast=True)


@feature
def half_without_autocast(loss):
    if not loss.vgg:
        _half(loss, torch.bfloat16, autocast=False)


@feature
def loss_scale(loss):
    """Float16 gradients of a scaled loss, as with a ``GradScaler``. The scale fits the dtype of the loss."""
    xs = inputs(loss, torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(xs)
    scale = 65536.0 if value.dtype == torch.float32 else 1024.0
    scaled = value.float() * scale
    ys = wide(xs)
    expected = gradients(loss.oracle(ys) * scale, ys)
    representable = [g.clamp(-65504, 65504) for g in expected]
    found = [g.double().clamp(-65504, 65504) for g in gradients(scaled, xs)]
    close(found, representable, rtol=5e-2 if loss.vgg else 2e-2)


class _Net(nn.Module):
    """A model that contains the loss, to be wrapped in DDP."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = [loss]
        self.criterion = loss.criterion if isinstance(loss.criterion, nn.Module) else None
        self.scale = nn.Parameter(torch.tensor(0.8))

    def forward(self, xs: Tensors) -> Tensor:
        return self.loss[0]([self.scale * x for x in xs])


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@feature
def distributed(loss):
    model = nn.parallel.DistributedDataParallel(_Net(loss))
    xs = [x.detach() for x in inputs(loss)]
    model(xs).backward()
    scale = torch.tensor(0.8).double().requires_grad_()
    expected = loss.oracle([scale * x.double() for x in xs])
    close(model.module.scale.grad, torch.autograd.grad(expected, scale)[0])


@feature
def checkpointing(loss):
    for reentrant in (False, True):
        xs = inputs(loss)
        agrees_after_backward(loss, xs, checkpoint(lambda *a: loss(list(a)), *xs, use_reentrant=reentrant))


def agrees_after_backward(loss: Loss, xs: Tensors, value: Tensor) -> None:
    """Like ``agrees``, but with ``backward``: reentrant checkpointing does not support ``autograd.grad``."""
    value.backward()
    ys = wide(xs)
    expected = loss.oracle(ys)
    close(value, expected)
    close([torch.zeros_like(x) if x.grad is None else x.grad for x in xs], gradients(expected, ys))


@feature
def inference_mode(loss):
    xs = inputs(loss)
    with torch.inference_mode():
        value = loss([x * 1 for x in xs])
    close(value, loss.oracle(wide(xs)))
    with torch.no_grad():
        assert not loss(xs).requires_grad


@feature
def deepcopy_and_pickle(loss):
    xs = inputs(loss)
    for twin in (copy.deepcopy(loss.criterion), pickle.loads(pickle.dumps(loss.criterion))):
        agrees(loss, xs, loss.call(twin, xs))


@feature
def hooks(loss):
    xs, calls = inputs(loss), []
    handles = [x.register_hook(lambda g: 3 * g) for x in xs]
    if isinstance(loss.criterion, nn.Module):
        handles.append(loss.criterion.register_forward_hook(lambda *a: calls.append("forward")))
        handles.append(loss.criterion.register_forward_pre_hook(lambda *a: calls.append("before")))
    value = loss(xs)
    value.backward()
    assert len(calls) == len(handles) - len(xs)
    ys = wide(xs)
    close([torch.zeros_like(x) if x.grad is None else x.grad for x in xs], gradients(3 * loss.oracle(ys), ys))
    for handle in handles:
        handle.remove()


@feature
def weights_changed_in_place(loss):
    if loss.network is None:
        return
    xs = inputs(loss)
    loss(xs)
    networks = loss.network, loss.double_network
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    try:
        with torch.no_grad():
            for parameter in itertools.chain(*[network.parameters() for network in networks]):
                parameter.mul_(1.5).add_(0.01)
        agrees(loss, xs, loss(xs))
    finally:
        for network, state in zip(networks, before, strict=True):
            network.load_state_dict(state)


@feature
def inputs_changed_in_place(loss):
    """Inputs modified after forward: the gradient at the old values, or autograd's own error."""
    xs = inputs(loss)
    inner = [x * 1 for x in xs]
    value = loss(inner)
    ys = wide(xs)
    expected = gradients(loss.oracle(ys), ys)
    with torch.no_grad():
        for x in inner:
            x.mul_(-3)
    try:
        found = gradients(value, xs)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    else:
        close(found, expected)


@feature
def empty(loss):
    xs = inputs(loss, batch=0)
    value, ys = loss(xs), wide(xs)
    expected = loss.oracle(ys)
    close(value, expected)
    assert [g.shape for g in gradients(value, xs)] == [x.shape for x in xs]


def laid_out(arrange):
    """Returns a feature that passes the same values in another memory layout."""

    def run(loss):
        xs = inputs(loss)
        agrees(loss, xs, loss([arrange(x) for x in xs]))

    return run


FEATURES["channels_last"] = laid_out(lambda x: x.contiguous(memory_format=torch.channels_last))
FEATURES["transposed"] = laid_out(lambda x: x.transpose(1, 3).contiguous().transpose(1, 3))
FEATURES["sliced"] = laid_out(lambda x: nn.functional.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2])
FEATURES["expanded"] = laid_out(lambda x: x.unsqueeze(0).expand(2, *x.shape)[1])


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("process_group")
def test_feature_matches_plain_pytorch_or_raises(feature, loss, backend):
    error = ERRORS.get((feature, loss, backend))
    _ = LOSSES[loss].double_network  # created before the transforms, which refuse to convert a module
    with pix2pixhd.backend(backend):
        if error is None:
            FEATURES[feature](LOSSES[loss])
        else:
            with pytest.raises(RuntimeError, match=error):
                FEATURES[feature](LOSSES[loss])
