"""FrozenFeatureLoss with PyTorch's features: saved memory, checkpoints, compiler, copies, batch splits, errors."""

import copy
import gc
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pix2pixhd
from pix2pixhd.losses import FrozenFeatureLoss, FrozenFeatures, VGGLoss
from pix2pixhd.losses.frozen_gradient import _measured
from pix2pixhd.ops import frozen_features

from .helpers import TAPS, Tokens, conv_maps, conv_network, pair, random_images, same


def test_only_one_image_sized_gradient_is_saved():
    network, (fake, real) = conv_network(), pair(2, (32, 32), torch.float32)
    for options in ({}, {"normalize": "imagenet"}, {"distance": F.mse_loss}, {"checkpoint": True}):
        storages = {}

        def pack(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = FrozenFeatureLoss(network, TAPS, **options)(fake, real)
        storages.pop(fake.untyped_storage().data_ptr(), None)
        assert fake.nbytes <= sum(storages.values()) <= fake.nbytes + 64
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_and_offloading_around_the_loss_apply_to_its_gradient_only(reentrant):
    criterion, (fake, real) = FrozenFeatureLoss(conv_network().double(), TAPS, checkpoint=True), pair()
    (expected,) = torch.autograd.grad(criterion(fake, real), fake)
    checkpoint(lambda x: criterion(x * 1, real), fake, use_reentrant=reentrant).backward()
    same(fake.grad, expected)
    with torch.autograd.graph.save_on_cpu():
        loss = criterion(fake, real)
    same(torch.autograd.grad(loss, fake)[0], expected)


def test_compiles_without_graph_breaks_and_follows_new_weights():
    torch._dynamo.reset()
    network, (fake, real) = conv_network().double(), pair()
    for taps, options in ((TAPS, {}), (None, {"distance": "cosine"}), (TAPS, {"keep_activations": True})):
        criterion = FrozenFeatureLoss(network, taps, **options)
        compiled = torch.compile(lambda x, c=criterion: c(x * 1, real), fullgraph=True, backend="aot_eager")
        for _ in range(2):
            loss = compiled(fake)
            same(loss, criterion(fake, real))
            same(*[torch.autograd.grad(one, fake)[0] for one in (loss, criterion(fake, real))])
            with torch.no_grad():
                network[0].weight.mul_(1.1)
    with pix2pixhd.backend("reference"):
        compiled = torch.compile(lambda x: criterion(x, real), fullgraph=True, backend="eager")
        same(compiled(fake), criterion(fake, real))


def test_operator_passes_opcheck():
    network, (fake, real) = conv_network(), pair(2, dtype=torch.float32)
    criterion = FrozenFeatureLoss(network, TAPS)
    parameters = list(network.parameters())
    anchor = torch.zeros(())
    for x, with_gradient in ((fake, True), (fake.detach(), False)):
        arguments = (x, anchor, real, [], None, parameters, criterion._handle, None, with_gradient)
        torch.library.opcheck(torch.ops.pix2pixhd.frozen_feature_loss.default, arguments)


def test_export_uses_plain_operations():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = FrozenFeatureLoss(conv_network().double(), ["1", "2"])

        def forward(self, x, y):
            return self.loss(x, y)

    fake, real = pair()
    module = Wrapper()
    program = torch.export.export(module, (fake.detach(), real))
    same(program.module()(fake.detach(), real), module(fake.detach(), real))
    assert "frozen_feature_loss" not in program.graph_module.code


def test_double_backward_and_gradients_of_the_network_need_keep_activations():
    network, (fake, real) = conv_network().double(), pair()
    criterion = FrozenFeatureLoss(network, TAPS, "mse")
    (gradient,) = torch.autograd.grad(criterion(fake, real), fake, create_graph=True)
    with pytest.raises(RuntimeError, match=r"FrozenFeatureLoss was differentiated twice .*keep_activations=True"):
        gradient.sum().backward()
    kept = FrozenFeatureLoss(network, TAPS, "mse", keep_activations=True)
    (gradient,) = torch.autograd.grad(kept(fake, real), fake, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), fake)[0].any()
    network.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"a parameter of the network requires a gradient.*requires_grad_\(False\)"):
        criterion(fake, real)
    kept(fake, real).backward()
    assert network[0].weight.grad is not None


def test_copies_pickles_and_checkpoints_are_independent():
    network, (fake, real) = conv_network().double(), pair()
    criterion = FrozenFeatureLoss(network, TAPS, ["l1", "mse", "cosine", "gram"])
    expected = criterion(fake, real)
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    twins = [copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), torch.load(file, weights_only=False)]
    with torch.no_grad():
        network[0].weight.zero_()
    for twin in twins:
        same(twin(fake, real), expected)
        same(torch.autograd.grad(twin(fake, real), fake)[0], torch.autograd.grad(twin(fake, real), fake)[0])
    assert criterion(fake, real) != expected
    assert criterion.state_dict() == {}
    criterion.load_state_dict({})
    parent = nn.ModuleDict({"loss": criterion, "other": nn.Linear(2, 2)})
    assert set(parent.state_dict()) == {"other.weight", "other.bias"}
    parent.load_state_dict(parent.state_dict())
    assert not parent.train()["loss"].network.training


def test_deleted_losses_are_released():
    criterion = FrozenFeatureLoss(conv_network())
    handle = criterion._handle
    fake, real = pair(1, dtype=torch.float32)
    loss = criterion(fake, real)
    del criterion
    gc.collect()
    assert handle not in frozen_features._owners
    loss.backward()


def test_hooks_are_removed_after_errors():
    class Failing(nn.Module):
        def forward(self, x):
            raise OSError("no luck")

    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), Failing(), nn.Conv2d(8, 8, 1))
    fake, real = pair(1, dtype=torch.float32)
    for options in ({}, {"checkpoint": True}, {"keep_activations": True}, {"memory_limit": 2**20}):
        with pytest.raises(OSError, match="no luck"):
            FrozenFeatureLoss(network, ["0", "2"], **options)(fake, real)
        assert all(not m._forward_hooks and "forward" not in vars(m) for m in network.modules())
    x = torch.ones(1, requires_grad=True)
    assert (x * 2).requires_grad  # autograd is in its usual state


@pytest.mark.parametrize("options", [{}, {"checkpoint": True}])
def test_threads_may_share_a_network(options):
    network = conv_network().double()
    criterion = FrozenFeatureLoss(network, TAPS, **options)
    pairs = [[x * (1 + k) for x in pair(1)] for k in range(4)]
    plain = FrozenFeatureLoss(network, TAPS, keep_activations=True)
    expected = [torch.autograd.grad(plain(x, y), x)[0] for x, y in pairs]

    def work(images):
        return torch.autograd.grad(criterion(*images), images[0])[0]

    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(work, pairs * 4), expected * 4, strict=True):
            same(ours, theirs)


def test_network_stops_after_its_last_tap():
    calls = []
    network = conv_network()
    network.add_module("head", nn.Conv2d(8, 8, 1))
    network.head.register_forward_hook(lambda *a: calls.append(1))
    criterion = FrozenFeatureLoss(network, ["0", "1"])
    fake, real = pair(1, dtype=torch.float32)
    criterion(fake, real)
    first = len(calls)  # one whole pass, to find taps that are called twice
    criterion(fake, real)
    assert len(calls) == first <= 2


def test_memory_limit_splits_the_batch():
    network, (fake, real) = conv_network().double(), pair(5, (32, 32))
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    whole = FrozenFeatureLoss(network)
    expected = torch.autograd.grad(whole(fake, real), fake)[0]
    with pytest.raises(ValueError, match=r"memory_limit is .* MiB, but one image needs .* MiB; raise the limit"):
        FrozenFeatureLoss(network, memory_limit=1000)(fake, real)
    (needed,) = _measured[network].values()
    sizes.clear()
    loss = FrozenFeatureLoss(network, memory_limit=2 * needed + 1)(fake, real)
    assert sizes == [2, 2, 2, 2, 1, 1]
    same(torch.autograd.grad(loss, fake)[0], expected)


def test_checkpoint_lowers_the_measured_peak():
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 1)) for _ in range(6)]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), *layers)
    fake, real = pair(2, (32, 32), torch.float32)
    for flag in (False, True):
        FrozenFeatureLoss(network, memory_limit=2**30, checkpoint=flag)(fake, real)
    plain, lean = _measured[network].values()
    assert lean < 0.7 * plain


def test_features_of_other_options_or_weights_are_rejected():
    network, (fake, real) = conv_network().double(), pair()
    features = FrozenFeatureLoss(network, TAPS).features(real)
    assert isinstance(features, FrozenFeatures)
    same(FrozenFeatureLoss(network, TAPS, reduction="none")(fake[1:], features[1:]).sum(),
         FrozenFeatureLoss(network, TAPS, reduction="none")(fake, real)[1:].sum())  # fmt: skip
    with pytest.raises(ValueError, match=r"real contains .* with taps=\(.*'2'\), but this loss has taps=.*; recompute"):
        FrozenFeatureLoss(network, TAPS[:2])(fake, features)
    with pytest.raises(ValueError, match=r"real contains .* stored='feature maps', but this loss has stored='gram'; "):
        FrozenFeatureLoss(network, TAPS, "gram")(fake, features)
    mixed = [FrozenFeatureLoss(network, TAPS[:2], distances) for distances in (["l1", "gram"], ["gram", "l1"])]
    with pytest.raises(
        ValueError, match=r"stored=\('feature maps', 'gram'\), but .* stored=\('gram', 'feature maps'\)"
    ):
        mixed[1](fake, mixed[0].features(real))
    same(FrozenFeatureLoss(network, TAPS, ["mse"] * len(TAPS))(fake, features),
         FrozenFeatureLoss(network, TAPS, "mse")(fake, real))  # fmt: skip
    with torch.no_grad():
        network[0].weight.mul_(2)
    with pytest.raises(ValueError, match="real contains features computed with other network weights"):
        FrozenFeatureLoss(network, TAPS)(fake, features)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu, self.unused = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(x) + 1).detach()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"taps": "1"}, TypeError, r"taps must be a list of module names, got '1'; did you mean \['1'\]"),
        ({"taps": ["1.5"]}, ValueError, r"taps: the network has no module '1.5'; it has, for example, .*1\.1"),
        ({"taps": ["1", "1"]}, ValueError, "taps: '1' is listed twice"),
        ({"taps": []}, ValueError, "taps must name at least one module"),
        (
            {"distance": "l2"},
            ValueError,
            "distance must be one of cosine, gram, l1, lpips, mse or a",
        ),
        ({"distance": 3}, TypeError, "distance must be a name, a Distance or a function"),
        ({"taps": ["1"], "weights": [1, 2]}, ValueError, "one entry per feature map, but taps has 1, weights has 2"),
        ({"linear": [torch.ones(3)]}, ValueError, "linear is only for distance='lpips', got distance='l1'"),
        ({"network": 3}, TypeError, "network must be an nn.Module, got int"),
    ],
)
def test_invalid_options_are_rejected(options, error, message):
    with pytest.raises(error, match=message):
        FrozenFeatureLoss(**({"network": conv_network()} | options))


def test_invalid_inputs_and_networks_are_rejected():
    fake, real = pair(2, dtype=torch.float32)
    with pytest.raises(ValueError, match="taps: module 'relu' is called more than once"):
        FrozenFeatureLoss(Twice(), ["relu"])(fake, real)
    with pytest.raises(ValueError, match="taps: module 'unused' was not called"):
        FrozenFeatureLoss(Twice(), ["unused"])(fake, real)
    with pytest.raises(RuntimeError, match=r"do not depend on the image by differentiable operations; remove"):
        FrozenFeatureLoss(Twice())(fake, real)
    with pytest.raises(ValueError, match=r"real must have the shape of fake"):
        FrozenFeatureLoss(conv_network())(fake, real[:1])
    with pytest.raises(ValueError, match=r"mask cannot be used with the distance 'gram'"):
        FrozenFeatureLoss(conv_network(), None, "gram")(fake, real, torch.ones(16, 20))
    with pytest.raises(ValueError, match=r"mask needs feature maps \[N, C, h, w\], got one of shape \(2, 20, 16\)"):
        FrozenFeatureLoss(Tokens(), None)(fake, real, torch.ones(16, 20))
    with pytest.raises(ValueError, match=r"distance must return a scalar or one value per image, \(2,\), got"):
        FrozenFeatureLoss(conv_network(), None, lambda x, y: x - y)(fake, real)
    with pytest.raises(TypeError, match=r"the network's output must be a floating-point tensor, got torch\.int64"):
        FrozenFeatureLoss(Rounding())(fake, real)


class Rounding(nn.Module):
    def forward(self, x):
        return x.long()


def test_other_inputs_than_images_are_accepted():
    network = nn.Sequential(nn.Conv1d(1, 4, 5), nn.Tanh()).double()
    fake = torch.randn(2, 1, 40, dtype=torch.float64, requires_grad=True)
    criterion = FrozenFeatureLoss(network, None, "cosine", channel_dim=1)
    expected = (1 - F.cosine_similarity(network(fake), network(fake.detach() * 0.5 + 1), 1)).mean()
    loss = criterion(fake, fake.detach() * 0.5 + 1)
    same(loss, expected)
    same(*[torch.autograd.grad(one, fake)[0] for one in (loss, expected)])


def test_vgg_loss_of_a_custom_module_saves_no_activations():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_network()

        def forward(self, x):
            return conv_maps(self.net, x)[:3]

    network, (fake, real) = Maps().double(), pair(2, (32, 32))
    saved = []
    for options in (
        {},
        {"criterion": "mse", "reduction": "none"},
        {"scale_weights": (1.0, 0.5), "memory_limit": 2**24},
    ):
        ours, theirs = (
            VGGLoss(vgg=network, weights=[1, 2, 3], keep_activations=keep, **options) for keep in (False, True)
        )
        mask = random_images(32, 32, seed=3).double()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            loss = ours(fake, real, mask)
        same(loss, theirs(fake, real, mask))
        same(*[torch.autograd.grad(one.sum(), fake)[0] for one in (loss, theirs(fake, real, mask))])
        same(ours(fake, ours.features(real)), theirs(fake, real))
    assert max(saved) == fake.nbytes
