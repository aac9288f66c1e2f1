"""What lean networks keep between forward and backward."""

import gc

import pytest
import torch
from torch import nn

import pix2pixhd
from pix2pixhd.models import define_D, define_E, define_G
from pix2pixhd.nn import lean

from .helpers import chain, images, kept_bytes

SMALL = 20_000  # statistics


def conv_outputs(network, *inputs):
    """Bytes of the outputs of all convolutions and residual blocks."""
    sizes = []

    def record(module, _, output):
        sizes.append(output.nbytes)

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = [m for m in network.modules() if isinstance(m, kinds) or type(m).__name__ == "ResnetBlock"]
    handles = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return sum(sizes)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_generators_keep_the_outputs_of_their_convolutions(kind, norm):
    network = lean(define_G(5, 3, 16, kind, 2, 2, 1, 1, norm))
    x = images(1, 5, 64, 96).float()
    outputs = conv_outputs(network, x)
    kept = kept_bytes(lambda: network(x))
    # The enhancer's first block has the sum of two features as its input; the global part has the halved image.
    extra = 0 if kind == "global" else network.model1_1(x).nbytes + network.downsample(x).nbytes
    assert kept <= outputs + extra + SMALL
    assert kept_bytes(lambda: lean(network, enabled=False)(x)) > 1.7 * kept


def test_discriminators_keep_their_features():
    network = lean(define_D(5, 16, 3, num_D=2, getIntermFeat=True))
    x = images(1, 5, 64, 96).float()
    features = sum(f.nbytes for scale in network(x) for f in scale)
    kept = kept_bytes(lambda: network(x))
    assert kept <= features + network.downsample(x).nbytes + SMALL


def test_discriminators_with_batch_norm_keep_one_tensor_per_layer():
    """As soon as the caller frees the features."""
    network = lean(define_D(5, 16, 3, "batch", num_D=2, getIntermFeat=True))
    x = images(1, 5, 64, 96).float()
    features = sum(f.nbytes for scale in network(x) for f in scale)
    kept = kept_bytes(lambda: [scale[-1] for scale in network(x)])
    assert kept <= features + network.downsample(x).nbytes + SMALL


def test_discriminators_without_features_keep_one_tensor_per_layer():
    network = lean(define_D(5, 16, 3, num_D=1))
    x = images(1, 5, 64, 96).float()
    assert kept_bytes(lambda: network(x)) <= conv_outputs(network, x) + SMALL


def test_the_encoder_keeps_less():
    network = lean(define_E(3, 3, 16, 2))
    x, ids = images(1, 3, 64, 96).float(), torch.zeros(1, 64, 96, dtype=torch.int64)
    assert kept_bytes(lambda: network(x, ids)) < 0.65 * kept_bytes(lambda: lean(network, enabled=False)(x, ids))


def test_bfloat16_copies_of_weights_are_not_kept():
    network = lean(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(64, 64, 3)))
    x = torch.randn(1, 64, 8, 8)

    def call():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x)

    assert kept_bytes(call) <= call().nbytes + SMALL


def test_nothing_is_kept_without_gradients():
    network = lean(chain().float()).requires_grad_(False)
    x = images(1, 3, 32, 32).float()
    with torch.no_grad():
        assert kept_bytes(lambda: network(x)) == network(x).nbytes
    assert kept_bytes(lambda: network(x)) == network(x).nbytes  # no parameter requires a gradient


def test_the_reference_backend_runs_plain_layers():
    network = lean(chain().float())
    x = images(1, 3, 32, 32).float()
    with pix2pixhd.backend("reference"):
        kept = kept_bytes(lambda: network(x))
        assert kept == kept_bytes(lambda: lean(network, enabled=False)(x))
    assert kept_bytes(lambda: lean(network)(x)) < kept


def test_the_graph_is_freed_without_a_backward():
    network = lean(chain().float())
    x = images(1, 3, 32, 32).float()
    gc.disable()
    try:
        kept = kept_bytes(lambda: network(x).shape)
    finally:
        gc.enable()
    assert kept == 0
