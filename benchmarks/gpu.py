"""Build, test and measure the package on this machine's GPU with one command, in at most eight minutes.

    python benchmarks/gpu.py                   on a GPU: build in place, run tests/gpu, measure, write the results
    python benchmarks/gpu.py --device cpu      a dry run of the same code with small sizes, without a GPU

Requires a checkout, torch with torchvision, nvcc and a C++ compiler. Missing build and test packages are installed with
pip. The results are printed as a table, and written as text and JSON to ``--out`` (default: benchmarks/results).

Times are measured with CUDA events, implementations interleaved, over several sets of inputs that together exceed the
L2 cache. Bandwidth is relative to a device copy measured in the same run. Kernels are counted by PyTorch's profiler.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from report import Report  # noqa: E402
from steps import Setup  # noqa: E402


def call(command, **options):
    print("$", " ".join(map(str, command)), flush=True)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, text=True, **options)
    return done, time.perf_counter() - begin


def build(report):
    """Build in place for this machine's GPU."""
    missing = [name for name in ("setuptools", "pybind11", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        call([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done, seconds = call(command)
    if done.returncode != 0:
        raise SystemExit("the build failed; see the messages above")
    report.data["build_seconds"] = seconds
    report.at_most("build time, CPU and CUDA", seconds, 60, "s")


def run_tests(report, limit):
    """Run tests/gpu and add the end of the output to the report."""
    if importlib.util.find_spec("pytest") is None:
        call([sys.executable, "-m", "pip", "install", "--quiet", "pytest", "hypothesis", "expecttest"], check=False)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/gpu"]
    try:
        done, seconds = call(command, timeout=limit, capture_output=True)
        output, succeeded = done.stdout + done.stderr, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, seconds, succeeded = str(error.stdout or b"", "utf-8", "replace"), limit, False
    print(output[-4000:], flush=True)
    passed = re.search(r"(\d+) passed", output)
    report.data["tests"] = {"output": output[-2000:], "seconds": seconds, "passed": int(passed[1]) if passed else 0}
    report.at_least("tests/gpu: all passed", float(succeeded and passed is not None), 1, "(1 = yes)")


def machine(device):
    import torch

    import pix2pixhd
    from pix2pixhd import _C

    found = {
        "pix2pixhd": pix2pixhd.__version__,
        "built for": _C.cuda_archs or "the CPU",
        "nvcc": _C.cuda_version,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "L2 MB": properties.L2_cache_size >> 20,
            "SMs": properties.multi_processor_count,
        }
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
    return found


def copy_bandwidth(device):
    """Bytes that a large copy on the device reads and writes per second."""
    import torch

    from pix2pixhd.bench.timing import compare

    source = torch.randn((1 << 28) if device == "cuda" else (1 << 22), device=device)
    target = torch.empty_like(source)
    seconds = compare({"copy": lambda: target.copy_(source)}, rounds=11)["copy"].median
    return 2 * source.nbytes / seconds


def count_kernels(run, device):
    """The number of kernels that one call launches, including copies and fills. None on the CPU."""
    if device != "cuda":
        return None
    import torch
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in recorded.key_averages() if event.device_type.name == "CUDA")


def l1_cases(device, dtype):
    """The two multi-tensor L1 losses and their numbers of elements, at the paper's 512p size or small for a dry run."""
    import torch

    from pix2pixhd.bench.case import Setup
    from pix2pixhd.bench.cases import CASES, discriminator_shapes, vgg_shapes

    width, height = (1024, 512) if device == "cuda" else (64, 32)
    setup = Setup(width, height, dtype=dtype, device=torch.device(device), sets=3)
    shapes = {"feature matching": discriminator_shapes(setup)[0], "VGG feature maps": vgg_shapes(setup)}
    return {name: (CASES[name](setup), sum(map(math.prod, own))) for name, own in shapes.items()}


def chosen(case, with_compile):
    """The implementations of a case, without CUDA graphs."""
    left_out = ("fused-graph", "plain-graph") if with_compile else ("fused-graph", "plain-graph", "compiled")
    return {name: case.run_of(name) for name in case.names if name not in left_out}


def measure_l1(report, device, dtype, bandwidth, rounds, with_compile):
    import torch

    from pix2pixhd.bench.timing import compare

    for title, (case, elements) in l1_cases(device, dtype).items():
        implementations = chosen(case, with_compile)
        medians = {name: timing.median for name, timing in compare(implementations, rounds=rounds).items()}
        kernels = {name: count_kernels(run, device) for name, run in implementations.items()}
        name = f"{title}, {str(dtype).removeprefix('torch.')}"
        moved = 3 * elements * dtype.itemsize  # two reads, one write
        share = moved / medians["fused"] / bandwidth
        report.data[name] = {"seconds": medians, "kernels": kernels, "share of copy bandwidth": share}
        report.at_least(f"{name}: speed-up over plain PyTorch", medians["plain"] / medians["fused"], 10)
        if with_compile:
            report.at_least(f"{name}: speed-up over torch.compile", medians["compiled"] / medians["fused"], 2)
        report.at_least(f"{name}: share of a device copy's bandwidth", share, 0.85, "of copy")
        if kernels["fused"] is not None:
            report.at_most(f"{name}: kernel launches", kernels["fused"], 3, "launches")
        del implementations
        if device == "cuda":
            torch.cuda.empty_cache()


def captured(run):
    """The same work as a CUDA graph, without the overhead of Python and of launches."""
    from pix2pixhd.bench.timing import capture

    return capture(run)[0].replay


def measure_lsgan(report, device, rounds, with_compile):
    import torch

    from pix2pixhd.bench.case import Setup
    from pix2pixhd.bench.cases import CASES
    from pix2pixhd.bench.timing import compare

    for case in ("LSGAN, generator", "LSGAN, discriminator"):
        implementations = chosen(CASES[case](Setup(device=torch.device(device))), with_compile)
        kernels = {name: count_kernels(run, device) for name, run in implementations.items()}
        if device == "cuda":
            implementations |= {f"{name}, graph": captured(implementations[name]) for name in ("fused", "plain")}
        medians = {name: timing.median for name, timing in compare(implementations, rounds=rounds).items()}
        report.data[case] = {"seconds": medians, "kernels": kernels}
        report.at_least(f"{case}: speed-up over plain PyTorch", medians["plain"] / medians["fused"], 3)
        if kernels["fused"] is not None:
            report.at_most(f"{case}: kernel launches", kernels["fused"], 3, "launches")
            speed = medians["plain, graph"] / medians["fused, graph"]
            report.at_least(f"{case}: speed-up over plain, both as CUDA graphs", speed, 3)


def precision(name, device):
    """Set TF32 on or off and return the autocast context."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=name == "bfloat16")


def vgg_implementations(size, device, name, with_compile):
    """Forward + backward of VGGLoss by implementation. Each returns the retained and the peak memory.

    On the CPU, resident memory is not exact in this process; see benchmarks/vgg_loss.py.
    """
    import torch
    import vgg_loss

    import pix2pixhd
    from pix2pixhd.bench.memory import memory_of
    from pix2pixhd.losses import VGGLoss

    width, height = size
    fake, real = vgg_loss.images(width, height)
    fake, real = fake.detach().to(device).requires_grad_(), real.to(device)
    criterion = VGGLoss(vgg="random").to(device)
    losses = {"ours": ("fused", criterion), "plain": ("reference", criterion)}
    losses["checkpoint"] = ("reference", vgg_loss.checkpointed(criterion.vgg, criterion.weights))
    if with_compile:
        losses["compiled"] = ("reference", torch.compile(criterion))

    def run(backend, loss):
        memory = memory_of(device)
        memory.reset()
        before = memory.now()
        with pix2pixhd.backend(backend):
            with precision(name, device):
                value = loss(fake, real)
            retained = memory.now() - before
            torch.autograd.grad(value, fake)
        return retained, memory.peak() - before

    return {implementation: functools.partial(run, *found) for implementation, found in losses.items()}


def measure_vgg(report, device, size, rounds, warmup, with_compile):
    from pix2pixhd.bench.timing import compare

    title = f"VGGLoss {size[0]}x{size[1]}"
    base = None
    for name in ("float32", "tf32", "bfloat16") if device == "cuda" else ("float32", "bfloat16"):
        implementations = vgg_implementations(size, device, name, with_compile and name != "float32")
        medians = {
            implementation: t.median
            for implementation, t in compare(implementations, rounds=rounds, warmup=warmup).items()
        }
        memory = {implementation: run() for implementation, run in implementations.items()}
        report.data[f"{title}, {name}"] = {"seconds": medians, "retained, peak": memory}
        base = base or medians["plain"]
        report.at_most(f"{title}, {name}: time", medians["ours"] / medians["plain"], 0.75)
        if name == "bfloat16":
            report.at_most(
                f"{title}, bfloat16: time, relative to plain float32", medians["ours"] / base, 0.36, "of plain fp32"
            )
        if device == "cuda":
            gradient = 3 * 4 * size[0] * size[1]
            retained = (memory["ours"][0] - gradient) / memory["plain"][0]
            report.at_most(f"{title}, {name}: retained beyond the gradient", retained, 0.01)
            report.at_most(f"{title}, {name}: peak", memory["ours"][1] / memory["plain"][1], 0.35)


def measure_cost_per_pixel(report, device, sizes, rounds, warmup):
    from pix2pixhd.bench.timing import compare

    costs = {}
    for width, height in sizes:
        implementations = vgg_implementations((width, height), device, "bfloat16", with_compile=False)
        seconds = compare({"ours": implementations["ours"]}, rounds=rounds, warmup=warmup)["ours"].median
        costs[f"{width}x{height}"] = seconds / (width * height)
    report.data["VGGLoss, bfloat16, seconds per pixel"] = costs
    spread = max(costs.values()) / min(costs.values()) - 1
    report.at_most(f"VGGLoss: spread of the cost per pixel, from {next(iter(costs))} up", spread, 0.10, "")


def measure_step(report, device, setup, rounds, warmup):
    """The whole training step against NVIDIA's step, with the same weights."""
    import torch

    import pix2pixhd
    from pix2pixhd.bench import steps
    from pix2pixhd.bench.memory import memory_of

    condition, real = steps.batch(setup, device)
    base = base_peak = None
    for name in ("tf32", "bfloat16") if device == "cuda" else ("float32", "bfloat16"):
        seconds, peaks = {}, {}
        for implementation, backend in (("original", "reference"), ("ours", "fused")):
            memory, found = memory_of(device), []
            with pix2pixhd.backend(backend):
                step = steps.make_step(implementation, setup, device, channels_last=name == "bfloat16")
                for _ in range(warmup + rounds):
                    steps.free_gradients(step)
                    memory.reset()
                    before, begin = memory.now(), time.perf_counter()
                    with precision(name, device):
                        step(condition, real)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    found.append(time.perf_counter() - begin)
            seconds[implementation] = statistics.median(found[warmup:])
            peaks[implementation] = memory.peak() - before
            del step
            if device == "cuda":
                torch.cuda.empty_cache()
        title = f"training step {setup.size}, {name}"
        report.data[title] = {"seconds": seconds, "peak": peaks}
        base, base_peak = base or seconds["original"], base_peak or peaks["original"]
        report.at_least(f"{title}: speed-up over NVIDIA's step", seconds["original"] / seconds["ours"], 1.25)
        if name == "bfloat16":
            report.at_least(f"{title}: speed-up over NVIDIA's float32 step", base / seconds["ours"], 2.2)
        if device == "cuda":
            goal = 0.28 if name == "bfloat16" else 0.33
            report.at_most(f"{title}: peak memory", peaks["ours"] / base_peak, goal, "of NVIDIA's in float32")


def measure(report, device, with_compile):
    import torch

    warnings.simplefilter("ignore")
    small = device == "cpu"
    torch.manual_seed(0)
    bandwidth = report.data["copy bandwidth, bytes per second"] = copy_bandwidth(device)
    print(f"device copy bandwidth: {bandwidth / 1e9:.0f} GB/s", flush=True)
    rounds = 2 if small else 21
    measure_lsgan(report, device, rounds, with_compile)
    for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
        measure_l1(report, device, dtype, bandwidth, rounds, with_compile)
    rounds, warmup = (1, 0) if small else (7, 2)
    measure_vgg(report, device, (32, 32) if small else (1024, 512), rounds, warmup, with_compile)
    sizes = [(16, 16), (32, 32)] if small else [(512, 256), (1024, 512), (2048, 1024)]
    measure_cost_per_pixel(report, device, sizes, rounds, warmup)
    setup = Setup(size="32x32", ngf=8, ndf=8, n_blocks=1, label_nc=5) if small else Setup()
    measure_step(report, device, setup, rounds, warmup)


def write(report, folder, device):
    """Write the table and the JSON to files named after the GPU."""
    found = report.data["machine"]
    stem = re.sub(r"[^a-z0-9]+", "-", found.get("gpu", "cpu-dry-run").lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    text = ", ".join(f"{key} {value}" for key, value in found.items()) + "\n\n" + report.table() + "\n"
    if device == "cpu":
        text = "A DRY RUN ON THE CPU at small sizes: the goals are for a GPU, and the values are meaningless.\n" + text
    (folder / f"{stem}.txt").write_text(text)
    rows = [dataclasses.asdict(row) for row in report.rows]
    (folder / f"{stem}.json").write_text(json.dumps({**report.data, "table": rows}, indent=2) + "\n")
    print(f"\n{text}\nwritten to {folder / stem}.txt and .json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    options = parser.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to PyTorch; use --device cpu for a dry run")
    report = Report()
    if not options.skip_build:
        build(report)
    if not options.skip_tests:
        run_tests(report, limit=180)
    report.data["machine"] = machine(options.device)
    measure(report, options.device, not options.no_compile)
    write(report, options.out, options.device)


if __name__ == "__main__":
    main()
