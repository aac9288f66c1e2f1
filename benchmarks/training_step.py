"""Time and memory of a whole training step: this package against NVIDIA's pix2pixHD, with the same weights.

    python benchmarks/training_step.py [--size 1024x512] [--rounds 3] [--memory-only] [--empty-convolutions]
                                       [--json FILE]

Implementations: ``original`` (pix2pixhd/bench/original_step.py, plain PyTorch) and ``ours`` (pix2pixhd.training), in
float32 and under bfloat16 autocast, each in fresh processes. Global generator, two discriminator scales, LSGAN +
feature matching + VGG loss. The VGG weights are random, which changes neither time nor memory.

Memory is the peak resident memory during a step minus that before the step. Before the step, weights, optimizer state
and the batch exist. The gradients of the previous step are freed first in every implementation, so the step's own
gradients count in all of them. ``--empty-convolutions`` leaves out the convolutions' computation and workspaces: the
peaks of the float32 steps at 1024x512 are then the same, and bfloat16 steps can be measured on CPUs without AVX-512.
"""

import argparse
import json
import statistics
import time
import warnings

from arguments import output_file, positive
from machine import described
from steps import DTYPES, IMPLEMENTATIONS, Setup, prepared

from pix2pixhd.bench.memory import reset_peak, resident, run_child, trim


def measure(implementation, dtype, setup, rounds):
    from pix2pixhd.bench.steps import free_gradients

    warnings.simplefilter("ignore")
    seconds, peaks = [], []
    with prepared(implementation, dtype, setup) as (step, run, inputs):
        for step_index in range(rounds + 1):
            free_gradients(step)
            trim()
            reset_peak()
            before, begin = resident(), time.perf_counter()
            run(*inputs)
            if step_index > 0:  # the first step creates the optimizer state
                seconds.append(time.perf_counter() - begin)
                peaks.append(resident("VmHWM") - before)
    return {"seconds": statistics.median(seconds), "rounds": seconds, "peak": statistics.median(peaks)}


def measured(options, implementation, dtype):
    """Measure the time in one process and the memory in another."""
    command = [*Setup.read(options).arguments(), "--child", implementation, dtype]
    row = {"peak": run_child([__file__, *command, "--rounds", "1"], exact_memory=True)["peak"]}
    if not options.memory_only:
        found = run_child([__file__, *command, "--rounds", str(options.rounds)])
        row.update(seconds=found["seconds"], rounds=found["rounds"])
    return row


def describe(name, row, base):
    time_columns = f"{'–':>10}{'–':>10}"
    if "seconds" in row and "seconds" in base:
        time_columns = f"{row['seconds']:>8.2f} s{base['seconds'] / row['seconds']:>10.2f}"
    return f"{name:<20}{time_columns}{row['peak'] / 1e6:>9.0f} MB{row['peak'] / base['peak']:>13.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Setup.add_arguments(parser)
    Setup.add_empty_convolutions(parser)
    parser.add_argument("--rounds", type=positive(int), default=3)
    parser.add_argument("--memory-only", action="store_true", help="do not measure times")
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, Setup.read(options), options.rounds)))
        return
    if options.empty_convolutions and not options.memory_only:
        parser.error("--empty-convolutions measures memory alone; pass --memory-only too")
    print(f"training step at {options.size}, medians of {options.rounds} rounds")
    print(f"{'implementation':<20}{'time':>10}{'speed-up':>10}{'peak':>12}{'of original':>13}")
    rows = {}
    for dtype in options.dtypes:
        for implementation in options.implementations:
            name = f"{implementation} {dtype}"
            rows[name] = measured(options, implementation, dtype)
            print(describe(name, rows[name], next(iter(rows.values()))), flush=True)
    if options.json:
        found = {"machine": described(), "size": options.size, "results": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
