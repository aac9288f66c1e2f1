"""norm_act on the GPU against the same operators on the CPU."""

import pytest
import torch

from pix2pixhd.ops import norm_act as fused

from ..ops.norm_act_cases import assert_near, backward, forward, images, random_case, statistics_of
from ..ops.oracle import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", range(4))
def test_random_cases_match_the_cpu(dtype, block, device):
    for seed in range(block * 25, block * 25 + 25):
        case = random_case(seed, dtype)

        def move(tensor):
            return None if tensor is None else tensor.to(device)

        mean, rstd = statistics_of(case)
        if mean is not None:
            own = fused.norm_statistics(move(case.x), case.per_image, case.eps)
            for a, b in zip(own, (mean, rstd), strict=False):
                torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=2e-6)
        y = forward(case, fused, mean, rstd)
        on_gpu = forward(case, fused, mean, rstd, move)
        assert on_gpu.stride() == y.stride()
        torch.testing.assert_close(on_gpu.cpu(), y, rtol=0, atol=0)  # the same operations, rounded alike
        source = forward(case, fused, mean, rstd, plain=True) if case.source_is_output else case.x
        terms = case.x.numel() // case.x.shape[1]
        for a, b in zip(
            backward(case, fused, source, mean, rstd, move), backward(case, fused, source, mean, rstd), strict=True
        ):
            assert a.shape == b.shape
            assert_near(a.cpu(), b.double(), b.dtype, max(terms, 4))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_two_runs_agree_bit_for_bit(layout, device):
    x = images((2, 70, 61, 67), torch.float32, layout).to(device)
    rest = (1, 0.2, [2, 1, 1, 3], 1)
    runs = []
    for _ in range(2):
        statistics = fused.norm_statistics(x)
        y = fused.norm_act(x, *statistics[:2], None, None, x, *rest)
        gradients = fused.norm_act_backward(y, x, False, *statistics[:2], None, None, *rest, *[True] * 4)
        runs.append([*statistics, y, *gradients])
    assert all(map(torch.equal, *runs))
