"""VGGLoss when the VGG's weights change, by any means."""

import copy
import pickle

import pytest
import torch

from pix2pixhd.losses import VGGLoss
from pix2pixhd.models.vgg import FrozenVGG

from .helpers import random_images

LAYERS = ["relu1_1", "relu2_1"]


def network(seed=0):
    vgg = FrozenVGG(layers=LAYERS)
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in vgg.state_dict().items()}
    vgg.load_state_dict(state)
    return vgg


def gradient(criterion):
    fake, real = random_images(1, 3, 16, 20).requires_grad_(), random_images(1, 3, 16, 20, seed=1)
    return torch.autograd.grad(criterion(fake, real), fake)[0]


def others(vgg):
    return {name.removeprefix("features."): value for name, value in network(seed=1).state_dict().items()}


def load_inner(vgg):
    vgg.features.load_state_dict(others(vgg))


def assign_inner(vgg):
    vgg.features.load_state_dict(others(vgg), assign=True)
    vgg.requires_grad_(False)


def in_place(vgg):
    for parameter in vgg.parameters():
        parameter.mul_(-0.5)


def through_data(vgg):
    for parameter in vgg.parameters():
        parameter.data.mul_(-0.5)


def replace_data(vgg):
    for parameter in vgg.parameters():
        parameter.data = parameter.data.contiguous() * -0.5


def replace_parameters(vgg):
    for layer in vgg.convolutions():
        layer.weight = torch.nn.Parameter(layer.weight * -0.5, requires_grad=False)


def through_numpy(vgg):
    for layer in vgg.convolutions():
        array = layer.weight.permute(0, 2, 3, 1).numpy()  # a view of the same memory
        array *= -0.5


def move_to_and_fro(vgg):
    vgg.double()
    in_place(vgg)
    vgg.float()


CHANGES = [
    load_inner, assign_inner, in_place, through_data, replace_data, replace_parameters, through_numpy, move_to_and_fro
]  # fmt: skip


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_follows_every_change_of_the_weights(change, dtype):
    criterion = VGGLoss(vgg=network(), dtype=dtype)
    before = gradient(criterion)
    change(criterion.vgg)
    after = gradient(criterion)
    fresh = network()
    fresh.load_state_dict(criterion.vgg.state_dict())
    torch.testing.assert_close(after, gradient(VGGLoss(vgg=fresh, dtype=dtype)), rtol=0, atol=0)
    assert (after - before).norm() > 0.1 * before.norm()
    if dtype is None:
        exact = VGGLoss(vgg=fresh, keep_activations=True)
        torch.testing.assert_close(after, gradient(exact), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent(duplicate):
    criterion = VGGLoss(vgg=network(), dtype=torch.bfloat16)
    before = gradient(criterion)
    other = duplicate(criterion)
    through_data(other.vgg)
    torch.testing.assert_close(gradient(criterion), before, rtol=0, atol=0)
    assert (gradient(other) - before).norm() > 0.1 * before.norm()


def test_a_compiled_loss_follows_the_weights():
    torch._dynamo.reset()
    criterion = VGGLoss(vgg=network(), dtype=torch.bfloat16)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for change in (in_place, through_data):
        gradient(compiled)
        change(criterion.vgg)
        torch.testing.assert_close(gradient(compiled), gradient(criterion), rtol=0, atol=0)


def test_shared_memory_holds_the_weights_that_are_used():
    criterion = VGGLoss(vgg=network()).share_memory()
    before = gradient(criterion)
    through_data(criterion.vgg)
    assert all(parameter.is_shared() for parameter in criterion.parameters())
    assert (gradient(criterion) - before).norm() > 0.1 * before.norm()


def test_there_are_no_buffers_that_ddp_would_broadcast_in_every_forward():
    criterion = VGGLoss(vgg=network(), normalize="imagenet")
    gradient(criterion)
    assert list(criterion.buffers()) == []


def test_parameters_that_require_a_gradient_are_named_and_get_one_from_the_other_form():
    criterion = VGGLoss(vgg=network())
    criterion.vgg.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"a parameter of the VGG requires a gradient.*keep_activations=True"):
        gradient(criterion)
    with torch.no_grad():
        criterion(random_images(1, 3, 16, 16), random_images(1, 3, 16, 16))
    criterion.keep_activations = True
    criterion(random_images(1, 3, 16, 16), random_images(1, 3, 16, 16, seed=1)).backward()
    assert all(parameter.grad is not None for parameter in criterion.vgg.parameters())


class _ScaledConv(torch.nn.Conv2d):
    def forward(self, x):
        return 2.0 * super().forward(x)


def replace(index, make):
    def change(vgg):
        old = vgg.features[index]
        vgg.features[index] = make()
        if isinstance(old, torch.nn.Conv2d):
            new = vgg.features[index]
            new.load_state_dict({n: old.state_dict()[n][tuple(map(slice, p.shape))] for n, p in new.named_parameters()})
            new.requires_grad_(False)

    return change


def patch_forward(vgg):
    vgg.features[4].forward = lambda x: x[:, :, ::2, ::2]


def parametrize_a_weight(vgg):
    torch.nn.utils.parametrizations.weight_norm(vgg.features[0])
    vgg.features[0].parametrizations.weight.original0.mul_(2.0)
    vgg.requires_grad_(False)


def set_padding(vgg):
    vgg.features[5].padding = (0, 0)


REPLACED = {
    "average pooling": replace(4, lambda: torch.nn.AvgPool2d(2, 2)),
    "pooling of 3": replace(4, lambda: torch.nn.MaxPool2d(3, 2, padding=1)),
    "pooling with ceil_mode": replace(4, lambda: torch.nn.MaxPool2d(2, 2, ceil_mode=True)),
    "another activation": replace(1, lambda: torch.nn.LeakyReLU(0.2)),
    "reflection padding": replace(0, lambda: torch.nn.Conv2d(3, 64, 3, padding=1, padding_mode="reflect")),
    "stride": replace(0, lambda: torch.nn.Conv2d(3, 64, 3, padding=1, stride=2)),
    "dilation": replace(2, lambda: torch.nn.Conv2d(64, 64, 3, padding=2, dilation=2)),
    "groups": replace(2, lambda: torch.nn.Conv2d(64, 64, 3, padding=1, groups=2)),
    "no bias": replace(2, lambda: torch.nn.Conv2d(64, 64, 3, padding=1, bias=False)),
    "other channels": lambda vgg: [replace(0, lambda: torch.nn.Conv2d(3, 40, 3, padding=1))(vgg),
                                   replace(2, lambda: torch.nn.Conv2d(40, 64, 3, padding=1))(vgg)],
    "a subclass": replace(0, lambda: _ScaledConv(3, 64, 3, padding=1)),
    "an option": set_padding,
    "a patched forward": patch_forward,
    "a parametrization": parametrize_a_weight,
}  # fmt: skip


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_changed_layers_are_not_ignored(change):
    changed, plain = network(), network()
    for vgg in (changed, plain):
        change(vgg)
    fake, real = random_images(1, 3, 17, 19), random_images(1, 3, 17, 19, seed=1)
    expected = VGGLoss(vgg=plain, keep_activations=True)
    torch.testing.assert_close(VGGLoss(vgg=changed)(fake, real), expected(fake, real))
    assert (expected(fake, real) - VGGLoss(vgg=network())(fake, real)).abs() > 1e-4 * expected(fake, real)


def test_an_untouched_network_is_computed_without_activations():
    assert network().is_standard()
    assert copy.deepcopy(network()).double().is_standard()
    assert FrozenVGG("vgg16", ["relu_1_2", "relu_5_3"]).is_standard()


def test_global_module_hooks_are_called():
    criterion, calls = VGGLoss(vgg=network()), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: calls.append(module) if module is criterion.vgg.features[0] else None
    )
    try:
        gradient(criterion)
    finally:
        handle.remove()
    assert calls


@pytest.mark.parametrize("backward", [False, True])
def test_hooks_on_layers_are_called(backward):
    criterion, plain = VGGLoss(vgg=network()), VGGLoss(vgg=network(), keep_activations=True)
    calls = []
    for one in (criterion, plain):
        layer = one.vgg.features[4]  # a pooling: PyTorch refuses backward hooks in front of an in-place ReLU
        if backward:
            layer.register_full_backward_hook(lambda m, i, o: calls.append(m) or (2.0 * i[0],))
        else:
            layer.register_forward_hook(lambda m, i, o: calls.append(m) or 2.0 * o)
    torch.testing.assert_close(gradient(criterion), gradient(plain))
    assert calls
