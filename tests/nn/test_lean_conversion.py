"""``lean`` changes nothing but what is saved: names, classes, copies, pickles, hooks and changed layers."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pix2pixhd.nn import lean

from .helpers import chain, differentiate, error, images, kept_bytes, plain_and_lean


def is_lean(network, x):
    """Whether the network keeps less memory than the plain one."""
    plain = lean(copy.deepcopy(network), enabled=False)
    return kept_bytes(lambda: network(x)) < kept_bytes(lambda: plain(x))


@pytest.fixture
def network():
    return lean(chain().double())


@pytest.fixture
def x():
    return images(2, 3, 32, 32)


def test_names_classes_and_repr_do_not_change(network):
    plain = chain().double()
    assert list(network.state_dict()) == list(plain.state_dict())
    network.load_state_dict(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    assert repr(network) == repr(plain)
    assert isinstance(network, nn.Sequential)
    assert len(network) == len(plain)


def test_lean_can_be_disabled_again(network, x):
    assert is_lean(network, x)
    assert lean(network) is network
    assert lean(network, enabled=False) is network
    assert type(network) is nn.Sequential
    assert not is_lean(network, x)
    assert type(lean(network, enabled=False)) is nn.Sequential


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save", "slice"])
def test_copies_are_lean_and_independent(network, x, copied):
    expected = differentiate(network, x)
    if copied == "deepcopy":
        other = copy.deepcopy(network)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(network))
    elif copied == "slice":
        other = network[:]
    else:
        file = io.BytesIO()
        torch.save(network, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert is_lean(other, x)
    for found, wanted in zip(differentiate(other, x), expected, strict=True):
        assert error(found, wanted) == 0
    if copied != "slice":
        with torch.no_grad():
            other[1].weight.zero_()
        assert network[1].weight.abs().max() > 0


class Widths(nn.Sequential):
    """A container without a ``forward`` of its own."""

    def __init__(self, *widths):
        layers = [[nn.Conv2d(a, b, 3), nn.InstanceNorm2d(b), nn.ReLU(True)] for a, b in pairwise(widths)]
        super().__init__(*(layer for three in layers for layer in three))


class Doubled(Widths):
    def forward(self, x):
        return super().forward(x) * 2


def test_subclasses_of_sequential_are_lean_unless_they_have_their_own_forward(x):
    network = lean(Widths(3, 8, 8, 8).double())
    assert isinstance(network, Widths)
    assert is_lean(network, x)
    assert isinstance(pickle.loads(pickle.dumps(network)), Widths)
    assert is_lean(copy.deepcopy(network), x)
    assert type(lean(network, enabled=False)) is Widths
    own = lean(Doubled(3, 8, 8, 8))
    assert type(own) is Doubled


def test_only_a_module_can_be_lean():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got list"):
        lean([nn.ReLU()])


@pytest.mark.parametrize("kind", ["forward", "forward pre", "full backward", "full backward pre"])
@pytest.mark.parametrize("position", range(8))
def test_layers_with_hooks_are_called(x, kind, position):
    """PyTorch itself supports no full backward hooks next to in-place activations."""
    network = lean(chain(activation="leaky out of place").double())
    calls = []
    register = getattr(network[position], f"register_{kind.replace(' ', '_')}_hook")
    handle = register(lambda *_: calls.append(position))
    found = differentiate(network, x)
    assert calls == [position]
    handle.remove()
    assert error(found[1], differentiate(lean(copy.deepcopy(network), enabled=False), x)[1]) < 1e-12
    assert is_lean(network, x)


def test_global_hooks_are_called_for_every_layer(network, x):
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        network(x)
    finally:
        handle.remove()
    assert all(layer in calls for layer in network)


def test_replaced_forwards_are_called(network, x):
    network[2].forward = lambda y: y * 3
    expected = differentiate(lean(copy.deepcopy(network), enabled=False), x)
    assert error(differentiate(network, x)[1], expected[1]) < 1e-12


@pytest.mark.parametrize("parametrized", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrized_layers_have_the_plain_gradients(parametrized, x):
    torch.manual_seed(0)
    network = chain().double()
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            parametrized(layer)
    plain, ours = plain_and_lean(network)
    assert is_lean(copy.deepcopy(ours), x)
    for _ in range(2):  # in training, spectral norm updates its vectors with every access to a weight
        for found, wanted in zip(differentiate(ours, x), differentiate(plain, x), strict=True):
            assert error(found, wanted) < 1e-12
    assert error(ours.state_dict().values(), plain.state_dict().values()) < 1e-12


class Accessed(nn.Module):
    """A parametrization that changes with every access."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, weight):
        self.count += 1
        return weight * self.count


@pytest.mark.parametrize("position", range(8))
def test_parametrized_weights_are_computed_once(position, x):
    plain, ours = plain_and_lean(chain("instance affine").double())
    for network in (plain, ours):
        for name, _ in list(network[position].named_parameters()):
            parametrize.register_parametrization(network[position], name, Accessed().double(), unsafe=True)
        for accessed in network.modules():
            if isinstance(accessed, Accessed):
                accessed.count.zero_()
    for found, wanted in zip(differentiate(ours, x), differentiate(plain, x), strict=True):
        assert error(found, wanted) < 1e-12


def test_old_style_spectral_norm_works(x):
    torch.manual_seed(0)
    network = chain().double()
    nn.utils.spectral_norm(network[1])
    plain, ours = plain_and_lean(network.eval())
    for found, wanted in zip(differentiate(ours, x), differentiate(plain, x), strict=True):
        assert error(found, wanted) < 1e-12


def test_changes_of_layers_and_weights_apply_to_the_next_call(network, x):
    plain = lean(copy.deepcopy(network), enabled=False)
    network(x)
    for each in (network, plain):
        with torch.no_grad():
            each[1].weight.mul_(2)
        each[1].bias.data = torch.ones_like(each[1].bias)
        each[3] = nn.LeakyReLU(0.3)
        each[2] = nn.InstanceNorm2d(6, affine=True).double()
        each[5].stride = (1, 1)
        each.append(nn.Dropout(0.0))
    for found, wanted in zip(differentiate(network, x), differentiate(plain, x), strict=True):
        assert error(found, wanted) < 1e-12
    network.float()
    assert network(x.float()).dtype == torch.float32


class Block(nn.Module):
    """NVIDIA's residual block, with a dropout between the convolutions."""

    def __init__(self, dim):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), nn.InstanceNorm2d(dim)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(True), nn.Dropout(0.5), *copy.deepcopy(half))

    def forward(self, x):
        return x + self.conv_block(x)


def test_layers_between_have_their_effect(x):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(True), Block(4), Block(4), nn.Tanh())
    plain, ours = plain_and_lean(network.double())
    results = []
    for each in (plain, ours):
        torch.manual_seed(3)
        results.append(differentiate(each, x))
    for found, wanted in zip(results[1], results[0], strict=True):
        assert error(found, wanted) < 1e-12


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (2, 3, 1, 1), (0, 3, 16, 16)], ids=["without a batch", "one pixel", "no image"]
)
def test_unusual_inputs_give_the_result_or_the_error_of_plain_layers(shape):
    layers = [nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)]
    plain, ours = plain_and_lean(nn.Sequential(*layers))
    x = torch.randn(shape)
    results = []
    for network in (plain, ours):
        try:
            results.append(network(x))
        except (RuntimeError, ValueError) as refusal:
            results.append((type(refusal), str(refusal)))
    if isinstance(results[0], tuple):
        assert results[0] == results[1]
    else:
        torch.testing.assert_close(*results)


def test_wrong_channels_give_the_error_of_plain_layers(network):
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4 channels"):
        network(images(1, 4, 16, 16))


def between_chains(change):
    """Two chains; ``change`` is applied to what one passes to the other."""
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    second = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3))

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return self.second(change(self.first(x)))

    return plain_and_lean(Both().double())


CHANGES = {
    "the same": lambda y: y,
    "in place": lambda y: y.mul_(2),
    "another tensor": lambda y: y * 2,
    "data": lambda y: y.data,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_convolution_recognises_the_result_of_another_chain(change, x):
    plain, ours = between_chains(CHANGES[change])
    if change == "in place":  # PyTorch's ReLU saves its output
        ours(x)
        return
    if change == "data":
        found, expected = (torch.autograd.grad(n(x).sum(), list(n.second.parameters())) for n in (ours, plain))
        assert error(found, expected) < 1e-12
        return
    assert error(differentiate(ours, x)[1], differentiate(plain, x)[1]) < 1e-12
    if change == "the same":
        assert kept_bytes(lambda: ours(x)) < 0.7 * kept_bytes(lambda: plain(x))


def test_results_that_were_modified_in_place_are_not_rebuilt(x):
    """After a norm alone, PyTorch allows to modify the result."""
    layers = [nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)]
    plain, ours = plain_and_lean(nn.ModuleList([nn.Sequential(*layers), nn.Sequential(nn.Conv2d(4, 2, 3))]).double())
    results = []
    for first, second in (plain, ours):
        y = first(x)
        y.mul_(2).relu_()
        results.append(torch.autograd.grad(second(y).sin().sum(), [*first.parameters(), *second.parameters()]))
    assert error(results[1], results[0]) < 1e-12


def double_source(first, x):
    x.mul_(-2)


def negate_norm(first, x):
    with torch.no_grad():
        first[0].weight.neg_()


@pytest.mark.parametrize("change", [double_source, negate_norm])
def test_results_are_not_rebuilt_from_tensors_that_were_modified_since(change):
    """The plain network reports no error either if only the gradients of the second chain are requested."""
    layers = [[nn.InstanceNorm2d(4, affine=True), nn.ReLU()], [nn.Conv2d(4, 4, 3)]]
    results = []
    for first, second in plain_and_lean(nn.ModuleList(nn.Sequential(*each) for each in layers).double()):
        x = images(1, 4, 8, 8)
        y = first(x)
        change(first, x)
        results.append(torch.autograd.grad(second(y).square().sum(), list(second.parameters())))
    assert error(results[1], results[0]) < 1e-12
