"""Slow tests that need the network: builds in pip's isolated environment, and other releases of torch.

They run with ``PIX2PIXHD_TEST_SLOW_INSTALL=1``.
"""

import shutil

import pytest

from tests.install.tools import SLOW, Environment

pytestmark = [
    pytest.mark.install,
    pytest.mark.slow,
    pytest.mark.skipif(not SLOW, reason="downloads torch several times; set PIX2PIXHD_TEST_SLOW_INSTALL=1"),
]


@pytest.fixture
def alone(tmp_path):
    environment = Environment(tmp_path / "alone", alone=True)
    yield environment
    shutil.rmtree(environment.folder)  # gigabytes that pytest would keep


def test_isolated_install_builds_and_computes(alone, cpu_checkout):
    """``pip install .`` into an empty environment."""
    alone.run("-m", "pip", "install", cpu_checkout, PIX2PIXHD_CUDA="0")
    facts = alone.facts()
    assert facts["torch_version"].split("+")[0] == facts["torch"].split("+")[0]
    assert alone.command("doctor", CUDA_VISIBLE_DEVICES="").stdout.endswith("result: all well\n")


@pytest.mark.parametrize("torch", ["torch==2.10.*", "torch===2.13.0", "torch==2.13.0+cpu"])
def test_one_wheel_runs_with_every_supported_torch(alone, wheel, torch):
    """A wheel with CUDA kernels also runs with a torch without CUDA."""
    found = alone.run("-m", "pip", "install", torch, "numpy", check=False)
    if "No matching distribution found" in found.stderr:
        pytest.skip(f"{torch} is not in the package index")
    assert found.returncode == 0, found.stderr
    alone.run("-m", "pip", "install", "--no-deps", wheel.path)
    facts = alone.facts()
    assert facts["torch"].startswith(torch.strip("torch=.*"))
    assert facts["torch"] != facts["torch_version"]
    assert facts["cpu"] is True
    assert facts["cuda"] == ("building CUDA kernels" in wheel.log and facts["torch_cuda"] is not None)
    if facts["torch_cuda"] is None:
        assert "is a build without CUDA" in facts["cuda_reason"]
