"""The benchmark of LPIPS runs this package's class and those of the lpips package and torchmetrics."""

import pytest
import vgg_loss


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("implementation", ["ours", "bounded", "plain", "torchmetrics"])
def test_lpips_benchmark_runs_every_implementation(implementation):
    found = vgg_loss.measure("lpips", implementation, "float32", (32, 32), 2, 1, 768)
    assert found["seconds"] > 0
