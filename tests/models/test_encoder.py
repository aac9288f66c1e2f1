"""The instance feature encoder, compared with the loops of NVIDIA's code."""

import pytest
import torch

from pix2pixhd.models import Encoder, define_E, define_G, instance_mean


def looped(features, instance):
    """The computation of NVIDIA's code: instance by instance, channel by channel."""
    result = features.clone()
    for n in range(features.shape[0]):
        for i in instance[n].unique():
            where = instance[n] == i
            for c in range(features.shape[1]):
                result[n, c][where] = features[n, c][where].mean()
    return result


def make_ids(n, height, width, kinds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-(2**31), 2**31 - 1, (kinds,), generator=generator)
    return values[torch.randint(kinds, (n, height, width), generator=generator)].to(torch.int32)


@pytest.mark.parametrize("kinds", [1, 2, 7, 500])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 9), (3, 16, 24)])
def test_instance_mean_is_the_mean_of_each_instance(shape, kinds):
    n, height, width = shape
    ids = make_ids(n, height, width, kinds)
    features = torch.randn(n, 3, height, width, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(instance_mean(features, ids), looped(features.detach(), ids), rtol=1e-12, atol=1e-12)
    weight = torch.randn(n, 3, height, width, dtype=torch.float64)
    (instance_mean(features, ids) * weight).sum().backward()
    # The mean is a projection, so its gradient is the mean of the gradient.
    torch.testing.assert_close(features.grad, looped(weight, ids), rtol=1e-12, atol=1e-12)


def test_equal_ids_in_two_images_are_two_instances():
    features = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    ids = torch.zeros(2, 1, 1, dtype=torch.int32)
    assert instance_mean(features, ids).flatten().tolist() == [1.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    features = torch.full((1, 1, 64, 64), 100.0, dtype=dtype)  # the sum, 409600, is beyond float16
    got = instance_mean(features, torch.zeros(1, 64, 64, dtype=torch.int64))
    assert got.dtype == dtype
    assert torch.equal(got, features)


def test_nan_does_not_affect_other_instances():
    features = torch.ones(1, 1, 1, 4)
    features[..., 0] = float("nan")
    got = instance_mean(features, torch.tensor([[[5, 5, 6, 6]]]))
    assert got[..., :2].isnan().all()
    assert torch.equal(got[..., 2:], torch.ones(1, 1, 1, 2))


def test_different_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"instance must be \[1, 4, 4\] for these features, got \[1, 4, 5\]"):
        instance_mean(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int32))


def test_instance_mean_compiles_without_a_graph_break():
    compiled = torch.compile(instance_mean, fullgraph=True, backend="aot_eager")
    features, ids = torch.randn(2, 3, 8, 8), make_ids(2, 8, 8, 4)
    torch.testing.assert_close(compiled(features, ids), instance_mean(features, ids))


def test_parameters_have_nvidias_names():
    """latest_net_E.pth of a --instance_feat run: 4 downsamplings of 16 channels, 3 features."""
    shapes = {name: list(value.shape) for name, value in define_E(3, 3, 16, 4).state_dict().items()}
    expected = {"model.1": [16, 3, 7, 7], "model.28": None}
    widths = [16, 32, 64, 128, 256]
    for k in range(4):
        expected[f"model.{4 + 3 * k}"] = [widths[k + 1], widths[k], 3, 3]
        expected[f"model.{16 + 3 * k}"] = [widths[4 - k], widths[3 - k], 3, 3]
    expected.pop("model.28")
    expected["model.29"] = [3, 16, 7, 7]
    assert {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith("weight")
    } == expected
    assert len(shapes) == 2 * len(expected)


def test_features_are_constant_within_an_instance_and_bounded():
    encoder = Encoder(3, 2, ngf=4, n_downsampling=2)
    ids = make_ids(2, 16, 24, 5)
    features = encoder(torch.randn(2, 3, 16, 24), ids)
    assert features.shape == (2, 2, 16, 24)
    assert features.abs().max() <= 1
    torch.testing.assert_close(features, looped(features, ids))
    assert isinstance(define_G(3, 2, 4, "encoder", 2), Encoder)
    with pytest.raises(ValueError, match="multiples of 4"):
        encoder(torch.zeros(1, 3, 18, 16), torch.zeros(1, 18, 16, dtype=torch.int32))
