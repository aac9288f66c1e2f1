"""Generators and discriminators: architecture, initial weights, errors, memory formats."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pix2pixhd.models import (
    GlobalGenerator,
    InstanceNorm2d,
    LocalEnhancer,
    MultiscaleDiscriminator,
    NLayerDiscriminator,
    ResnetBlock,
    define_D,
    define_G,
    get_norm_layer,
)


def test_generators_keep_the_size_and_output_values_in_range():
    for network in (GlobalGenerator(5, 3, 4, 2, 1), LocalEnhancer(5, 3, 4, 2, 1, 1, 1)):
        for size in ((16, 24), (32, 16)):
            output = network(torch.randn(2, 5, *size) * 5)
            assert output.shape == (2, 3, *size)
            assert output.abs().max() <= 1


def test_global_generator_computes_the_published_sequence_of_layers():
    """Compared with a functional forward that reads the weights by checkpoint name."""
    torch.manual_seed(0)
    network = GlobalGenerator(3, 2, 4, n_downsampling=1, n_blocks=1).double()
    w = network.state_dict()
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64)

    def norm(y):
        return (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    def pad(y, n):
        return F.pad(y, (n, n, n, n), mode="reflect")

    def weights(name):
        return w[f"{name}.weight"], w[f"{name}.bias"]

    y = norm(F.conv2d(pad(x, 3), *weights("model.1"))).relu()
    y = norm(F.conv2d(y, *weights("model.4"), stride=2, padding=1)).relu()
    z = norm(F.conv2d(pad(y, 1), *weights("model.7.conv_block.1"))).relu()
    y = y + norm(F.conv2d(pad(z, 1), *weights("model.7.conv_block.5")))
    y = norm(F.conv_transpose2d(y, *weights("model.8"), stride=2, padding=1, output_padding=1)).relu()
    expected = F.conv2d(pad(y, 3), *weights("model.12")).tanh()
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_local_enhancer_adds_the_global_features_to_its_own():
    torch.manual_seed(0)
    network = LocalEnhancer(3, 3, 4, 1, 1, 1, 1)
    x = torch.randn(1, 3, 16, 16)
    half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
    expected = network.model1_2(network.model1_1(x) + network.model(half))
    torch.testing.assert_close(network(x), expected)


def test_full_resolution_comes_first_and_is_the_last_named_scale():
    network = MultiscaleDiscriminator(5, 4, 2, num_D=3, getIntermFeat=True)
    x = torch.randn(1, 5, 32, 32)
    results = network(x)
    assert [scale[0].shape[-1] for scale in results] == [17, 9, 5]
    for position, scale in enumerate(results):
        y = x
        for _ in range(position):
            y = F.avg_pool2d(y, 3, stride=2, padding=1, count_include_pad=False)
        named = getattr(network, f"scale{2 - position}_layer0")
        torch.testing.assert_close(scale[0], named(y))


def test_discriminator_layers_have_the_published_shapes():
    network = MultiscaleDiscriminator(5, 4, 3, num_D=2, getIntermFeat=True)
    results = network(torch.randn(2, 5, 32, 48))
    assert [tuple(x.shape[1:]) for x in results[0]] == [(4, 17, 25), (8, 9, 13), (16, 5, 7), (32, 6, 8), (1, 7, 9)]
    assert [len(scale) for scale in results] == [5, 5]


def test_discriminator_channels_are_limited_to_512():
    widths = [stage[0].out_channels for stage in NLayerDiscriminator(3, 256, 3, getIntermFeat=True).children()]
    assert widths == [256, 512, 512, 512, 1]


def test_the_prediction_is_the_same_with_and_without_features():
    torch.manual_seed(0)
    features = MultiscaleDiscriminator(5, 4, 2, num_D=2, getIntermFeat=True)
    plain = MultiscaleDiscriminator(5, 4, 2, num_D=2)
    plain.load_state_dict(dict(zip(plain.state_dict(), features.state_dict().values(), strict=True)))
    x = torch.randn(1, 5, 32, 32)
    for with_features, alone in zip(features(x), plain(x), strict=True):
        assert len(alone) == 1
        torch.testing.assert_close(with_features[-1], alone[0])


@pytest.mark.parametrize("features", [False, True])
def test_sigmoid_gives_probabilities_and_keeps_the_parameter_names(features):
    network = MultiscaleDiscriminator(3, 4, 2, use_sigmoid=True, num_D=2, getIntermFeat=features)
    names = set(MultiscaleDiscriminator(3, 4, 2, num_D=2, getIntermFeat=features).state_dict())
    assert set(network.state_dict()) == names
    for scale in network(torch.randn(1, 3, 16, 16)):
        assert 0 < scale[-1].min() <= scale[-1].max() < 1


def test_initial_weights_follow_the_papers_distribution():
    torch.manual_seed(0)
    for network in (define_G(36, 3, 32, "global", 2, 2), define_D(39, 32, 3, getIntermFeat=True)):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.weight.numel() > 5000:
                assert abs(layer.weight.mean()) < 2e-3
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    scales = get_norm_layer("batch")(4096)
    network = nn.Sequential(scales)
    from pix2pixhd.models import init_weights

    init_weights(network)
    assert scales.weight.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert scales.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_instance_norm_has_no_state():
    layer = get_norm_layer()(8)
    assert not layer.state_dict()
    assert layer.running_mean is None


def test_a_block_with_dropout_keeps_the_shape_and_shifts_the_names():
    block = ResnetBlock(4, "reflect", nn.InstanceNorm2d, use_dropout=True)
    assert block(torch.randn(1, 4, 8, 8)).shape == (1, 4, 8, 8)
    assert "conv_block.6.weight" in block.state_dict()


@pytest.mark.parametrize("size", [(30, 32), (32, 20), (8, 8)])
def test_the_error_for_an_invalid_size_names_the_multiple(size):
    with pytest.raises(ValueError, match=rf"{size[1]}x{size[0]} .*multiples of 8 and at least 16"):
        GlobalGenerator(3, 3, 4, 3, 1)(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="multiples of 8"):
        LocalEnhancer(3, 3, 4, 2, 1, 1, 1)(torch.zeros(1, 3, *size))


def test_a_wrong_number_of_channels_is_rejected():
    with pytest.raises(ValueError, match=r"must be \[N, 3, H, W\], got \[1, 4, 16, 16\]"):
        GlobalGenerator(3, 3, 4, 1, 1)(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalGenerator(3, 3, n_blocks=-1), "n_blocks must be at least 0, got -1"),
        (lambda: GlobalGenerator(0, 3), "input_nc must be at least 1"),
        (lambda: GlobalGenerator(3, 3, 4, 1, 1, padding_type="circular"), "padding_type must be one of"),
        (lambda: define_G(3, 3, 4, "finest"), "netG must be 'global', 'local' or 'encoder'"),
        (lambda: define_G(3, 3, 4, "global", norm="layer"), "norm must be 'instance' or 'batch'"),
        (lambda: MultiscaleDiscriminator(3, num_D=0), "num_D must be at least 1"),
        (lambda: NLayerDiscriminator(3, n_layers=0), "n_layers must be at least 1"),
    ],
)
def test_invalid_arguments_are_named_in_the_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_reach_every_parameter():
    generator = LocalEnhancer(3, 3, 4, 1, 1, 1, 1)
    discriminator = MultiscaleDiscriminator(6, 4, 2, num_D=2, getIntermFeat=True)
    x = torch.randn(1, 3, 16, 16)
    results = discriminator(torch.cat([x, generator(x)], 1))
    sum(scale[-1].square().mean() for scale in results).backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("n", [1, 2])
def test_gradients_do_not_depend_on_the_memory_format(n):
    """PyTorch's instance norm computes wrong gradients for one image with a channels-last upstream gradient."""
    torch.manual_seed(0)
    network = define_G(5, 3, 4, "global", 2, 1).double()
    x = torch.randn(n, 5, 16, 24, dtype=torch.float64)
    weight = torch.randn(n, 3, 16, 24, dtype=torch.float64)
    expected = torch.autograd.grad((network(x) * weight).sum(), list(network.parameters()))
    network.to(memory_format=torch.channels_last)
    found = torch.autograd.grad((network(x) * weight).sum(), list(network.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 3, 4, 4), (3, 6, 8)])
def test_instance_norm_matches_pytorch(shape):
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(InstanceNorm2d(3)(x), torch.nn.InstanceNorm2d(3)(x), rtol=1e-12, atol=1e-12)
    affine, plain = InstanceNorm2d(3, affine=True).double(), torch.nn.InstanceNorm2d(3, affine=True).double()
    for module in (affine, plain):
        torch.nn.init.constant_(module.weight, 2.0)
        torch.nn.init.constant_(module.bias, 0.5)
    torch.testing.assert_close(affine(x), plain(x), rtol=1e-12, atol=1e-12)
    tracking = InstanceNorm2d(3, track_running_stats=True).double().eval()
    torch.testing.assert_close(tracking(x), x / (1 + 1e-5) ** 0.5, rtol=1e-12, atol=1e-12)
