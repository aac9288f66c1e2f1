"""FrozenFeatureLoss compared with its formula in plain PyTorch."""

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pix2pixhd
from pix2pixhd.losses import FrozenFeatureLoss, FrozenFeatures, VGGLoss
from pix2pixhd.losses.distances import Distance, register

from .helpers import random_images


def conv_network(inplace=True):
    """Returns a network with outputs that the next layer modifies in place."""
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2), nn.Conv2d(12, 8, 1)
    block = nn.Sequential(nn.ReLU(inplace=inplace), second, nn.Sigmoid())
    return nn.Sequential(first, block, third, nn.ReLU(inplace=inplace))


TAPS = ["0", "1.1", "1", "2"]


def conv_maps(network, x):
    """Computes the outputs of the taps without operations in place."""
    first = network[0](x)
    second = network[1][1](F.relu(first))
    third = torch.sigmoid(second)
    return [first, second, third, network[2](third)]


class Tokens(nn.Module):
    """A transformer with token sequences [N, L, C]; returns a dict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 16, batch_first=True) for _ in range(2)])

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        tokens = {}
        for k, block in enumerate(self.blocks):
            tokens[f"block{k}"] = x = block(x)
        return tokens | {"pooled": x.mean(1)}


def weighted_mean(distance, mask):
    if mask is not None:
        distance = distance * F.adaptive_avg_pool2d(mask.view(1, 1, *mask.shape), distance.shape[2:])
    return distance.flatten(1).mean(1)


def unit(x, dim, eps):
    return x / (x.square().sum(dim, keepdim=True).sqrt() + eps)


def grams(x, dim):
    x = x.movedim(dim, 1).reshape(len(x), x.shape[dim], -1)
    return torch.einsum("ncp,ndp->ncd", x, x) / x[0].numel()


# Per image, for feature maps with the channels in `dim`.
FORMULAS = {
    "l1": lambda x, y, dim, mask: weighted_mean((x - y).abs(), mask),
    "mse": lambda x, y, dim, mask: weighted_mean((x - y) ** 2, mask),
    "cosine": lambda x, y, dim, mask: weighted_mean((1 - F.cosine_similarity(x, y, dim)).unsqueeze(dim), mask),
    "lpips": lambda x, y, dim, mask: weighted_mean(
        (unit(x, dim, 1e-10) - unit(y, dim, 1e-10)).square().sum(dim, keepdim=True), mask
    ),
    "gram": lambda x, y, dim, mask: (grams(x, dim) - grams(y, dim)).square().flatten(1).mean(1),
}


def formula(distance, maps, others, weights, dims, mask=None):
    terms = zip(weights, maps, others, dims, strict=True)
    return sum(w * FORMULAS[distance](x, y.detach(), dim, mask) for w, x, y, dim in terms)


def pair(batch=3, size=(16, 20), dtype=torch.float64):
    fake, real = random_images(batch, 3, *size), random_images(batch, 3, *size, seed=1)
    return fake.to(dtype).requires_grad_(), real.to(dtype)


def same(ours, theirs, rtol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * theirs.abs().max().item(), check_dtype=False)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", FORMULAS)
def test_every_distance_matches_its_formula(distance, dtype, masked):
    if masked and distance == "gram":
        return
    network, weights = conv_network().to(dtype), [0.5, 1.0, 2.0, -1.0]
    fake, real = pair(dtype=dtype)
    mask = random_images(16, 20, seed=2).to(dtype) if masked else None
    wide = copy.deepcopy(network).double()
    x = fake.detach().double().requires_grad_()
    maps, others = conv_maps(wide, x), conv_maps(wide, real.double())
    expected = formula(distance, maps, others, weights, [1] * 4, None if mask is None else mask.double())
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    rtol = 1e-10 if dtype == torch.float64 else 1e-5 if distance == "gram" else 2e-6
    for options in ({}, {"checkpoint": True}, {"memory_limit": 2**20}, {"keep_activations": True}):
        criterion = FrozenFeatureLoss(network, TAPS, distance, weights=weights, reduction="none", **options)
        for target in (real, criterion.features(real)):
            loss = criterion(fake, target, mask)
            same(loss, expected, rtol)
            same(torch.autograd.grad(loss, fake, upstream.to(dtype))[0], wanted, rtol)
    criterion = FrozenFeatureLoss(network, TAPS, distance, weights=weights)
    same(criterion(fake, real, mask), expected.mean(), rtol)


@pytest.mark.parametrize("distance", FORMULAS)
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}])
def test_tokens_and_vectors_have_their_channels_last(distance, options):
    network = Tokens().double().eval()
    fake, real = pair(2, (16, 16))
    maps, others = (list(network(x).values()) for x in (fake, real))
    expected = formula(distance, maps, others, [1.0] * 3, [2, 2, 1]).mean()
    (wanted,) = torch.autograd.grad(expected, fake)
    loss = FrozenFeatureLoss(network, None, distance, **options)(fake, real)
    same(loss, expected)
    same(torch.autograd.grad(loss, fake)[0], wanted)


def test_lpips_applies_linear_weights_and_channel_dim():
    class Nhwc(nn.Module):
        def forward(self, x):
            return x.movedim(1, 3) * 2

    linear = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)
    fake, real = pair()
    mask = random_images(16, 20, seed=2).double()
    criterion = FrozenFeatureLoss(Nhwc(), None, "lpips", linear=[linear.float()], channel_dim=-1, reduction="none")
    criterion = criterion.double()
    squares = (unit(fake, 1, 1e-10) - unit(real, 1, 1e-10)).square() * linear.float().double().view(1, 3, 1, 1)
    expected = weighted_mean(squares.sum(1, keepdim=True), mask)
    loss = criterion(fake, real, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    same(torch.autograd.grad(loss.sum(), fake)[0], torch.autograd.grad(expected.sum(), fake)[0], 1e-9)
    assert criterion.state_dict() == {}
    assert list(criterion.buffers()) == []
    with pytest.raises(ValueError, match="linear must have one number per channel of its feature map, 3, got 2"):
        FrozenFeatureLoss(nn.Identity(), None, "lpips", linear=[torch.ones(2)])(fake.float(), real.float())


@pytest.mark.parametrize("distance", ["cosine", "lpips"])
@pytest.mark.parametrize("keep", [False, True])
def test_gradient_at_zero_vectors_is_zero_and_finite_elsewhere(distance, keep):
    fake, real = pair(1)
    fake.data[:, :, :4] = 0
    real[:, :, 2:6] = 0
    criterion = FrozenFeatureLoss(nn.Identity(), None, distance, keep_activations=keep)
    (gradient,) = torch.autograd.grad(criterion(fake, real), fake)
    assert gradient.isfinite().all()
    assert not gradient[:, :, :4].any()
    assert gradient[:, :, 6:].any()


@pytest.mark.parametrize("keep", [False, True])
def test_functions_and_custom_distances_are_differentiated(keep):
    class Huber(Distance):
        name, masked = "huber", False

        def value(self, x, target, weight, axis):
            return F.huber_loss(x, target, reduction="none", delta=0.1).flatten(1).mean(1)

    from pix2pixhd.losses.distances import base

    network, (fake, real) = conv_network().double(), pair()
    expected = sum(
        F.huber_loss(x, y.detach(), delta=0.1)
        for x, y in zip(conv_maps(network, fake), conv_maps(network, real), strict=True)
    )
    (wanted,) = torch.autograd.grad(expected, fake)
    register(Huber)
    try:
        scalar = lambda x, y: F.huber_loss(x, y, delta=0.1)  # noqa: E731
        per_image = lambda x, y: torch.stack([scalar(a, b) for a, b in zip(x, y, strict=True)])  # noqa: E731
        for distance in (scalar, per_image, Huber(), "huber", [scalar, "huber", per_image, Huber()]):
            loss = FrozenFeatureLoss(network, TAPS, distance, keep_activations=keep)(fake, real)
            same(loss, expected)
            same(torch.autograd.grad(loss, fake)[0], wanted)
    finally:
        del base._registry["huber"]


def test_scales_ranges_and_normalization_match_the_formula():
    network, (fake, real) = conv_network().double(), pair(2, (32, 36))
    criterion = FrozenFeatureLoss(
        network, ["1"], scale_weights=(1.0, 0.0, 0.5), input_range=(0, 1), normalize="imagenet"
    )
    expected, means, stds = 0.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def prepared(x):
        return (x - torch.tensor(means).view(3, 1, 1).double()) / torch.tensor(stds).view(3, 1, 1).double()

    for factor, weight in ((1, 1.0), (4, 0.5)):
        x, y = prepared(fake), prepared(real)
        for _ in range(factor.bit_length() // 2 * 2 if factor > 1 else 0):
            x, y = (F.interpolate(z, size=[s // 2 for s in z.shape[2:]], mode="bilinear") for z in (x, y))
        expected = expected + weight * F.l1_loss(network[1](network[0](x)), network[1](network[0](y)))
    loss = criterion(fake, real)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(criterion(fake, criterion.features(real)), loss, rtol=1e-12, atol=0)
    gray = random_images(2, 1, 32, 36).double()
    torch.testing.assert_close(criterion(gray, real), criterion(gray.expand(-1, 3, -1, -1), real))


def gradient_error(criterion, fake, real, exact, scaled=False):
    for exponent in range(16, -40, -4) if scaled else [0]:
        loss = criterion(fake, real)
        (gradient,) = torch.autograd.grad(loss * 2.0**exponent, fake)
        if gradient.isfinite().all():
            return (gradient.double() / 2.0**exponent - exact).norm() / exact.norm()
    return pytest.fail("no scale gives a finite gradient")


@pytest.mark.parametrize("factor", [1.0, 1e5, 1e-6])
@pytest.mark.parametrize("distance", ["l1", "mse", "cosine", "lpips", "gram"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_at_most_twice_that_of_autograd(distance, dtype, factor):
    network, (fake, real) = conv_network(), pair(2, (16, 16), torch.float32)
    options = {"taps": TAPS, "distance": distance, "weights": [factor] * 4}
    wide = FrozenFeatureLoss(copy.deepcopy(network).double(), keep_activations=True, **options)
    x = fake.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(wide(x, real.double()), x)
    ours = gradient_error(FrozenFeatureLoss(network, dtype=dtype, **options), fake, real, exact)
    plain = FrozenFeatureLoss(network, dtype=dtype, keep_activations=True, **options)
    theirs = gradient_error(plain, fake, real, exact, scaled=True)
    assert ours <= 2 * theirs + 1e-6
    assert ours < 0.5


def test_half_network_and_autocast_follow_pytorch():
    network, (fake, real) = conv_network(), pair(2, (16, 16), torch.float32)
    criterion = FrozenFeatureLoss(network, TAPS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(fake, real)
    torch.testing.assert_close(loss, FrozenFeatureLoss(network, TAPS, dtype=torch.bfloat16)(fake, real))
    half = FrozenFeatureLoss(copy.deepcopy(network), TAPS).half()
    x = fake.detach().half().requires_grad_()
    loss = half(x, real.half())
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.float16
    (wide,) = torch.autograd.grad(criterion(fake, real), fake)
    assert (gradient.float() - wide).norm() < 0.2 * wide.norm()
    with pytest.raises(TypeError, match=r"fake is torch.float16 and the network torch.float32; convert the images"):
        criterion(x, real.half())


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
    from pix2pixhd.ops import frozen_features

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
    with pytest.raises(
        ValueError, match=r"memory_limit is .* MiB, but one image needs .* MiB; raise the limit, or use"
    ):
        FrozenFeatureLoss(network, memory_limit=1000)(fake, real)
    from pix2pixhd.losses.frozen_gradient import _measured

    (needed,) = _measured[network].values()
    sizes.clear()
    loss = FrozenFeatureLoss(network, memory_limit=2 * needed + 1)(fake, real)
    assert sizes == [2, 2, 2, 2, 1, 1]
    same(torch.autograd.grad(loss, fake)[0], expected)


def test_checkpoint_lowers_the_measured_peak():
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 1)) for _ in range(6)]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), *layers)
    fake, real = pair(2, (32, 32), torch.float32)
    from pix2pixhd.losses.frozen_gradient import _measured

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
    with pytest.raises(ValueError, match=r"real contains features of .*but this loss is .*recompute them"):
        FrozenFeatureLoss(network, TAPS[:2])(fake, features)
    with pytest.raises(ValueError, match=r"real contains features of .*but this loss is .*'gram'"):
        FrozenFeatureLoss(network, TAPS, "gram")(fake, features)
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
            "distance must be one of cosine, gram, l1, lpips, mse or a function, got 'l2'",
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
    with pytest.raises(TypeError, match="the network's output must be a floating-point tensor, got torch.int64"):
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
        with warnings.catch_warnings():
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
