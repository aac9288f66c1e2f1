"""LPIPS equals the lpips package in values, gradients, shapes and state dict; its VGG keeps no activations."""

import contextlib
import copy
import io
import pickle
import sys
import warnings

import lpips
import pytest
import torch

import pix2pixhd
from pix2pixhd.losses import LPIPS
from pix2pixhd.models.lpips_trunks import load_trunk
from pix2pixhd.ops.perceptual_tiling import peak_bytes

from .helpers import narrow_vgg, random_images

NETS = ["vgg", "alex", "squeeze"]
SIZES = {"vgg": (23, 16), "alex": (31, 37), "squeeze": (27, 20)}

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights", "ignore:The parameter 'pretrained'")


@pytest.fixture(scope="module")
def packages():
    """The lpips package's metric for each network, with random trunks and the linear weights it ships."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {net: lpips.LPIPS(net=net, pnet_rand=True, verbose=False).requires_grad_(False) for net in NETS}


def narrow(**options):
    """The metric on a VGG16 with a quarter of the channels, without learned weights of the channels."""
    layers = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    return LPIPS(net="vgg", lpips=False, trunk=narrow_vgg("vgg16", layers), **options)


def same_as(theirs, **options):
    """This package's metric with the weights of the other."""
    ours = LPIPS(net=theirs.pnet_type, version=theirs.version, lpips=theirs.lpips, pnet_rand=True, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours


def images(net, dtype=torch.float32, count=2, low=-1.0):
    shape = (count, 3, *SIZES[net])
    return [(low + (1 - low) * (random_images(*shape, seed=seed) + 1) / 2).to(dtype) for seed in (0, 1)]


def value_and_gradients(metric, a, b, **options):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = metric(a, b, **options)
    total = value[0] if isinstance(value, tuple) else value
    weights = torch.arange(1, total.numel() + 1, dtype=total.dtype).view_as(total)
    return value, torch.autograd.grad((weights * total).sum(), (a, b))


def close(ours, theirs, relative):
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs.double()).norm() <= relative * theirs.double().norm()


@pytest.mark.parametrize(("backend", "normalize"), [("auto", False), ("auto", True), ("reference", False)])
@pytest.mark.parametrize("net", NETS)
def test_values_and_gradients_equal_the_package_in_float64(packages, net, normalize, backend):
    theirs = copy.deepcopy(packages[net]).double()
    ours = same_as(packages[net]).double()
    a, b = images(net, torch.float64, low=0.0 if normalize else -1.0)
    with pix2pixhd.backend(backend):
        value, gradients = value_and_gradients(ours, a, b, normalize=normalize)
    expected, expected_gradients = value_and_gradients(theirs, a, b, normalize=normalize)
    close(value, expected, 1e-12)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        close(mine, other, 1e-10)


@pytest.mark.parametrize("net", NETS)
def test_float32_is_as_accurate_as_the_package(packages, net):
    a, b = images(net)
    _, exact_gradients = value_and_gradients(copy.deepcopy(packages[net]).double(), a.double(), b.double())
    value, gradients = value_and_gradients(same_as(packages[net]), a, b)
    # In channels-last, as this package: the memory format selects PyTorch's convolution, and their rounding differs.
    plain = copy.deepcopy(packages[net]).to(memory_format=torch.channels_last)
    channels_last = [image.to(memory_format=torch.channels_last) for image in (a, b)]
    theirs, their_gradients = value_and_gradients(plain, *channels_last)
    assert value.dtype == torch.float32
    close(value, theirs, 1e-6)
    for mine, other, wanted in zip(gradients, their_gradients, exact_gradients, strict=True):
        assert (mine.double() - wanted).norm() <= 2 * (other.double() - wanted).norm() + 1e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_at_most_twice_as_inaccurate_as_the_package(packages, dtype):
    a, b = images("vgg", count=1)
    exact, exact_gradients = value_and_gradients(copy.deepcopy(packages["vgg"]).double(), a.double(), b.double())
    with torch.autocast("cpu", dtype=dtype):
        value, gradients = value_and_gradients(same_as(packages["vgg"]), a, b)
        theirs = packages["vgg"](a, b)
    assert (value.double() - exact).abs() <= 2 * (theirs.double() - exact).abs() + 1e-3 * exact
    x = a.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = packages["vgg"](x, b)
    (scaled,) = torch.autograd.grad(loss.sum() * 2.0**12, x)  # as a GradScaler scales
    theirs_error = (scaled.double() / 2.0**12 - exact_gradients[0]).norm()
    assert (gradients[0].double() - exact_gradients[0]).norm() <= 2 * theirs_error
    by_option = same_as(packages["vgg"], dtype=dtype)(a, b)
    torch.testing.assert_close(by_option, value)


@pytest.mark.parametrize("options", [{"spatial": True}, {"lpips": False}, {"version": "0.0"}], ids=str)
@pytest.mark.parametrize("net", NETS)
def test_options_equal_the_package(net, options):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, **options).requires_grad_(False).double()
    ours = same_as(theirs, spatial=theirs.spatial).double()
    a, b = images(net, torch.float64, count=1)
    value, gradients = value_and_gradients(ours, a, b)
    expected, expected_gradients = value_and_gradients(theirs, a, b)
    close(value, expected, 1e-12)
    close(gradients[0], expected_gradients[0], 1e-10)
    total, layers = ours(a, b, retPerLayer=True)
    their_total, their_layers = theirs(a, b, retPerLayer=True)
    close(total, their_total, 1e-12)
    assert len(layers) == len(their_layers)
    for mine, other in zip(layers, their_layers, strict=True):
        close(mine, other, 1e-12)


@pytest.mark.parametrize("net", NETS)
def test_state_dicts_load_both_ways(packages, net):
    ours = same_as(packages[net])
    assert list(ours.state_dict()) == list(packages[net].state_dict())
    copy.deepcopy(packages[net]).load_state_dict(ours.state_dict())
    parent = torch.nn.ModuleDict({"metric": ours})
    assert "metric.net.slice1.0.weight" in parent.state_dict()
    parent.load_state_dict(parent.state_dict())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("version", ["0.1", "0.0"])
def test_linear_weights_come_from_the_package(net, version):
    theirs = lpips.LPIPS(net=net, version=version, pnet_rand=True, verbose=False)
    ours = LPIPS(net=net, version=version, pnet_rand=True)
    for k, layer in enumerate(ours.lins):
        assert torch.equal(layer.weight, theirs.lins[k].model[1].weight.view(-1))
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_linear_weights_come_from_torchmetrics_without_the_package(monkeypatch):
    expected = LPIPS(net="vgg", pnet_rand=True).lin0.weight
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lpips" else find_spec(name))
    assert torch.equal(LPIPS(net="vgg", pnet_rand=True).lin0.weight, expected)
    with pytest.raises(RuntimeError, match=r"lpips is not installed\nInstall it with `pip install lpips`, or pass"):
        LPIPS(net="vgg", version="0.0", pnet_rand=True)


@pytest.mark.parametrize("net", NETS)
def test_only_the_gradient_is_saved_for_backward(packages, net):
    """VGG16's activations would be 30 times the image; its gradient is one image, and the scaling saves another."""
    ours, (a, b) = same_as(packages[net]), images(net)
    a.requires_grad_()
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours(a, b)
    assert sum(saved.values()) <= 2 * a.nbytes + 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_memory_limit_changes_nothing(dtype):
    """Bands of rows, since the limit is below the need of one image."""
    images_dtype, options = (torch.float64, {}) if dtype == torch.float64 else (torch.float32, {"dtype": dtype})
    a, b = (random_images(2, 3, 480, 16, seed=seed).to(images_dtype) for seed in (0, 1))
    vgg = narrow().net
    rows = [480 >> k for k in range(5)]
    need = peak_bytes(vgg.layer_kinds, vgg.conv_stack().channels, rows, 16, dtype.itemsize, True, 2)
    whole, tiled = (narrow(memory_limit=limit, **options).to(images_dtype) for limit in (None, int(0.8 * need)))
    value, gradients = value_and_gradients(whole, a, b)
    other, other_gradients = value_and_gradients(tiled, a, b)
    relative = {torch.float64: 1e-11, torch.bfloat16: 0.02, torch.float16: 0.005}[dtype]
    close(other, value, relative)
    close(other_gradients[0], gradients[0], relative)


def test_features_and_masks():
    ours, (a, b) = narrow().double(), images("vgg", torch.float64)
    plain = narrow(keep_activations=True).double()
    mask = torch.rand(2, 1, *SIZES["vgg"], dtype=torch.float64)
    value, gradients = value_and_gradients(ours, a, b, mask=mask)
    expected, expected_gradients = value_and_gradients(plain, a, b, mask=mask)
    close(value, expected, 1e-12)
    close(gradients[1], expected_gradients[1], 1e-10)
    features = ours.features(b)
    x = a.clone().requires_grad_()
    again = ours(x, features, mask=mask)
    close(again, value, 1e-12)
    with pytest.raises(ValueError, match="in1 contains features of"):
        ours(a, features, normalize=True)
    with pytest.raises(ValueError, match="mask must be"):
        ours(a, b, mask=mask[:, :, 1:])


def test_one_image_is_compared_with_every_image_of_the_other_batch(packages):
    theirs, (a, b) = packages["squeeze"], images("squeeze")
    ours = same_as(theirs)
    for pair in ((a[:1], b), (a, b[:1])):
        (value, gradients), (expected, others) = (value_and_gradients(metric, *pair) for metric in (ours, theirs))
        close(value, expected, 1e-5)
        close(ours(pair[0], ours.features(pair[1])), expected, 1e-5)
        for gradient, other in zip(gradients, others, strict=True):
            close(gradient, other, 1e-4)
    close(ours(a, b[:1], retPerLayer=True)[0], theirs(a, b[:1]), 1e-5)
    with pytest.raises(ValueError, match=r"in1 must have the shape of in0, .*, or be a batch of one image, got \(3, "):
        ours(a, torch.cat([a, b[:1]]))
    fused, (a, b) = narrow(), (x[..., :16] for x in images("vgg"))
    close(fused(a, fused.features(b[:1])), fused(a, b[:1].expand_as(a)), 1e-5)


@pytest.mark.parametrize("net", NETS)
def test_gradients_are_finite_where_feature_vectors_are_zero(packages, net):
    ours, (a, b) = same_as(packages[net]), images(net)
    for target in (b, a.clone()):  # different images, and equal ones
        for layer in (0, -1):
            other = copy.deepcopy(ours)
            convolutions = [m for m in other.net.modules() if isinstance(m, torch.nn.Conv2d)]
            with torch.no_grad():
                convolutions[layer].weight.zero_()
                convolutions[layer].bias.fill_(-1.0)  # ReLU blocks all channels
            _, gradients = value_and_gradients(other, a, target)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_compiles_without_graph_breaks():
    ours, (a, b) = narrow().double(), images("vgg", torch.float64)
    expected, gradients = value_and_gradients(ours, a, b)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    value, compiled_gradients = value_and_gradients(compiled, a, b)
    close(value, expected, 1e-12)
    close(compiled_gradients[0], gradients[0], 1e-12)
    close(compiled_gradients[1], gradients[1], 1e-12)


def test_double_backward_needs_kept_activations():
    a, b = (x[:1].requires_grad_() for x in images("vgg", torch.float64))
    for keep in (False, True):
        metric = narrow(keep_activations=keep).double()
        (gradient,) = torch.autograd.grad(metric(a, b.detach()).sum(), a, create_graph=True)
        if keep:
            (second,) = torch.autograd.grad(gradient.square().sum(), a)
            assert second.isfinite().all()
        else:
            with pytest.raises(RuntimeError, match=r"use LPIPS\(..., keep_activations=True\)"):
                torch.autograd.grad(gradient.square().sum(), a)


def test_trained_layers_and_dropout(packages):
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False, eval_mode=False).double()
    ours = LPIPS(net="squeeze", pnet_rand=True, eval_mode=False).double()
    ours.load_state_dict(theirs.state_dict())
    a, b = images("squeeze", torch.float64)
    values = []
    for metric in (theirs, ours):
        torch.manual_seed(3)
        value = metric(a, b)
        value.sum().backward()
        values.append(value)
    close(values[1], values[0], 1e-12)
    close(ours.lin2.model[1].weight.grad, theirs.lin2.model[1].weight.grad, 1e-10)
    frozen = torch.nn.ModuleDict({"metric": LPIPS(net="squeeze", pnet_rand=True)}).train()["metric"]
    assert not any(module.training for module in frozen.modules())
    tuned, unfrozen = narrow(pnet_tune=True).double(), narrow().double()
    unfrozen.net.requires_grad_(True)
    for metric in (tuned, unfrozen):
        metric(a, b).sum().backward()
        assert metric.net.features[0].weight.grad.abs().sum() > 0
    assert tuned.requires_grad_(False)._lean_losses(a) is not None


def test_copies_and_pickles(packages):
    ours, (a, b) = same_as(packages["vgg"]), images("vgg")
    expected = ours(a, b)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(a, b), expected)


def test_trunks_from_files_and_modules(packages, tmp_path):
    path = tmp_path / "alexnet.pth"
    torch.save({**load_trunk("alex", "random").state_dict(), "classifier.6.bias": torch.zeros(1000)}, path)
    a, b = images("alex")
    by_path, by_module = LPIPS(trunk=path), LPIPS(trunk=load_trunk("alex", "random"))
    assert torch.equal(by_path(a, b), by_module(a, b))
    torch.save(packages["alex"].net.state_dict(), path)
    assert torch.equal(LPIPS(trunk=path)(a, b), same_as(packages["alex"])(a, b))
    with pytest.raises(ValueError, match=r"is not a state dict of squeezenet1_1: features.0.weight has shape"):
        LPIPS(net="squeeze", trunk=path)
    with pytest.raises(FileNotFoundError, match=r"trunk: file .* does not exist"):
        LPIPS(trunk=tmp_path / "absent.pth")


def test_bad_arguments_are_explained(packages, tmp_path):
    ours, (a, b) = same_as(packages["vgg"]), images("vgg")
    with pytest.raises(ValueError, match="net must be vgg, alex, squeeze, got 'resnet'"):
        LPIPS(net="resnet")
    with pytest.raises(ValueError, match=r"version must be 0.1 or 0.0, got '1'"):
        LPIPS(version="1")
    with pytest.raises(ValueError, match="in1 must have the shape of in0"):
        ours(a, b[:, :, 1:])
    with pytest.raises(ValueError, match="in0 must be at least 16x16 for net='vgg', got 15x16"):
        ours(a[:, :, :15], b[:, :, :15])
    with pytest.raises(TypeError, match=r"in1 is torch.float64 and the vgg16 torch.float32.*LPIPS\(...\).to\(dtype\)"):
        ours(a, b.double())
    torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"lin0.model.1.weight must have shape \(1, 64, 1, 1\), got \(1, 3, 1, 1\)"):
        LPIPS(net="vgg", pnet_rand=True, model_path=tmp_path / "linear.pth")


def test_contradicting_values_are_reported_once(packages):
    ours, (a, b) = same_as(packages["squeeze"]), images("squeeze")
    again, fitting = same_as(packages["squeeze"]), same_as(packages["squeeze"])
    with pytest.warns(UserWarning, match=r"in0 has values from .* but images in \[-1, 1\] are expected; scale them"):
        ours((a + 1) * 127.5, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours((a + 1) * 127.5, b)
        fitting(a, b)
    with pytest.warns(UserWarning, match="normalize=True for"):
        again((a + 1) / 2, (b + 1) / 2)


def test_it_prints_nothing():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        LPIPS(pnet_rand=True)
    assert printed.getvalue() == ""
    assert "lpips" in sys.modules  # imported by this test, not by the class
