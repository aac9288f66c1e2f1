"""StyleLoss compared with its formula in float64."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd.losses import StyleLoss
from pix2pixhd.losses.distances import gram_matrix

from .helpers import narrow_vgg, random_images

STYLE, CONTENT = ["relu1_1", "relu2_1", "relu3_1"], ["relu2_1", "relu2_2"]
LAYERS = ["relu1_1", "relu2_1", "relu2_2", "relu3_1"]


@pytest.fixture(scope="module")
def network():
    return narrow_vgg("vgg16", LAYERS).double()


def images(batch=2, size=(24, 32), seed=0):
    return random_images(batch, 3, *size, seed=seed).double()


def gram(x):
    return torch.einsum("nchw,ndhw->ncd", x, x) / x[0].numel()


def formula(network, fake, style, content, weights, l1=False):
    """Computes the loss of each image, with α = 3 and β = 0.5."""
    maps, styles, contents = (dict(zip(LAYERS, network(x), strict=True)) for x in (fake, style, content))
    total = 0.0
    for name, weight in zip(STYLE, weights, strict=True):
        difference = gram(maps[name]) - gram(styles[name])
        total = total + 3.0 * weight * (difference.abs() if l1 else difference**2).mean((1, 2))
    for name in CONTENT:
        total = total + 0.5 * ((maps[name] - contents[name]) ** 2).mean((1, 2, 3))
    return total


def loss_of(network, **options):
    given = {"style_layers": STYLE, "content_layers": CONTENT, "layer_weights": [1, 2, 0.5]}
    return StyleLoss(network, style_weight=3.0, content_weight=0.5, **({"normalize": "none"} | given | options))


@pytest.mark.parametrize("l1", [False, True])
@pytest.mark.parametrize("styles", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"checkpoint": True}, {"memory_limit": 2**22}, {"keep_activations": True}], ids=str
)
def test_style_and_content_match_the_formula(network, l1, styles, options):
    fake, style, content = images().requires_grad_(), images(styles, (32, 20), 1), images(seed=2)
    expected = formula(network, fake, style, content, [1, 2, 0.5], l1)
    upstream = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected, fake, upstream)
    criterion = loss_of(network, criterion="l1" if l1 else "mse", reduction="none", **options)
    cached = criterion.style_features(style), criterion.content_features(content)
    for targets in ((style, content), cached, (style, cached[1])):
        loss = criterion(fake, *targets)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        (gradient,) = torch.autograd.grad(loss, fake, upstream)
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10 * wanted.abs().max().item())


def test_style_features_hold_only_gram_matrices(network):
    features = loss_of(network).style_features(images(1, (64, 64)))
    assert [tuple(x.shape) for x in features.maps[0]] == [(1, c, c) for c in (32, 32, 64)]
    torch.testing.assert_close(features.maps[0][0], gram(network(images(1, (64, 64)))[0]))


def test_gram_matrix_accepts_channels_in_any_dimension():
    x = images(2, (5, 7))
    for axis in (1, 2, 3):
        torch.testing.assert_close(gram_matrix(x.movedim(1, axis), axis), gram(x))


def test_mean_float32_half_and_compile_match(network):
    torch._dynamo.reset()
    fake, style, content = images().requires_grad_(), images(1, seed=1), images(seed=2)
    criterion = loss_of(network)
    expected = formula(network, fake, style, content, [1, 2, 0.5]).mean()
    (wanted,) = torch.autograd.grad(expected, fake)
    compiled = torch.compile(lambda x: criterion(x * 1, style, content), fullgraph=True, backend="aot_eager")
    for loss in (compiled(fake), criterion(fake, style, content)):
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, fake)[0], wanted, rtol=1e-9, atol=1e-12)
    small = copy.deepcopy(network).float()
    x = fake.detach().float().requires_grad_()
    for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        ours, plain = (loss_of(small, dtype=dtype, keep_activations=keep) for keep in (False, True))
        errors = []
        for one in (ours, plain):
            (gradient,) = torch.autograd.grad(one(x, style.float(), content.float()) * 1024, x)
            errors.append((gradient.double() / 1024 - wanted).norm() / wanted.norm())
        assert errors[0] <= max(2 * errors[1], 1e-6)
        assert errors[0] < 4 * tolerance


def test_any_module_is_tapped_by_module_names():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(8, 4, 3)).double()
    fake, style = images().requires_grad_(), images(1, seed=1)
    loss = StyleLoss(net, style_layers=["0", "2"], normalize="none")(fake, style)
    first, first_style = net[0](fake), net[0](style)
    second, second_style = net[2](F.relu(first)), net[2](F.relu(first_style))
    expected = sum((gram(x) - gram(y)).square().mean() for x, y in ((first, first_style), (second, second_style)))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def test_copies_match_and_state_dict_is_empty(network):
    fake, style, content = images(), images(1, seed=1), images(seed=2)
    criterion = loss_of(network)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(twin(fake, style, content), criterion(fake, style, content))
    assert criterion.state_dict() == {}
    assert list(criterion.buffers()) == []


def test_invalid_arguments_are_rejected(network):
    fake, style = images(), images(1, seed=1)
    with pytest.raises(ValueError, match="content must be given: this loss has content_layers"):
        loss_of(network)(fake, style)
    with pytest.raises(ValueError, match="content must be None: this loss has no content_layers"):
        loss_of(network, content_layers=())(fake, style, fake)
    with pytest.raises(ValueError, match="style must be one image or 2, as fake, got"):
        loss_of(network)(fake, images(3), fake)
    with pytest.raises(ValueError, match="content must have the shape of fake"):
        loss_of(network)(fake, style, fake[:1])
    with pytest.raises(ValueError, match="layer_weights must have one number per style layer, 3, got 1"):
        loss_of(network, layer_weights=[1.0])
    with pytest.raises(ValueError, match="vgg does not return relu3_3; it returns relu1_1"):
        loss_of(network, content_layers=["relu3_3"])
    with pytest.raises(ValueError, match="vgg16 has no layer 'relu9_9'"):
        loss_of(network, content_layers=["relu9_9"])
    with pytest.raises(TypeError, match=r"style_layers must be a list of names, got 'relu1_1'"):
        loss_of(network, style_layers="relu1_1")
    contents = loss_of(network).content_features(fake)
    with pytest.raises(ValueError, match=r"style contains .* with content_layers=\(.*, but .* has style_layers=\("):
        loss_of(network)(fake, contents, fake)
    style_only = loss_of(network, content_layers=())
    with pytest.raises(ValueError, match="fake must be at least 4x4, got 3x32; enlarge the images"):
        style_only(images(size=(3, 32)), style)
    style_only(images(size=(4, 32)), style)
    with pytest.raises(ValueError, match="style must be at least 4x4, got 24x3"):
        style_only(fake, images(size=(24, 3)))
    for shape in ((3, 24, 32), (3, 4, 24, 32)):
        with pytest.raises(ValueError, match=r"fake must be images \[N, 3, H, W\] or \[N, 1, H, W\], got \(3, "):
            style_only(torch.zeros(shape).double(), style)


@pytest.mark.parametrize("normalize", ["none", "imagenet"])
def test_one_channel_is_repeated_to_three(network, normalize):
    criterion = loss_of(network, content_layers=(), normalize=normalize)
    gray, style = images()[:, :1].requires_grad_(), images(1, seed=1)
    loss, expected = criterion(gray, style), criterion(gray.expand(-1, 3, -1, -1), style)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, gray)[0] for value in (loss, expected)))
