"""A memory timeline of one training step: what is alive at each moment, and where it was allocated.

    python benchmarks/step_memory.py [--size 512x256] [--implementation ours|original] [--dtype float32|bfloat16]
                                     [--top 4] [--by-module] [--empty-convolutions] [--device cpu|cuda] [--json FILE]

Prints one entry per stage (generator forward, VGG, losses, discriminator forward, its backward, generator backward,
optimizers): the stage's peak, the operator that runs at it, and the largest groups of tensors alive then. Our VGG loss
computes its gradient in its forward. The peak of the whole step follows in detail. A group is the stage, the class of
the module and the operator that allocated the tensors; ``--by-module`` names each module.

All values are above the base: weights, optimizer state, batch. On the CPU the peak is resident memory. What no tensor
holds is the operator's workspace (oneDNN's reordered copies, for example) and the allocator's overhead.
"""

import argparse
import collections
import json
import warnings

from arguments import device, output_file
from steps import DTYPES, IMPLEMENTATIONS, Setup, prepared

from pix2pixhd.bench.memory import memory_of, run_child, trim


def state_tensors(optimizer):
    import torch

    return [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]


def name_vgg_loss(step, trace):
    """Attribute the perceptual loss of our step to the VGG: it runs no module's forward."""
    from memory_trace import Place

    if hasattr(step, "loss_G"):
        perceptual = step.loss_G.perceptual

        def named(fake, real):
            with trace.inside(Place("VGG", "", "VGGLoss")):
                return perceptual(fake, real)

        step.loss_G.perceptual = named


def record(implementation, dtype, setup, device):
    """The trace of the second step; the first creates the optimizer state."""
    import torch
    from memory_trace import MemoryTrace

    from pix2pixhd.bench.steps import free_gradients

    warnings.simplefilter("ignore")
    with prepared(implementation, dtype, setup, device) as (step, run, inputs):
        run(*inputs)
        free_gradients(step)
        trim()
        networks = {"G": step.netG, "D": step.netD, "VGG": step.vgg}
        base = {f"weights of {name}": [*net.parameters(), *net.buffers()] for name, net in networks.items()}
        base["optimizer state"] = [x for optimizer in step.optimizers for x in state_tensors(optimizer)]
        base["batch"] = inputs
        trace = MemoryTrace(memory_of(device), networks, dict(zip("GD", step.optimizers, strict=True)), base)
        name_vgg_loss(step, trace)
        with trace:
            run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
    return trace


def as_json(trace):
    segments = []
    for segment in trace.segments:
        alive = [[*vars(origin).values(), nbytes, count] for origin, (nbytes, count) in segment.alive.items()]
        numbers = {name: getattr(segment, name) for name in ("stage", "operators", "operator", "peak", "end")}
        segments.append({**numbers, "outside_tensors": segment.outside_tensors, "alive": alive})
    return {"base": trace.base_sizes, "base_memory": trace.base_memory, "segments": segments}


def groups(segment, by_module):
    """Bytes and number of tensors of each group alive at the segment's peak, the largest first."""
    found = collections.Counter()
    counts = collections.Counter()
    for stage, path, kind, operator, dtype, nbytes, count in segment["alive"]:
        module = f"{path} {kind}".strip() if by_module else kind
        name = f"{stage} | {module or '–'} | {operator} | {dtype}"
        found[name] += nbytes
        counts[name] += count
    outside = segment["outside_tensors"]
    if outside > 0:
        found[f"no tensor: workspace of {segment['operator']}, allocator"] = outside
    return [(name, nbytes, counts[name]) for name, nbytes in found.most_common()]


def table(segment, by_module, limit):
    peak = max(segment["peak"], 1)
    for name, nbytes, count in groups(segment, by_module)[:limit]:
        number = f"{count} ×" if count else ""
        print(f"      {nbytes / 1e6:>9.1f} MB {nbytes / peak:>6.1%} {number:>6} {name}")


def describe(found, by_module, top, top_at_peak):
    base = ", ".join(f"{name} {nbytes / 1e6:.0f} MB" for name, nbytes in found["base"].items())
    print(f"base: {base}; {found['base_memory'] / 1e6:.0f} MB with the libraries")
    print(f"{'':4}{'peak':>10}{'at end':>13}  stage, and the operator that runs at its peak")
    for index, segment in enumerate(found["segments"], start=1):
        sizes = f"{segment['peak'] / 1e6:>8.1f} MB{segment['end'] / 1e6:>10.1f} MB"
        print(f"{index:>3} {sizes}  {segment['stage']} ({segment['operators']} operators), {segment['operator']}")
        table(segment, by_module, top)
    highest = max(found["segments"], key=lambda segment: segment["peak"])
    print(f"\npeak of the step: {highest['peak'] / 1e6:.1f} MB in {highest['operator']}")
    table(highest, by_module, top_at_peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Setup.add_arguments(parser, size="512x256")
    Setup.add_empty_convolutions(parser)
    parser.add_argument("--implementation", default="ours", choices=IMPLEMENTATIONS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="cpu", type=device, help="cpu or cuda")
    parser.add_argument("--top", type=int, default=4, help="groups to print per stage")
    parser.add_argument("--top-at-peak", type=int, default=25, help="groups to print for the peak of the step")
    parser.add_argument("--by-module", action="store_true", help="name each module, not only its class")
    parser.add_argument("--json", type=output_file, help="write all groups of all stages")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    setup = Setup.read(options)
    if options.child:
        print(json.dumps(as_json(record(options.implementation, options.dtype, setup, options.device))))
        return
    names = ["--implementation", options.implementation, "--dtype", options.dtype, "--device", options.device]
    found = run_child([__file__, *setup.arguments(), *names, "--child"], exact_memory=True)
    print(f"one step of '{options.implementation}' at {options.size} in {options.dtype}, memory above the base")
    describe(found, options.by_module, options.top, options.top_at_peak)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
