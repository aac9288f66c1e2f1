"""Residual blocks whose last norm adds the block's input in its own pass."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd.models import define_G
from pix2pixhd.models.layers import ResnetBlock
from pix2pixhd.nn import InstanceNormAct2d, lean
from pix2pixhd.nn.lean import add_output

from .helpers import NORMS, differentiate, error, images, kept_bytes, plain_and_lean, randomised


class Sum(nn.Module):
    """A residual block of any layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return add_output(x, self.layers, x)


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


class Additions(TorchDispatchMode):
    """Counts PyTorch's additions of images."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten.add.Tensor and result.dim() == 4
        return result


def additions(network, x):
    with Additions() as counted:
        network(x)
    return counted.count


def block(norm="instance", padding="reflect"):
    return randomised(ResnetBlock(4, padding, NORMS[norm])).double()


def assert_equal(plain, ours, x):
    for found, expected in zip(differentiate(ours, x), differentiate(plain, x), strict=True):
        assert error(found, expected) < 1e-12


ENDS = {
    "relu": [nn.InstanceNorm2d(4), nn.ReLU(True)],
    "leaky": [nn.InstanceNorm2d(4), nn.LeakyReLU(0.2, True)],
    "fused leaky": [InstanceNormAct2d(4, activation="leaky_relu")],
    "fused, affine": [InstanceNormAct2d(4, affine=True, activation=None)],
    "padded": [InstanceNormAct2d(4, padding=(1, 0, 0, 0)), nn.Conv2d(4, 4, (1, 2)), nn.BatchNorm2d(4)],
}


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
@pytest.mark.parametrize(("n", "padding"), [(1, "reflect"), (2, "zero")])
def test_the_norm_of_a_block_adds_its_input(norm, n, padding):
    plain, ours = plain_and_lean(block(norm, padding))
    x = images(n, 4, 9, 8)
    assert_equal(plain, ours, x)
    assert_equal(plain.eval(), ours.eval(), x)
    assert additions(plain, x) == 1
    assert additions(ours, x) == 0


@pytest.mark.parametrize("end", ENDS)
def test_an_activation_after_the_norm_precedes_the_sum(end):
    plain, ours = plain_and_lean(randomised(Sum(nn.Conv2d(4, 4, 3, padding=1), *copy.deepcopy(ENDS[end]))).double())
    x = images(2, 4, 9, 8)
    assert_equal(plain, ours, x)
    assert additions(ours, x) == 0


def test_a_padded_result_that_does_not_fit_is_an_error():
    for network in plain_and_lean(Sum(InstanceNormAct2d(4, padding=1))):
        with pytest.raises(RuntimeError, match="size of tensor a"):
            network(images(2, 4, 9, 8))


def test_the_generators_add_in_their_norms():
    for kind in ("global", "local"):
        network = lean(define_G(3, 3, 2, kind, 1, 2, 1, 1))
        assert additions(network, images(1, 3, 16, 16).float()) == 0


def test_a_block_keeps_its_two_convolutions_and_its_result():
    ours = lean(block())
    x = images(2, 4, 32, 32).requires_grad_()
    kept = kept_bytes(lambda: ours(x))
    assert kept < 3 * x.nbytes + 1000
    assert kept == kept_bytes(lambda: x + ours.conv_block(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("end", [[nn.BatchNorm2d(4)], ENDS["leaky"], ENDS["relu"]])
def test_half_precision_results_are_rounded_once(end, dtype):
    plain, ours = plain_and_lean(Sum(*copy.deepcopy(end)))
    x = images(2, 4, 32, 32).to(dtype)
    exact = copy.deepcopy(plain).double()(x.double())
    errors = [(network(x.clone()).double() - exact).square().mean() for network in (ours, plain)]
    assert errors[0] < errors[1]
    assert error([ours(x)], [exact]) < torch.finfo(dtype).eps / 2  # the largest error of one rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_input_in_float32_promotes_the_sum_under_autocast(dtype):
    results = []
    for network in plain_and_lean(block().float()):
        with torch.autocast("cpu", dtype=dtype):
            outputs, grads = differentiate(network, images(2, 4, 9, 8).float())
        assert outputs[0].dtype == torch.float32
        results.append([*outputs, *grads])
    assert error(results[1], results[0]) < 2e-2


def cropped(x):
    return torch.nn.functional.pad(x, (1, 1))[..., 1:-1]


RESIDUALS = {
    "channels last": (lambda x: x.contiguous(memory_format=torch.channels_last), 1),
    "cropped": (cropped, 1),
    "one channel": (lambda x: x[:, :1].contiguous(), 1),
    "float32": (lambda x: x.float(), 1),
    "constant": (lambda x: x.detach().cos(), 0),
}


@pytest.mark.parametrize("case", RESIDUALS)
def test_any_residual_is_added(case):
    change, count = RESIDUALS[case]
    plain, ours = plain_and_lean(block().conv_block)
    results = []
    for layers in (plain, ours):
        x = images(2, 4, 9, 8).requires_grad_()
        y = add_output(change(x), layers, x)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *layers.parameters()])])
        assert y.stride() == (change(x) + layers(x)).stride()
    assert error(results[1], results[0]) < (1e-6 if case == "float32" else 1e-12)
    assert additions(lambda x: add_output(change(x), ours, x), images(2, 4, 9, 8)) == count


def test_second_derivatives_work():
    results = []
    for network in plain_and_lean(block("instance affine")):
        x = images(2, 4, 6, 7).requires_grad_()
        y = network(x)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        first.square().sum().backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]  # biases cancel
        results.append([first.detach(), x.grad, *grads])
    plain, ours = results
    assert error(ours[:2], plain[:2]) < 1e-11
    assert error([g for g in ours if g.dim() == 4], [g for g in plain if g.dim() == 4]) < 1e-11


@pytest.mark.parametrize("frozen", ["norms", "convolutions", "all", "input", "input and first half"])
def test_frozen_parameters_and_inputs_get_no_gradient(frozen):
    network = block("batch")
    for name, p in network.named_parameters():
        first = int(name.split(".")[1]) < 4
        chosen = {"norms": p.dim() == 1, "convolutions": p.dim() == 4, "all": True, "input": False}
        p.requires_grad_(not chosen.get(frozen, first))
    results = []
    for each in plain_and_lean(network):
        x = images(2, 4, 9, 8).requires_grad_("input" not in frozen)
        each(x).sin().sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in (x, *each.parameters()))
        results.append([p.grad for p in (x, *each.parameters()) if p.requires_grad])
    assert error(results[1], results[0]) < 1e-12


def test_the_upstream_gradient_is_unchanged():
    x = images(2, 4, 9, 8).requires_grad_()
    upstream = images(2, 4, 9, 8, seed=3)
    y = lean(block())(x)
    for _ in range(2):
        y.backward(upstream, retain_graph=True)
    assert torch.equal(upstream, images(2, 4, 9, 8, seed=3))


def test_an_input_that_no_layer_saves_may_be_modified_before_the_backward():
    network = randomised(Sum(Doubled(), nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4))).double()
    results = []
    for each in plain_and_lean(network):
        leaf = images(2, 4, 9, 8).requires_grad_()
        x = leaf * 1
        y = each(x)
        x.mul_(3)
        y.sin_()
        results.append(torch.autograd.grad(y.sum(), [leaf, *each.parameters()]))
    assert error(results[1], results[0]) < 1e-12


def test_layers_that_modify_the_input_change_the_residual():
    plain, ours = plain_and_lean(randomised(Sum(nn.ReLU(True), nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4))).double())
    results = []
    for network in (plain, ours):
        leaf = images(2, 4, 9, 8).requires_grad_()
        y = network(leaf * 1)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), [leaf, *network.parameters()])])
    assert error(results[1], results[0]) < 1e-12


@pytest.mark.parametrize("hooked", ["container", "norm", "block", "all modules"])
def test_hooks_are_called(hooked):
    plain, ours = plain_and_lean(block())
    calls = []

    def hook(module, _, output):
        if hooked != "all modules" or module is ours.conv_block[-1]:
            calls.append(output.detach())

    modules = {"container": ours.conv_block, "norm": ours.conv_block[-1], "block": ours}
    register = getattr(modules.get(hooked), "register_forward_hook", nn.modules.module.register_module_forward_hook)
    handle = register(hook)
    x = images(2, 4, 9, 8)
    try:
        found = differentiate(ours, x)
    finally:
        handle.remove()
    expected = plain(x) if hooked == "block" else plain.conv_block(x)
    assert error(calls, [expected]) < 1e-12
    for a, b in zip(found, differentiate(plain, x), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("checkpoints", [True, False])
def test_the_local_enhancer_adds_the_global_features(checkpoints):
    network = randomised(define_G(3, 3, 2, "local", 1, 1, 1, 1)).double()
    network.checkpoint_activations = checkpoints
    plain, ours = plain_and_lean(network)
    assert_equal(plain, ours, images(1, 3, 16, 16))
    features = plain.model(plain.downsample(images(1, 3, 16, 16)))
    fine = plain.model1_1(images(1, 3, 16, 16))
    assert torch.equal(plain(images(1, 3, 16, 16)), plain.model1_2(fine + features))


def test_parametrized_weights_work():
    torch.manual_seed(0)
    network = block("instance affine")
    for layer in network.conv_block:
        if isinstance(layer, nn.Conv2d):
            parametrizations.spectral_norm(layer)
    plain, ours = plain_and_lean(network)
    assert_equal(plain, ours, images(2, 4, 9, 8))
