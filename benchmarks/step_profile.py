"""The profile of one training step: where its time goes, and how fast its convolutions run.

    python benchmarks/step_profile.py [--size 1024x512] [--implementation ours|original] [--dtype float32|bfloat16]
                                      [--steps 2] [--top 12] [--device cpu|cuda] [--json FILE]

Prints the share of convolutions, of elementwise work (normalization, activations, padding, pooling, losses), of copies
and casts, of the optimizers and of the rest: allocation, views, autograd, Python, and matrix products. Each operator
counts with its own time, without that of the operators it calls. Copies that PyTorch's convolutions make of their
inputs and results, into the memory format that oneDNN or cuDNN computes in, are a row of their own; they belong to the
convolutions. All that runs in an optimizer's step counts as optimizer.

The rate of the convolutions is their number of floating-point operations divided by their time. It is compared with the
matrix-product peak of the machine: the best rate of ``torch.mm`` in the same dtype, before and after the step
(pix2pixhd/bench/peak.py, as in ``pix2pixhd bench``).
"""

import argparse
import collections
import json
import re
import warnings

from arguments import device, output_file, positive
from steps import DTYPES, IMPLEMENTATIONS, Setup, prepared

# The first pattern that an operator's name matches decides. Other operators count as elementwise work.
CATEGORIES = {
    "convolutions": re.compile(r"conv"),
    "copies and casts": re.compile(r"copy|aten::(to|cat|stack|clone|contiguous|flip|fill_|zero_|zeros_like|zeros)$"),
    "rest": re.compile(r"^(?!aten::|pix2pixhd::)|aten::(mm|addmm|bmm|matmul|\w*empty\w*|set_|resize\w*|as_strided\w*|"
                       r"view\w*|reshape|_unsafe_view|select|slice|narrow|permute|transpose|t|detach\w*|alias|"
                       r"expand\w*|squeeze\w*|unsqueeze\w*|item|_local_scalar_dense|result_type|lift\w*)$"),
}  # fmt: skip
WITHIN = "copies of convolutions"
ORDER = ["convolutions", WITHIN, "elementwise", "copies and casts", "optimizers", "rest"]
CONVOLUTION = re.compile(r"aten::\w*convolution")
STEP = "training step"


def category(event):
    """The category of a profiler event, from its name and the ranges around it."""
    name = next((name for name, pattern in CATEGORIES.items() if pattern.search(event.name)), "elementwise")
    parent = event
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return "optimizers"
        if name == "copies and casts" and CONVOLUTION.match(parent.name):
            return WITHIN
        parent = parent.cpu_parent
    return name


def profile_step(implementation, dtype, setup, device, steps):
    """Seconds per step by category and by operator, and the operations and rate of the convolutions."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from pix2pixhd.bench.peak import matrix_product_peak

    warnings.simplefilter("ignore")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    peaks = [matrix_product_peak(getattr(torch, dtype), torch.device(device))]
    with prepared(implementation, dtype, setup, device) as (_, run, inputs):
        run(*inputs)  # creates the optimizer state
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(steps):
                with record_function(STEP):
                    run(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()
    peaks.append(matrix_product_peak(getattr(torch, dtype), torch.device(device)))
    return {**summarize(profiler.events(), device, steps), "matrix_product_peak": max(peaks)}


def summarize(events, device, steps):
    from pix2pixhd.bench.peak import convolution_flops

    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    categories, operators, flops = collections.Counter(), collections.Counter(), 0
    # On a GPU, the operators of the CPU count with the time of the kernels that they launch.
    events = [event for event in events if str(event.device_type).endswith("CPU")]
    for event in events:
        seconds = getattr(event, own) / 1e6 / steps
        name = category(event)
        categories[name] += seconds
        operators[name, event.name] += seconds
        flops += convolution_flops(event) / steps
    convolutions = categories["convolutions"]
    return {
        "seconds": sum(categories.values()),
        "categories": {name: categories[name] for name in ORDER},
        "operators": [[*names, seconds] for names, seconds in operators.most_common()],
        "convolution_flops": flops,
        "convolution_rate": flops / convolutions if convolutions else 0.0,
    }


def describe(found, dtype, top):
    total = found["seconds"]
    print(f"{total:.3f} s per step")
    for name, seconds in found["categories"].items():
        print(f"  {name:<24}{seconds:>9.3f} s{seconds / total:>9.1%}")
    outside = 1 - (found["categories"]["convolutions"] + found["categories"][WITHIN]) / total
    print(f"  {'outside convolutions':<24}{outside * total:>9.3f} s{outside:>9.1%}")
    rate, peak = found["convolution_rate"], found["matrix_product_peak"]
    print(
        f"convolutions: {found['convolution_flops'] / 1e9:.0f} GFLOP at {rate / 1e9:.1f} GFLOP/s, {rate / peak:.1%} of "
        f"the matrix-product peak in {dtype} ({peak / 1e9:.1f} GFLOP/s)"
    )
    print(f"step: {found['convolution_flops'] / total / peak:.1%} of the matrix-product peak")
    print("largest operators outside convolutions:")
    others = [row for row in found["operators"] if row[0] not in ("convolutions", WITHIN)]
    for name, operator, seconds in others[:top]:
        print(f"  {seconds:>9.3f} s{seconds / total:>8.1%}  {name:<18}{operator}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Setup.add_arguments(parser)
    parser.add_argument("--implementation", default="ours", choices=IMPLEMENTATIONS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--steps", type=positive(int), default=2, help="profiled steps")
    parser.add_argument("--top", type=int, default=12, help="operators to print")
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    setup = Setup.read(options)
    print(f"one step of '{options.implementation}' at {options.size} in {options.dtype}: ", end="", flush=True)
    found = profile_step(options.implementation, options.dtype, setup, options.device, options.steps)
    describe(found, options.dtype, options.top)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
