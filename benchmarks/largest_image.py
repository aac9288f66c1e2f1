"""The largest image that trains within a memory limit: this package's step against NVIDIA's.

    python benchmarks/largest_image.py [--limits 4 8 16 24] [--networks global local] [--dtypes float32]
                                       [--step 64] [--device cpu|cuda] [--json FILE]
                                       [--empty-convolutions]

Networks: the global generator of 512p training and the local enhancer of 1024p training (``--ngf 32 --num_D 3``), with
their discriminators, Adam's state and the VGG loss. Images are twice as wide as high, in steps of ``--step`` pixels of
height, batch 1. A GB is 2**30 bytes. Every run is a fresh process; the largest size and the one after it are run.

On the CPU a size fits if the peak resident memory of the whole process, libraries included, is within the limit during
a step. A watchdog ends a run above it. RLIMIT_AS and RLIMIT_DATA limit address space, which libraries reserve but do
not use, and a control group needs privileges. glibc returns freed memory at once, as in the other memory benchmarks
(``EXACT_MEMORY`` in pix2pixhd/bench/memory.py). Limits above the available memory are estimated, marked ≈.
``--empty-convolutions`` leaves out the convolutions' computation and workspaces, which makes the search much faster.

On a GPU the limit is that of PyTorch's allocator (``torch.cuda.set_per_process_memory_fraction``); the CUDA context is
not included. A size fits if the step does not run out of memory.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import threading
import time
import warnings

from arguments import device, output_file, positive
from image_search import Run, Search
from machine import described
from steps import DTYPES, IMPLEMENTATIONS, Setup, prepared

from pix2pixhd.bench.memory import reset_peak, resident, run_child, trim

GB = 2**30
WARM_UP = "128x64"
# Runs slightly above the limit end normally, because their peaks improve the next estimate.
TOLERANCE = 1.1
SETUPS = {"global": Setup(), "local": Setup(network="local", ngf=32, num_D=3)}
RESULT = {"fits": False, "peak": None}


def end_above(limit):
    """Start a thread that ends this process when its resident memory exceeds the limit."""

    def watch():
        while True:
            if resident() > limit:
                print(json.dumps(RESULT), flush=True)
                os._exit(0)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()


def out_of_memory(error):
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def measure(implementation, dtype, setup, device, limit):
    """Run one step, after a small one that creates the optimizer state."""
    import torch

    from pix2pixhd.bench.steps import batch, free_gradients

    warnings.simplefilter("ignore")
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
    else:
        end_above(limit * TOLERANCE)
    try:
        with prepared(implementation, dtype, dataclasses.replace(setup, size=WARM_UP), device) as (step, run, inputs):
            run(*inputs)
            del inputs
            free_gradients(step)
            if device == "cuda":
                torch.cuda.empty_cache()
                run(*batch(setup, device))
                torch.cuda.synchronize()
                return {"fits": True, "peak": torch.cuda.max_memory_reserved()}
            trim()
            reset_peak()
            run(*batch(setup))
            peak = resident("VmHWM")
            return {"fits": peak <= limit, "peak": peak}
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return RESULT
        raise


def available_memory(device):
    """Bytes that a run can use on this machine."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    line = next(x for x in pathlib.Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def search_of(setup, implementation, dtype, options, runs, save):
    """A search that begins with the given runs, to which it adds its own, and calls ``save`` before each of them."""

    def run(height, limit):
        save()
        sized = dataclasses.replace(setup, size=f"{2 * height}x{height}")
        command = [*sized.arguments(), "--device", options.device, "--child", implementation, dtype, str(limit)]
        found = Run(height, limit, **run_child([__file__, *command], exact_memory=options.device == "cpu"))
        peak = "stopped" if found.peak is None else f"{found.peak / GB:.2f} GB"
        verdict = "fits" if found.fits else "does not fit"
        print(f"    {sized.size}: {peak}, {verdict} in {limit / GB:.2f} GB", flush=True)
        return found

    search = Search(run, options.step, peaks_decide=options.device == "cpu")
    search.runs = runs
    return search


def cell(found):
    if found.height == 0:
        return "–"
    return f"{'≈ ' if found.estimated else ''}{2 * found.height}×{found.height}"


def table(rows, limits):
    """The results in Markdown."""
    lines = ["| network | dtype | step | " + " | ".join(f"{limit:g} GB" for limit in limits) + " |"]
    lines.append("|---" * (3 + len(limits)) + "|")
    for (network, dtype, implementation), cells in rows.items():
        lines.append(f"| {network} | {dtype} | {implementation} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines)


def write(path, rows, runs, limits, options, machine):
    """Write what was found and run so far; ``rows`` and ``runs`` are by network, dtype and implementation."""
    found = {
        "machine": machine,
        "device": options.device,
        "scale": options.scale,
        "empty_convolutions": options.empty_convolutions,
        "limits_gb": limits,
        "results": {" ".join(name): [dataclasses.asdict(cell) for cell in cells] for name, cells in rows.items()},
        "runs": {" ".join(name): [dataclasses.asdict(run) for run in own] for name, own in runs.items()},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def earlier_runs(options, parser):
    """The runs of an interrupted search, by network, dtype and implementation."""
    if not options.resume:
        return {}
    if options.json is None or not options.json.is_file():
        parser.error("--resume needs --json with the file of an interrupted search")
    try:
        content = {"device": None, "scale": 1.0, "empty_convolutions": False, **json.loads(options.json.read_text())}
        runs = {tuple(name.split()): [Run(**run) for run in own] for name, own in content["runs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        parser.error(f"--resume: {options.json} is not the file of a search; start a new one without --resume")
    for name in ("device", "scale", "empty_convolutions"):
        if content[name] != getattr(options, name):
            option = f"--{name.replace('_', '-')} {content[name]}"
            parser.error(f"--resume: {options.json} is a search with {option}; pass the same")
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", nargs="+", type=positive(float), default=[4, 8, 16, 24], help="GB")
    parser.add_argument("--networks", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument(
        "--step", type=positive(int, multiple_of=16), default=64, help="distance between heights in pixels"
    )
    parser.add_argument(
        "--scale", type=positive(float), default=1.0, help="factor of the networks' channels, for tests"
    )
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--resume", action="store_true", help="use the runs in the file of an interrupted search")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    Setup.add_arguments(parser)  # read by the child
    Setup.add_empty_convolutions(parser)
    options = parser.parse_args()
    if options.child:
        implementation, dtype, limit = options.child
        print(json.dumps(measure(implementation, dtype, Setup.read(options), options.device, int(limit))))
        return
    limits = sorted(options.limits)
    available = int(0.95 * available_memory(options.device))
    rows, runs = {}, earlier_runs(options, parser)
    machine = described(options.device) if options.json else None

    def scaled(channels):
        return max(1, int(channels * options.scale))

    def save():
        if options.json:
            write(options.json, rows, runs, limits, options, machine)

    for network in options.networks:
        full = SETUPS[network]
        setup = dataclasses.replace(
            full, ngf=scaled(full.ngf), ndf=scaled(full.ndf), empty_convolutions=options.empty_convolutions
        )
        for dtype in options.dtypes:
            for implementation in options.implementations:
                print(f"{network} {dtype} {implementation}", flush=True)
                name = network, dtype, implementation
                search = search_of(setup, implementation, dtype, options, runs.setdefault(name, []), save)
                rows[name] = [search.largest(int(limit * GB), available) for limit in limits]
                save()
    print(table(rows, limits))


if __name__ == "__main__":
    main()
