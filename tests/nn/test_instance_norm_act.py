"""The layer that normalises, activates and pads in one pass."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pix2pixhd
from pix2pixhd.nn import InstanceNorm2d, InstanceNormAct2d, lean

from .helpers import differentiate, error, images, kept_bytes, plain_and_lean, randomised

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


def formula(layer, x):
    """The layer from its definition."""
    mean = x.mean((2, 3), keepdim=True)
    y = (x - mean) / (x.var((2, 3), unbiased=False, keepdim=True) + layer.eps).sqrt()
    if layer.affine:
        y = y * layer.weight[:, None, None] + layer.bias[:, None, None]
    if layer.activation is not None:
        y = torch.where(y > 0, y, y * (layer.slope if layer.activation == "leaky_relu" else 0.0))
    return F.pad(y, layer.padding, MODES[layer.padding_mode])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
@pytest.mark.parametrize("padding", [0, 2, (1, 0, 2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_follow_the_formula(affine, activation, padding, mode):
    layer = InstanceNormAct2d(3, 1e-3, affine, activation, 0.3, padding, mode)
    randomised(layer).double()
    for n in (1, 3):
        x = images(n, 3, 5, 7)
        leaf = x.clone().requires_grad_()
        expected = formula(layer, leaf)
        upstream = images(*expected.shape, seed=2)
        wanted = torch.autograd.grad(expected, [leaf, *layer.parameters()], upstream)
        outputs, grads = differentiate(layer, x)
        generator = torch.Generator().manual_seed(2)
        assert torch.equal(upstream, torch.randn(expected.shape, dtype=torch.float64, generator=generator))
        assert error(outputs, [expected]) < 1e-12
        assert error(grads, wanted) < 1e-12
        with torch.no_grad():
            assert error([layer(x)], [expected]) < 1e-12
            with pix2pixhd.backend("reference"):
                assert error([layer(x)], [expected]) < 1e-12


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_lean_chain_saves_no_copy_of_the_result(activation):
    padding = {"padding": 1, "padding_mode": "reflect"}
    layers = [nn.Conv2d(3, 8, 3), InstanceNormAct2d(8, activation=activation, **padding), nn.Conv2d(8, 8, 3)]
    plain, ours = plain_and_lean(randomised(nn.Sequential(*layers)).double())
    x = images(2, 3, 20, 20)
    assert error(differentiate(ours, x)[1], differentiate(plain, x)[1]) < 1e-12
    outputs = ours[0](x).nbytes + ours(x).nbytes
    assert kept_bytes(lambda: ours(x)) < outputs + 2000
    assert kept_bytes(lambda: plain(x)) > outputs + ours[:2](x).nbytes


def test_names_of_parameters_are_those_of_instance_norm():
    layer, other = InstanceNormAct2d(4, affine=True), nn.InstanceNorm2d(4, affine=True)
    other.load_state_dict(layer.state_dict())
    assert "activation=relu" in repr(layer)
    x = images(1, 4, 5, 5).float()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype):
    layer = randomised(InstanceNormAct2d(4, affine=True, activation="leaky_relu"))
    x = images(2, 4, 9, 9)
    expected = formula(copy.deepcopy(layer).double(), x.to(dtype).double())
    found = layer(x.to(dtype))
    assert found.dtype == dtype
    assert error([found], [expected]) < (2e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.slow
def test_it_compiles():
    layer = InstanceNormAct2d(3, padding=1, padding_mode="reflect").double()
    x = images(2, 3, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert error(differentiate(compiled, x)[1], differentiate(layer, x)[1]) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu"}, "activation must be 'relu', 'leaky_relu' or None, got 'gelu'"),
        ({"padding_mode": "circular"}, "padding_mode must be one of zeros, reflect, replicate, got 'circular'"),
        ({"padding": -1}, "padding must be one or four integers of at least 0, got -1"),
        ({"padding": 1.5}, "padding must be one or four integers of at least 0, got 1.5"),
        ({"padding": "same"}, "padding must be one or four integers of at least 0, got 'same'"),
        ({"padding": (1, 1, 1, 1.0)}, "padding must be one or four integers of at least 0, got"),
        ({"activation": ["relu"]}, "activation must be 'relu', 'leaky_relu' or None, got"),
        ({"padding_mode": None}, "padding_mode must be one of zeros, reflect, replicate, got None"),
        ({"slope": "0.2"}, "slope must be a number, got '0.2'"),
        ({"padding": (1, 1)}, "padding must be one or four integers of at least 0, got"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InstanceNormAct2d(3, **arguments)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"input must be \[N, C, H, W\], got \[3, 4, 4\]"):
        InstanceNormAct2d(3)(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="Expected more than 1"):
        lean(nn.Sequential(InstanceNormAct2d(3)))(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("layer", [InstanceNorm2d(3, affine=True), InstanceNormAct2d(3, affine=True, padding=1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(layer, dtype):
    x = torch.zeros(0, 3, 4, 5, dtype=dtype, requires_grad=True)
    y = lean(nn.Sequential(layer))(x)
    side = 2 if isinstance(layer, InstanceNormAct2d) else 0
    assert (y.shape, y.dtype) == ((0, 3, 4 + side, 5 + side), dtype)
    x_gradient, *gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert x_gradient.shape == x.shape
    assert all(torch.equal(g, torch.zeros(3)) for g in gradients)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        layer(torch.zeros(0, 3, 1, 1))


@pytest.mark.parametrize("n", [0, 2])
def test_another_number_of_channels_gives_the_error_of_instance_norm(n):
    with pytest.raises(ValueError, match=r"to match num_features \(3\), but got: 4"):
        InstanceNormAct2d(3, affine=True)(torch.zeros(n, 4, 5, 5))
