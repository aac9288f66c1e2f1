"""Time and memory of networks of other projects, plain, compiled and lean, each in fresh processes.

    python benchmarks/lean.py [--networks cyclegan unet] [--size 512] [--width 64] [--rounds 5] [--dtypes float32]
                              [--device cpu|cuda] [--json FILE]

Networks: CycleGAN's generator and a U-Net with nnU-Net's layers, from examples/lean_networks.py. Implementations:

* ``plain``: the network in plain PyTorch;
* ``checkpoint``: plain, with torch.utils.checkpoint over parts of the network (CycleGAN's generator only);
* ``compiled``: plain, under torch.compile;
* ``lean``: ``pix2pixhd.nn.lean(network)``.

Times are medians of forward + backward; ratios are relative to ``plain``, or else to the first row. Memory counts from
weights and input alone: *retained* is what exists between forward and backward, *peak* is the largest amount, including
the gradients of the weights. On the CPU it is the resident memory of separate processes, in which freed memory is
returned to the system at once.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import time
import warnings

from arguments import device, output_file, positive
from machine import described
from steps import DTYPES

from pix2pixhd.bench.memory import memory_of, run_child, trim

IMPLEMENTATIONS = ["plain", "checkpoint", "compiled", "lean"]
CHANNELS = {"cyclegan": 3, "unet": 1}
EXAMPLE = pathlib.Path(__file__).resolve().parents[1] / "examples" / "lean_networks.py"


def make_network(name, width):
    import torch

    spec = importlib.util.spec_from_file_location("lean_networks", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    return example.cycle_generator(width) if name == "cyclegan" else example.UNet(width)


def forward_of(implementation, network):
    """A function from the input to the output."""
    import torch
    from torch.utils.checkpoint import checkpoint_sequential

    from pix2pixhd.nn import lean

    if implementation == "compiled":
        return torch.compile(network)
    if implementation == "checkpoint":
        return lambda x: checkpoint_sequential(network, 4, x, use_reentrant=False)
    return lean(network) if implementation == "lean" else network


def measure(options, name, implementation, dtype):
    """Medians over the rounds after the first, which includes compilation and first allocations."""
    import torch

    warnings.simplefilter("ignore")
    device = options.device
    network = make_network(name, options.width).to(device)
    if dtype == "bfloat16":
        network.to(memory_format=torch.channels_last)
    forward = forward_of(implementation, network)
    x = torch.rand(1, CHANNELS[name], options.size, options.size, device=device)
    half = torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    memory = memory_of(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = {"seconds": [], "retained": [], "peak": []}
    for index in range(options.rounds + 1):
        network.zero_grad()
        trim()
        memory.reset()
        before, begin = memory.now(), time.perf_counter()
        with half:
            loss = forward(x).float().square().mean()
        retained = memory.now() - before
        loss.backward()
        wait()
        if index > 0:
            found["seconds"].append(time.perf_counter() - begin)
            found["retained"].append(retained)
            found["peak"].append(memory.peak() - before)
        del loss
    return {key: statistics.median(values) for key, values in found.items()}


def run_network(options, name, dtype):
    """Measure all implementations, print a table and return its rows."""
    # In this order, so that the first, which the others are relative to, is plain PyTorch if that is measured.
    chosen = [x for x in IMPLEMENTATIONS if x in options.implementations]
    names = [x for x in chosen if x != "checkpoint" or name == "cyclegan"]
    print(f"{name}, width {options.width}, {options.size}x{options.size}, {dtype}, on {options.device}")
    columns = "".join(f"{what:>12}{'ratio':>10}" for what in ("time", "retained", "peak"))
    print(f"{'implementation':<16}{columns}")
    rows = {}
    for implementation in names:
        command = ["--size", str(options.size), "--width", str(options.width), "--device", options.device]
        command += ["--child", name, implementation, dtype]
        seconds = run_child([__file__, *command, "--rounds", str(options.rounds)])["seconds"]
        exact = run_child([__file__, *command, "--rounds", "1"], exact_memory=options.device == "cpu")
        row = rows[implementation] = {**exact, "seconds": seconds}
        base = rows[names[0]]
        cells = [f"{seconds:>10.3f} s{seconds / base['seconds']:>10.2f}"]
        cells += [f"{row[key] / 1e6:>9.0f} MB{row[key] / base[key]:>10.2f}" for key in ("retained", "peak")]
        print(f"{implementation:<16}{''.join(cells)}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CHANNELS), choices=list(CHANNELS))
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--size", type=positive(int, multiple_of=32), default=512)
    parser.add_argument("--width", type=positive(int), default=64, help="channels at full resolution")
    parser.add_argument("--rounds", type=positive(int), default=5)
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options, *options.child)))
        return
    results = {
        f"{name} {dtype}": run_network(options, name, dtype) for name in options.networks for dtype in options.dtypes
    }
    if options.json:
        settings = {"size": options.size, "width": options.width, "device": options.device}
        found = {"machine": described(options.device), **settings, "results": results}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
