"""Every operator on the GPU against the same operator on the CPU."""

import pytest
import torch

from ..ops.oracle import DTYPES, LAYOUTS, in_layout
from .inputs import AWKWARD, FEATURES, LOSSES, MANY, lists, on, value_and_gradients

ops = torch.ops.pix2pixhd


def check(loss, xs, ys, device, exact_gradients=True):
    value, gradients = value_and_gradients(loss, xs, ys)
    ours, found = value_and_gradients(loss, on(device, xs), on(device, ys))
    assert ours.device.type == device.type
    assert ours.dtype == value.dtype
    rtol = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-12}[value.dtype]
    torch.testing.assert_close(ours.cpu(), value, rtol=rtol, atol=rtol, equal_nan=True)
    for x, a, b in zip((*xs, *ys), found, gradients, strict=True):
        assert a.dtype == b.dtype == x.dtype
        assert a.stride() == b.stride()
        # The same formula and precision, but the coefficient may differ in its last bit.
        eps = {torch.float64: 1e-14, torch.float32: 2e-7, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[x.dtype]
        atol = torch.finfo(x.dtype).tiny
        if not exact_gradients and b.numel() > 0:  # exp differs in its last bit, and sigmoid(x) - label cancels
            atol += eps * b.nan_to_num().abs().max().item()
        torch.testing.assert_close(a.cpu(), b, rtol=eps, atol=atol, equal_nan=True)
        assert not exact_gradients or torch.equal(a.cpu() == 0, b == 0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shapes", [FEATURES, AWKWARD, MANY, [(3, 100_000)]], ids=["features", "awkward", "many", "large"]
)
def test_values_and_gradients_match_the_cpu(name, dtype, shapes, device):
    check(LOSSES[name], *lists(shapes, dtype), device, exact_gradients=name != "logistic")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinities_and_ties_match_the_cpu(name, dtype, device):
    check(LOSSES[name], *lists(FEATURES, dtype, special=True), device, exact_gradients=name != "logistic")


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_mixed_dtypes_match_the_cpu(first, second, device):
    check(LOSSES["l1"], *lists([*FEATURES, (77,)], first, target_dtype=second), device)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_layouts_match_the_cpu(first, second, dtype, device):
    xs, ys = lists([(2, 32, 9, 13), (1, 3, 40, 33)], dtype)
    check(LOSSES["l1"], [in_layout(x, first) for x in xs], [in_layout(y, second) for y in ys], device)


def maps(*shape, dtype, seed):
    x, y = lists([shape], dtype, seed=seed, special=True)
    return (z[0].contiguous(memory_format=torch.channels_last) for z in (x, y))


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


SHAPES = [(1, 32, 1, 1), (2, 96, 7, 5), (3, 64, 33, 40), (1, 512, 2, 3), (0, 32, 4, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_relu_and_pooling_of_feature_maps_match_the_cpu(dtype, shape, biased, device):
    x, grad = maps(*shape, dtype=dtype, seed=1)
    bias = torch.randn(shape[1], generator=torch.Generator().manual_seed(2)).to(dtype) if biased else None

    def run(x, grad, bias):
        y, g = x.clone(), grad.clone()
        mask = ops.relu_mask_(y, bias, True)
        ops.relu_backward_(g, mask)
        out, codes = ops.relu_pool(x, bias, True)
        pool_gradient = ops.relu_pool_backward(out.clone(), codes, x.shape[2], x.shape[3])
        return y, mask, g, out, codes, pool_gradient

    moved = (x.to(device), grad.to(device), None if bias is None else bias.to(device))
    same(run(*moved), run(x, grad, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("options", [(False, False, False), (True, True, False), (False, True, True)])
def test_distances_of_feature_maps_match_the_cpu(dtype, shape, squared, options, device):
    biased, weighted, activated = options
    (x, y), (grad, _) = maps(*shape, dtype=dtype, seed=1), maps(*shape, dtype=dtype, seed=2)
    generator = torch.Generator().manual_seed(3)
    bias = torch.randn(shape[1], generator=generator).to(dtype) if biased else None
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn((shape[0], *shape[2:]), generator=generator).to(compute) if weighted else None

    def run(x, y, grad, bias, weight):
        a, b, g = x.clone(), y.clone(), grad.clone()
        loss, mask, kept = ops.relu_distance_(a, b, bias, weight, squared, activated, True)
        ops.relu_distance_backward_(g, mask, kept, weight, squared, 0.25)
        return loss, (a, b, mask, kept, g)

    expected, exact = run(x, y, grad, bias, weight)
    ours, found = run(*(None if z is None else z.to(device) for z in (x, y, grad, bias, weight)))
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    same(found, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 128, 9, 8), (1, 1056, 3, 2)])
@pytest.mark.parametrize("options", [(False, False, False), (True, True, False), (False, True, True)])
def test_the_tap_of_lpips_matches_the_cpu(dtype, shape, options, device):
    biased, weighted, activated = options
    (x, y), (grad, _) = maps(*shape, dtype=dtype, seed=1), maps(*shape, dtype=dtype, seed=2)
    x[:, :, -1, -1] = -100.0  # a zero vector after ReLU
    generator = torch.Generator().manual_seed(3)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    bias = torch.randn(shape[1], generator=generator).to(dtype) if biased else None
    linear = torch.rand(shape[1], generator=generator).to(compute)
    weight = torch.randn((shape[0], *shape[2:]), generator=generator).to(compute) if weighted else None

    def move(tensor):
        return None if tensor is None else tensor.to(device)

    def run(x, y, bias, linear, weight):
        a, b = x.clone(), y.clone()
        loss, mask, kept = ops.relu_lpips_(a, b, bias, linear, weight, activated, 0.5, True)
        return loss, kept, (a, b, mask)

    expected, kept, exact = run(x, y, bias, linear, weight)
    loss, found, others = run(*map(move, (x, y, bias, linear, weight)))
    same(others, exact)
    # The CUDA operator sums over the channels in the dtype of the arithmetic, the CPU operator in float64.
    eps = 64 * torch.finfo(compute).eps
    torch.testing.assert_close(loss.cpu(), expected, rtol=eps, atol=eps, equal_nan=True)
    pixels, wanted = (z.view(-1, shape[1]).double() for z in (found.cpu(), kept))
    assert torch.equal(pixels.isnan(), wanted.isnan())
    size = wanted.nan_to_num().abs().amax(1, keepdim=True) if wanted.numel() > 0 else wanted
    assert ((pixels - wanted).nan_to_num().abs() <= eps * size + torch.finfo(dtype).eps * wanted.nan_to_num().abs()
            + torch.finfo(dtype).tiny).all()  # fmt: skip
    result, moved = grad.clone(), grad.to(device)
    ops.relu_distance_backward_(result, exact[2], kept, weight, True, 0.25)
    ops.relu_distance_backward_(moved, move(exact[2]), move(kept), move(weight), True, 0.25)
    same((moved,), (result,))


@pytest.mark.cuda_only
def test_weights_of_channels_on_another_device_are_refused():
    x = torch.randn(1, 32, 4, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="linear must be on the device of the feature map"):
        ops.relu_lpips_(x, x.clone(), None, torch.ones(32), None, False, 1.0, True)


@pytest.mark.cuda_only
def test_a_tensor_with_more_than_2_to_the_31_elements_is_summed_and_differentiated():
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GB of GPU memory")
    x = torch.zeros(2**31 + 77, dtype=torch.bfloat16, device="cuda")
    x[-5:] = 1.0
    x.requires_grad_()
    loss = LOSSES["l1"]([x], [torch.zeros((), dtype=torch.bfloat16, device="cuda").expand_as(x).contiguous()])
    torch.testing.assert_close(loss.double(), torch.tensor(0.5 * 5 / x.numel(), dtype=torch.float64, device="cuda"),
                               rtol=1e-2, atol=0)  # fmt: skip
    (gradient,) = torch.autograd.grad(loss * 2.0**31, x)
    assert torch.equal(gradient.nonzero().flatten(), torch.arange(x.numel() - 5, x.numel(), device="cuda"))
