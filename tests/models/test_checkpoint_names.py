"""Names and shapes of NVIDIA's checkpoints, derived by hand from the published architecture, not from this code."""

import pytest
import torch

from pix2pixhd.models import GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator, define_D, define_G


def shapes(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def conv(table, name, out_channels, in_channels, kernel):
    table[f"{name}.weight"] = (out_channels, in_channels, kernel, kernel)
    table[f"{name}.bias"] = (out_channels,)


def conv_transposed(table, name, in_channels, out_channels):
    table[f"{name}.weight"] = (in_channels, out_channels, 3, 3)
    table[f"{name}.bias"] = (out_channels,)


def block(table, name, channels):
    conv(table, f"{name}.conv_block.1", channels, channels, 3)
    conv(table, f"{name}.conv_block.5", channels, channels, 3)


def test_global_generator_matches_the_512p_checkpoint():
    """label2city_512p: 35 labels and the edge map, ngf 64, 4 downsamplings, 9 blocks, netG global."""
    table = {}
    conv(table, "model.1", 64, 36, 7)
    conv(table, "model.4", 128, 64, 3)
    conv(table, "model.7", 256, 128, 3)
    conv(table, "model.10", 512, 256, 3)
    conv(table, "model.13", 1024, 512, 3)
    for position in range(16, 25):
        block(table, f"model.{position}", 1024)
    conv_transposed(table, "model.25", 1024, 512)
    conv_transposed(table, "model.28", 512, 256)
    conv_transposed(table, "model.31", 256, 128)
    conv_transposed(table, "model.34", 128, 64)
    conv(table, "model.38", 3, 64, 7)
    with torch.device("meta"):
        network = define_G(36, 3, 64, "global", n_downsample_global=4, n_blocks_global=9)
    assert shapes(network) == table


def test_local_enhancer_matches_the_1024p_checkpoint():
    """label2city_1024p: netG local, ngf 32, the global part without its output layers."""
    table = {}
    conv(table, "model.1", 64, 36, 7)
    conv(table, "model.4", 128, 64, 3)
    conv(table, "model.7", 256, 128, 3)
    conv(table, "model.10", 512, 256, 3)
    conv(table, "model.13", 1024, 512, 3)
    for position in range(16, 25):
        block(table, f"model.{position}", 1024)
    conv_transposed(table, "model.25", 1024, 512)
    conv_transposed(table, "model.28", 512, 256)
    conv_transposed(table, "model.31", 256, 128)
    conv_transposed(table, "model.34", 128, 64)
    conv(table, "model1_1.1", 32, 36, 7)
    conv(table, "model1_1.4", 64, 32, 3)
    for position in range(3):
        block(table, f"model1_2.{position}", 64)
    conv_transposed(table, "model1_2.3", 64, 32)
    conv(table, "model1_2.7", 3, 32, 7)
    with torch.device("meta"):
        network = define_G(36, 3, 32, "local", n_downsample_global=4)
    assert shapes(network) == table


def test_two_enhancers_have_their_output_in_the_last():
    table = {}
    conv(table, "model.1", 16, 5, 7)
    conv(table, "model.4", 32, 16, 3)
    block(table, "model.7", 32)
    conv_transposed(table, "model.8", 32, 16)
    conv(table, "model1_1.1", 8, 5, 7)
    conv(table, "model1_1.4", 16, 8, 3)
    block(table, "model1_2.0", 16)
    conv_transposed(table, "model1_2.1", 16, 8)
    conv(table, "model2_1.1", 4, 5, 7)
    conv(table, "model2_1.4", 8, 4, 3)
    block(table, "model2_2.0", 8)
    conv_transposed(table, "model2_2.1", 8, 4)
    conv(table, "model2_2.5", 3, 4, 7)
    network = LocalEnhancer(5, 3, 4, 1, 1, n_local_enhancers=2, n_blocks_local=1)
    assert shapes(network) == table
    assert network(torch.randn(1, 5, 16, 24)).shape == (1, 3, 16, 24)


PATCHGAN = [(64, 39, 4), (128, 64, 4), (256, 128, 4), (512, 256, 4), (1, 512, 4)]


def test_discriminator_with_features_has_nvidias_names():
    table = {}
    for scale in range(2):
        for layer, (outputs, inputs, kernel) in enumerate(PATCHGAN):
            conv(table, f"scale{scale}_layer{layer}.0", outputs, inputs, kernel)
    assert shapes(define_D(39, 64, 3, num_D=2, getIntermFeat=True)) == table


def test_discriminator_without_features_has_nvidias_names():
    table = {}
    for scale in range(3):
        for position, (outputs, inputs, kernel) in zip((0, 2, 5, 8, 11), PATCHGAN, strict=True):
            conv(table, f"layer{scale}.{position}", outputs, inputs, kernel)
    assert shapes(MultiscaleDiscriminator(39)) == table


def test_batch_norm_has_nvidias_names():
    names = set(shapes(define_G(4, 3, 4, "global", 1, 1, norm="batch")))
    assert {"model.2.weight", "model.2.running_mean", "model.7.conv_block.6.running_var"} <= names


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
def test_every_padding_type_has_nvidias_names_and_keeps_the_size(padding):
    network = GlobalGenerator(4, 3, 4, 1, 1, padding_type=padding)
    position = 0 if padding == "zero" else 1
    assert f"model.7.conv_block.{position}.weight" in shapes(network)
    assert network(torch.randn(1, 4, 8, 8)).shape == (1, 3, 8, 8)
