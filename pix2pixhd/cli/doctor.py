"""``pix2pixhd doctor``: reports the installation, tests the operators and measures the speed-up."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

import pix2pixhd
from pix2pixhd.errors import install_command
from pix2pixhd.ops import backend, extension, gpu_support, logistic_loss, lsgan_loss, multi_l1_loss, perceptual
from pix2pixhd.ops.conv_stack import POOL, RELU, TAP, TAP_POOL, ConvStack


def _line(label: str, text: str) -> None:
    print(f"  {label:<18} {text}")


def _versions() -> None:
    print("versions")
    _line("pix2pixhd", pix2pixhd.__version__)
    _line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    _line("torch", f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'})")
    extras = {"train": ("lightning", "jsonargparse", "tensorboard", "torchmetrics"), "demo": ("skimage",)}
    for extra, modules in extras.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        remedy = f"missing {', '.join(missing)}: {install_command(extra)}"
        _line(f"extra [{extra}]", remedy if missing else "installed")


def _build() -> None:
    print("build")
    facts = extension.build_facts()
    if facts is None:
        _line("pix2pixhd._C", "missing: not built, or built for another Python; the losses run in plain PyTorch")
        return
    _line("built with", f"{facts.compiler}, against torch {facts.torch_version} (runs under torch 2.10 and newer)")
    if facts.version != pix2pixhd.__version__:
        _line("stale", f"the extension has version {facts.version}: reinstall the package")
    _line("CPU kernels", facts.instruction_sets.replace(",", ", "))
    archs = f"nvcc {facts.cuda_version}, for {facts.cuda_archs}" if facts.cuda_version else "not built"
    _line("CUDA kernels", archs)


def _gpus(loaded: bool) -> bool:
    """Prints the visible GPUs. Returns whether the CUDA kernels can run on all of them."""
    if not torch.cuda.is_available():
        _line("GPU", "none visible to torch")
        return True
    covered = loaded
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        _line(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
        missing = gpu_support.missing(index) if loaded else ""
        if missing:
            _line("", f"no: {missing}")
            covered = False
    return covered


def _extensions() -> bool:
    """Prints which extensions are loaded. Returns whether one that should be loaded is not."""
    print("loaded")
    cpu, cuda = extension.cpu(), extension.cuda()
    if cpu.loaded:
        supported, current = torch.ops.pix2pixhd.cpu_instruction_sets().split(";")
        _line("CPU operators", f"yes, using {current} (this processor supports {supported.replace(',', ', ')})")
    else:
        _line("CPU operators", f"no: {cpu.reason}")
    _line("CUDA operators", "yes" if cuda.loaded else f"no: {cuda.reason}")
    covered = _gpus(cuda.loaded)
    if not cuda.loaded and torch.version.cuda is not None:
        remedy = f"{extension.nvcc_remedy(torch.version.cuda)} and reinstall to get the CUDA kernels"
        _line("nvcc", shutil.which("nvcc") or f"not on the PATH: {remedy}")
    asked = os.environ.get("PIX2PIXHD_BACKEND", "auto")
    _line("backend", f"{asked} (PIX2PIXHD_BACKEND)")
    return not cpu.loaded or not covered


def _self_test(device: torch.device) -> str:
    """Compares values and gradients with plain PyTorch in float64. Returns the error, or an empty string."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 17, 19), (1, 5, 64, 65), (1, 1, 1, 1)]
    fake = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    real = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    losses: dict[str, Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]] = {
        "multi_l1_loss": lambda x, y: multi_l1_loss(x, y, [1.0, 0.5, 0.25]),
        "lsgan_loss": lambda x, y: lsgan_loss(x, 1.0, [1.0, 0.5, 0.25]),
        "logistic_loss": lambda x, y: logistic_loss(x, 1.0, [1.0, 0.5, 0.25]),
    }
    for name, loss in losses.items():
        with pix2pixhd.backend("fused"):
            value = loss(fake, real)
            gradients = torch.autograd.grad(value, fake)
        with pix2pixhd.backend("reference"):
            fake64 = [x.detach().double().requires_grad_() for x in fake]
            expected = loss(fake64, [y.double() for y in real])
            expected_gradients = torch.autograd.grad(expected, fake64)
        pairs = [(value, expected), *zip(gradients, expected_gradients, strict=True)]
        if not all(torch.allclose(a.double(), b, rtol=1e-6, atol=1e-12) for a, b in pairs):
            return f"{name} disagrees with plain PyTorch in float64"
    return _perceptual_self_test(device)


def _perceptual_self_test(device: torch.device) -> str:
    """Tests the perceptual loss's operators on a small stack of convolutions.

    The test runs in float64, where rounding does not change the sign of small differences.
    """
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    layer_kinds, layer_weights = TAP + POOL + RELU + TAP_POOL + TAP, [0.25, 0.5, 1.0]
    weights = [make(32, 3, 3, 3), *(make(32, 32, 3, 3) / 12 for _ in layer_kinds[1:])]
    biases = [make(32) for _ in weights]
    fake, real = make(2, 3, 9, 14).requires_grad_(), make(2, 3, 9, 14)
    stack = ConvStack(weights, biases, layer_kinds)
    value = perceptual.perceptual_loss(fake, real, stack, layer_weights).mean()
    (gradient,) = torch.autograd.grad(value, fake)

    x, y, taps, expected = fake, real, iter(layer_weights), torch.zeros_like(value)
    for kind, weight, bias in zip(layer_kinds, weights, biases, strict=True):
        x, y = (F.relu(F.conv2d(z, weight, bias, padding=1)) for z in (x, y))
        if kind in (TAP, TAP_POOL):
            expected = expected + next(taps) * F.l1_loss(x, y)
        if kind in (POOL, TAP_POOL):
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
    (expected_gradient,) = torch.autograd.grad(expected, fake)
    pairs = [(value, expected), (gradient, expected_gradient)]
    agrees = all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)
    return "" if agrees else "the perceptual loss's operators disagree with plain PyTorch"


def _speed_up(device: torch.device) -> str:
    from pix2pixhd.bench.case import Setup
    from pix2pixhd.bench.cases import l1_case
    from pix2pixhd.bench.timing import compare

    shapes = [(1, 64, 129, 257), (1, 128, 65, 129), (1, 256, 33, 65), (1, 512, 34, 66)]
    case = l1_case(shapes, [0.5] * 4, Setup(device=device))
    timings = compare({name: case.run_of(name) for name in ("fused", "plain")}, rounds=7)
    fused, plain = timings["fused"].median, timings["plain"].median
    return (
        f"feature matching at 512x256, forward + backward: {fused * 1e3:.2f} ms fused, {plain * 1e3:.2f} ms plain "
        f"PyTorch, {plain / fused:.1f} times as fast"
    )


def _check(device: torch.device) -> bool:
    """Tests the operators on one device and measures the speed-up. Returns whether the test failed."""
    try:
        failure = _self_test(device)
    except RuntimeError as error:
        failure = str(error)
    result = f"FAILED: {failure}" if failure else "passed (values and gradients against float64)"
    _line(f"self-test, {device.type}", result)
    if not failure:
        _line(f"speed, {device.type}", _speed_up(device))
    return bool(failure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``pix2pixhd doctor`` and returns the exit code: 1 if something that should work does not."""
    argparse.ArgumentParser(
        prog="pix2pixhd doctor",
        description="Report which extensions were built, which are loaded, and why others are not; run a self-test; "
        "measure a speed-up. The exit code is 1 if something that should work on this machine does not.",
    ).parse_args(argv)
    _versions()
    _build()
    failed = _extensions()
    print("check")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        reason = backend.unavailable(device)
        if reason:
            _line(f"self-test, {device.type}", f"not run, the losses run in plain PyTorch here: {reason}")
        else:
            failed = _check(device) or failed
    print("result: " + ("NOT all well, see above" if failed else "all well"))
    return int(failed)
