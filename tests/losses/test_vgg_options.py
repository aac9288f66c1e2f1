"""Options of VGGLoss, each compared with its formula in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pix2pixhd.losses import GeneratorLoss, VGGLoss
from pix2pixhd.models.vgg import PAPER_LAYERS, load_vgg

from .helpers import narrow_vgg, random_images

JOHNSON = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")  # arXiv 1603.08155; each is followed by a pooling layer
LAYERS = {
    "vgg19": [PAPER_LAYERS, ("relu5_4", "relu1_1"), ("relu2_2",), ("relu_3_2", "relu_1_2", "relu3_1")],
    "vgg16": [PAPER_LAYERS, JOHNSON, ("relu5_3",)],
}
NETWORKS = [(network, layers) for network, many in LAYERS.items() for layers in many]


@pytest.fixture(scope="module")
def networks():
    made = {}

    def get(network, layers):
        if (network, layers) not in made:
            made[network, layers] = narrow_vgg(network, layers).double()
        return made[network, layers]

    return get


def feature_maps_by_name(vgg, x):
    """Computes the feature maps of all ReLU layers, by name, from the state dict."""
    per_block = {"vgg19": (2, 2, 4, 4, 4), "vgg16": (2, 2, 3, 3, 3)}[vgg.network]
    state, index, feature_maps = vgg.state_dict(), 0, {}
    for block, count in enumerate(per_block, 1):
        for number in range(1, count + 1):
            if f"features.{index}.weight" not in state:
                return feature_maps
            x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
            feature_maps[f"relu{block}_{number}"] = x
            index += 2
        x, index = F.max_pool2d(x, 2), index + 1
    return feature_maps


def formula(vgg, layers, weights, fake, real, squared=False, mask=None):
    """Computes the loss of each image."""
    total = 0.0
    a, b = feature_maps_by_name(vgg, fake), feature_maps_by_name(vgg, real)
    for layer, weight in zip(layers, weights, strict=True):
        name = layer.replace("relu_", "relu")
        difference = a[name] - b[name]
        distance = difference**2 if squared else difference.abs()
        if mask is not None:
            distance = distance * F.adaptive_avg_pool2d(mask, distance.shape[2:])
        total = total + weight * distance.flatten(1).mean(1)
    return total


def check(criterion, expected, fake, real, mask=None, upstream=None):
    """Checks value and gradient of both implementations, with and without precomputed features."""
    criterion = criterion.double()
    wanted = torch.autograd.grad(expected, fake, upstream)
    for keep in (False, True):
        criterion.keep_activations = keep
        for other in (real, criterion.features(real)):
            loss = criterion(fake, other, mask)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
            torch.testing.assert_close(torch.autograd.grad(loss, fake, upstream), wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("network", "layers"), NETWORKS)
@pytest.mark.parametrize("criterion", ["l1", "mse"])
def test_every_network_and_choice_of_layers_matches_the_formula(networks, network, layers, criterion):
    vgg = networks(network, layers)
    fake, real = random_images(2, 3, 33, 47).double().requires_grad_(), random_images(2, 3, 33, 47, seed=1).double()
    weights = [0.5 + 0.25 * k for k in range(len(layers))]
    expected = formula(vgg, layers, weights, fake, real, criterion == "mse").mean()
    check(VGGLoss(vgg=vgg, weights=weights, criterion=criterion), expected, fake, real)


@pytest.mark.parametrize("criterion", ["l1", "mse"])
@pytest.mark.parametrize("shape", [(2, 1, 40, 37), (1, 1, 40, 37), (40, 37)])
def test_mask_weights_the_pixels_of_every_feature_map(networks, criterion, shape):
    vgg = networks("vgg16", JOHNSON)
    fake, real = random_images(2, 3, 40, 37).double().requires_grad_(), random_images(2, 3, 40, 37, seed=1).double()
    mask = random_images(*shape, seed=2).double() * 2  # includes negative weights
    whole = mask.expand(2, 1, 40, 37)
    expected = formula(vgg, JOHNSON, [1.0] * 4, fake, real, criterion == "mse", whole).mean()
    check(VGGLoss(vgg=vgg, criterion=criterion), expected, fake, real, mask)


def test_mask_of_ones_has_no_effect_and_mask_of_zeros_gives_zero(vgg):
    fake, real = random_images(1, 3, 48, 40).requires_grad_(), random_images(1, 3, 48, 40, seed=1)
    criterion = VGGLoss(vgg=vgg)
    loss = criterion(fake, real)
    torch.testing.assert_close(criterion(fake, real, torch.ones(48, 40)), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(criterion(fake, real, torch.ones(48, 40, dtype=torch.bool)), loss, rtol=1e-6, atol=0)
    nothing = criterion(fake, real, torch.zeros(1, 1, 48, 40))
    (gradient,) = torch.autograd.grad(nothing, fake)
    assert nothing == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("criterion", ["l1", "mse"])
def test_reduction_none_returns_the_loss_of_each_image(networks, criterion):
    vgg = networks("vgg19", PAPER_LAYERS)
    fake, real = random_images(3, 3, 32, 35).double().requires_grad_(), random_images(3, 3, 32, 35, seed=1).double()
    weights = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0]
    expected = formula(vgg, PAPER_LAYERS, weights, fake, real, criterion == "mse")
    assert expected.shape == (3,)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    check(VGGLoss(vgg=vgg, reduction="none", criterion=criterion), expected, fake, real, upstream=upstream)


@pytest.mark.parametrize("scale_weights", [(1.0, 0.5, 0.25), (0.0, 1.0), (2.0,)])
def test_scale_weights_add_the_losses_of_downscaled_images(networks, scale_weights):
    vgg = networks("vgg16", JOHNSON)
    fake, real = random_images(1, 3, 70, 67).double().requires_grad_(), random_images(1, 3, 70, 67, seed=1).double()
    mask = random_images(1, 1, 70, 67, seed=2).double()
    x, y, expected = fake, real, 0.0
    for weight in scale_weights:
        expected = expected + weight * formula(vgg, JOHNSON, [1.0] * 4, x, y, mask=mask).mean()
        x, y = (
            F.interpolate(z, size=(z.shape[2] // 2, z.shape[3] // 2), mode="bilinear", align_corners=False)
            for z in (x, y)
        )
    check(VGGLoss(vgg=vgg, scale_weights=scale_weights), expected, fake, real, mask)


def test_images_in_another_input_range_give_the_same_loss(networks):
    vgg = networks("vgg16", JOHNSON)
    fake, real = random_images(1, 3, 32, 32).double(), random_images(1, 3, 32, 32, seed=1).double()
    for normalize in ("none", "imagenet"):
        expected = VGGLoss(vgg=vgg, normalize=normalize).double()(fake, real)
        for low, high in ((0.0, 1.0), (0.0, 255.0)):
            scaled = [(x + 1) / 2 * (high - low) + low for x in (fake, real)]
            loss = VGGLoss(vgg=vgg, normalize=normalize, input_range=(low, high)).double()(*scaled)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", [False, True])
def test_dtype_selects_the_compute_dtype(keep):
    vgg = narrow_vgg("vgg19", PAPER_LAYERS)
    fake, real = random_images(1, 3, 48, 48).requires_grad_(), random_images(1, 3, 48, 48, seed=1)
    plain = VGGLoss(vgg=vgg, keep_activations=keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(fake, real)
        exact = VGGLoss(vgg=vgg, dtype=torch.float32, keep_activations=keep)(fake.bfloat16(), real)
    loss = VGGLoss(vgg=vgg, dtype=torch.bfloat16, keep_activations=keep)(fake, real)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, fake), torch.autograd.grad(expected, fake))
    torch.testing.assert_close(exact, plain(fake.bfloat16().float(), real), rtol=1e-6, atol=0)
    assert exact.dtype == loss.dtype == torch.float32


def test_generator_loss_accepts_features(vgg):
    fake, real = random_images(1, 3, 32, 32).requires_grad_(), random_images(1, 3, 32, 32, seed=1)
    criterion = GeneratorLoss(lambda_feat=0.0, vgg=vgg)
    pred = [[torch.zeros(1, 1, 4, 4)]]
    terms = criterion(pred, pred, fake, criterion.vgg.features(real))
    torch.testing.assert_close(terms.vgg, criterion(pred, pred, fake, real).vgg, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r'reduction="mean"'):
        GeneratorLoss(vgg=VGGLoss(vgg=vgg, reduction="none"))


def test_compiles_with_features_mask_and_scales(vgg):
    torch._dynamo.reset()
    criterion = VGGLoss(vgg=vgg, scale_weights=(1.0, 1.0), reduction="none", normalize="imagenet")
    fake, real = random_images(2, 3, 48, 48).requires_grad_(), random_images(2, 3, 48, 48, seed=1)
    mask = torch.rand(48, 48, generator=torch.Generator().manual_seed(0))
    features = criterion.features(real)

    def loss(x):
        return (criterion(torch.tanh(x), features, mask) + criterion(torch.tanh(x), real)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (a,), (b,) = (torch.autograd.grad(f(fake), fake) for f in (compiled, loss))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vgg11"}, "network must be vgg19 or vgg16, got 'vgg11'"),
        ({"layers": ["relu3_5"]}, "layers: vgg19 has no layer 'relu3_5'; it has relu1_1, relu1_2"),
        ({"layers": ["relu3_1", "relu_3_1"]}, "layers: 'relu_3_1' is listed twice"),
        ({"layers": []}, "layers must name at least one of relu1_1"),
        (
            {"layers": ["relu1_1"], "weights": [1.0, 2.0]},
            "weights must have one number per feature map of vgg, 1, got 2",
        ),
        ({"criterion": "l2"}, "criterion must be l1 or mse, got 'l2'"),
        ({"reduction": "sum"}, "reduction must be mean or none, got 'sum'"),
        ({"input_range": (1, 0)}, r"input_range must be \(lowest, highest\)"),
        ({"scale_weights": (0.0,)}, "scale_weights must have one number per scale, not all 0"),
        ({"dtype": torch.float64}, "dtype must be torch.float32, torch.bfloat16, torch.float16 or None"),
        ({"memory_limit": 1.5}, "memory_limit must be a whole number of bytes above 0, or None, got 1.5"),
        ({"memory_limit": float("inf")}, "memory_limit must be a whole number of bytes above 0, or None, got inf"),
        ({"memory_limit": 0}, "memory_limit must be a whole number of bytes above 0"),
        ({"memory_limit": True}, "memory_limit must be a whole number of bytes above 0, or None, got True"),
    ],
)
@pytest.mark.filterwarnings("ignore:pix2pixhd. VGG")
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        VGGLoss(vgg="random", **options)


@pytest.mark.parametrize("limit", [1e9, np.float32(2**30), np.int64(10**9), 1e30, float(2**63)])
def test_memory_limit_accepts_integral_floats(vgg, limit):
    x = random_images(1, 3, 16, 16)
    criterion = VGGLoss(vgg=vgg, memory_limit=limit)
    torch.testing.assert_close(criterion(x, x + 0.5), VGGLoss(vgg=vgg)(x, x + 0.5))
    with pytest.raises(TypeError, match="memory_limit must be a number, got '1GB'"):
        VGGLoss(vgg=vgg, memory_limit="1GB")


@pytest.mark.parametrize("name", ["weights", "scale_weights"])
@pytest.mark.parametrize("number", [np.float32, np.array, torch.tensor])
def test_weights_accept_numpy_and_torch_numbers(vgg, name, number):
    values = [0.25] * (5 if name == "weights" else 1)
    found = VGGLoss(vgg=vgg, **{name: [number(value) for value in values]})
    assert getattr(found, name) == values
    assert getattr(VGGLoss(vgg=vgg, **{name: torch.tensor(values)}), name) == values
    assert getattr(VGGLoss(vgg=vgg, **{name: (value for value in values)}), name) == values


@pytest.mark.parametrize("name", ["weights", "scale_weights"])
def test_weights_that_require_a_gradient_or_are_not_numbers_are_rejected(vgg, name):
    learned = torch.ones(5, requires_grad=True)
    for values in (learned, list(learned), [torch.nn.Parameter(torch.tensor(1.0))]):
        with pytest.raises(TypeError, match=rf"{name}\[0\] is a tensor that requires a gradient.*multiply the loss"):
            VGGLoss(vgg=vgg, **{name: values})
    for values in (1.0, torch.tensor(1.0), None, True):
        if (name, values) == ("weights", None):  # the default
            continue
        with pytest.raises(TypeError, match=rf"{name} must be a sequence of numbers, got"):
            VGGLoss(vgg=vgg, **{name: values})
    for values in (["a"], [None], "12345", [torch.ones(2)], [np.ones(2)]):
        with pytest.raises(TypeError, match=rf"{name}\[0\] must be a number, got"):
            VGGLoss(vgg=vgg, **{name: values})


@pytest.mark.filterwarnings("ignore:pix2pixhd. VGG")
def test_invalid_arguments_are_rejected(vgg):
    with pytest.raises(TypeError, match=r"layers must be a list of names, got 'relu1_1'; did you mean \['relu1_1'\]"):
        VGGLoss(vgg="random", layers="relu1_1")
    with pytest.raises(ValueError, match="layers is only for a network that this loss loads"):
        VGGLoss(vgg=vgg, layers=["relu1_1"])
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"mask must be .* got \(2, 3, 32, 32\)"):
        VGGLoss(vgg=vgg)(x, x, x)
    with pytest.raises(TypeError, match="mask must be a tensor, got list"):
        VGGLoss(vgg=vgg)(x, x, [[1.0]])
    with pytest.raises(TypeError, match=r"real must be a dense tensor, got one of layout torch.sparse_coo"):
        VGGLoss(vgg=vgg)(x, x.to_sparse())
    with pytest.raises(ValueError, match="must be at least 64x64 for 3 scales, got 32x32"):
        VGGLoss(vgg=vgg, scale_weights=(1.0, 1.0, 1.0))(x, x)
    features = VGGLoss(vgg=vgg).features(x)
    with pytest.raises(ValueError, match=r"real must have the shape of fake, \(1, 3, 32, 32\), got \(2, 3, 32, 32\)"):
        VGGLoss(vgg=vgg)(x[:1], features)
    with pytest.raises(
        ValueError,
        match="real contains features of a loss with normalize='none', but this loss has normalize='imagenet'; re",
    ):
        VGGLoss(vgg=vgg, normalize="imagenet")(x, features)


def test_weight_files_of_another_network_are_rejected(vgg, vgg_file, tmp_path):
    with pytest.raises(ValueError, match=r"is not a VGG16 state dict: \d+ of 26 entries are missing"):
        load_vgg(vgg_file, "vgg16", ["relu5_3"])
    with pytest.warns(UserWarning, match="VGG16 has random weights"):
        state = load_vgg("random", "vgg16", ["relu5_3"]).state_dict()
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg16.pth")
    loaded = load_vgg(tmp_path / "vgg16.pth", "vgg16", JOHNSON).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    with pytest.raises(ValueError, match="is not a VGG19 state dict"):
        load_vgg(tmp_path / "vgg16.pth")


def test_features_are_sliced_concatenated_and_converted(vgg):
    fake, real = random_images(3, 3, 32, 32), random_images(3, 3, 32, 32, seed=1)
    criterion = VGGLoss(vgg=vgg, reduction="none")
    features = criterion.features(real)
    assert features.nbytes == 3 * 122 * 32 * 32 * 4
    assert features.to(torch.bfloat16).nbytes * 2 == features.nbytes
    expected = criterion(fake, real)
    torch.testing.assert_close(criterion(fake, features), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(criterion(fake[1:], features[1:]), expected[1:], rtol=1e-6, atol=0)
    joined = type(features).cat([features[2:3], features[:1]])
    torch.testing.assert_close(criterion(fake[[2, 0]], joined), expected[[2, 0]], rtol=1e-6, atol=0)
    with pytest.raises(TypeError, match="features must be indexed with a slice"):
        features[0]
    with pytest.raises(ValueError, match="parts is empty"):
        type(features).cat([])
    with pytest.raises(ValueError, match="parts must have the same image size and come from the same loss"):
        type(features).cat([features, criterion.features(random_images(1, 3, 32, 48))])


def test_features_skip_the_forward_pass_of_real_images(vgg, monkeypatch):
    fake, real = random_images(1, 3, 32, 32), random_images(1, 3, 32, 32, seed=1)
    criterion = VGGLoss(vgg=vgg)
    features = criterion.features(real)
    before = [x.clone() for x in features.maps[0]]
    calls = []
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: calls.append(a) or original(*a, **k))
    criterion(fake, real)
    both = len(calls)
    criterion(fake, features)
    assert len(calls) - both == both // 2 == 13
    assert all(torch.equal(a, b) for a, b in zip(before, features.maps[0], strict=True))
